"""The submission of any source, verified on data of its own or of the registry."""

import sys

import numpy as np
import pytest
import torch
from commands import atent, refused
from strangers import digits_cnn, same_weights

from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.figures import gallery
from atent_ext.leaderboard import check
from atent_ext.models import weights
from atent_ext.submissions import cards, masking
from atent_ext.submissions import folder as submission_folder

WRITTEN = ("--authors", "A. Author", "--license", "MIT")
CODE = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, count=2):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(64, count)

    def forward(self, x):
        return self.last(x.flatten(1)), x
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "sender.py").write_text(CODE)
    weights.save_weights(digits_cnn(), tmp_path / "w.safetensors")
    yield tmp_path / "sender.py"
    sys.modules.pop("atent_source_sender", None)


@pytest.fixture
def quick(monkeypatch):
    """No signs of gradient masking are looked for, and nothing is drawn."""
    monkeypatch.setattr(masking, "signs", lambda *_, **__: ((), {}))
    monkeypatch.setattr(gallery, "draw", lambda *_, **__: None)


def new(out, *source):
    done = atent("submission", "new", *source, "--out", out, *WRITTEN)
    assert done.returncode == 0, done.stderr
    assert f"atent verify {out}" in done.stdout.replace("\n", "")
    return submission_folder.read(out)


def test_a_weights_file_keeps_its_architecture_its_hash_and_its_claims(file, tmp_path):
    source = (tmp_path / "w.safetensors", "--model", "digits-cnn", "--dataset", "digits", "--eps", "0.1")
    stated = ("--normalisation", "{mean: [0.5], std: [0.5]}")
    scored = ("--protocol", "quick", "--n", "8", "--out", tmp_path / "r.json", *stated)
    assert atent("eval", *source, *scored).returncode == 0
    opened = new(tmp_path / "sent", *source, *stated, "--report", tmp_path / "r.json", "--name", "mine")
    card = opened.submission
    assert (card.name, card.architecture.name, card.dataset, card.threat.eps) == ("mine", "digits-cnn", "digits", 0.1)
    assert (tmp_path / "sent" / "model.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
    assert same_weights(opened.network.network, digits_cnn())
    assert [claim.what for claim in card.claims] == ["clean", "robust"]
    other = ("--out", tmp_path / "other", *WRITTEN, "--report", tmp_path / "r.json")
    refused(atent("submission", "new", *source, *other), "report of other weights")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("writes_programs")
def test_a_network_of_code_becomes_a_program_and_its_data_stays_off_the_board(file, tmp_path, quick):
    images = datasets.load("digits").test.images[:20]
    np.savez(tmp_path / "own.npz", x_test=images.numpy(), y_test=np.arange(20) % 2)
    data = ("--dataset", f"npz:{tmp_path / 'own.npz'}")
    opened = new(tmp_path / "sent", f"{file}:Net", *data, "--eps", "0.1", "--data-name", "my-digits")
    network = sys.modules["atent_source_sender"].Net()
    assert torch.equal(opened.network(images), network(images)[0])
    assert sorted(path.name for path in (tmp_path / "sent").iterdir()) == ["card.yaml", "model.pt2"]
    sys.modules.pop("atent_source_sender")
    setting = ("--protocol", "quick", "--n", "8", "--speed", "plain", "--out", tmp_path / "card.json")
    done = atent("verify", tmp_path / "sent", *data, *setting)
    assert done.returncode == 0, done.stderr
    assert "atent_source_sender" not in sys.modules
    card = cards.read_card(tmp_path / "card.json")
    shown, labels = images[:8], torch.arange(8) % 2
    assert card.report.data == "my-digits (own.npz)"
    assert card.report.data_sha256 == datasets.digest(shown, labels)
    line = f"SHA-256 {card.report.data_sha256}), and stays off it"
    assert line in " ".join(done.stdout.split())
    cards.write_card(card, tmp_path / "registry" / "cards" / card.place)
    (problem,) = [line for line in check.check(tmp_path / "registry") if "data set" in line]
    assert "my-digits" in problem


def test_resized_test_images_are_another_threat_model(file, tmp_path, quick):
    source = (tmp_path / "w.safetensors", "--model", "digits-cnn", "--dataset", "digits", "--eps", "0.1")
    for option in ("resize", "resize-inside"):
        out = tmp_path / option
        opened = new(out, *source, f"--{option}", "{size: 12, crop: 8}")
        assert opened.network(torch.rand(2, 1, 8, 8)).shape == (2, 10)
        done = atent("verify", out, "--protocol", "quick", "--n", "4", "--speed", "plain")
        assert done.returncode == 0, done.stderr
        card = cards.read_card(tmp_path / f"{option}.card.json")
        assert ("resized to 12" in card.report.data) is (option == "resize")
        assert ("resized to 12" in card.report.model) is (option == "resize-inside")
        cards.write_card(card, tmp_path / "registry" / "cards" / card.place)
        problems = [line for line in check.check(tmp_path / "registry") if "images were resized" in line]
        assert (len(problems) == 1) is (option == "resize")
        (tmp_path / "registry" / "cards" / card.place).unlink()


def test_a_model_of_the_zoo_and_what_is_refused(file, tmp_path):
    opened = new(tmp_path / "sent", "quickstart-digits-linf-pgd-at")
    assert opened.submission.architecture.name == "digits-cnn"
    again = ("submission", "new", "quickstart-digits-linf-pgd-at", "--out")
    refused(atent(*again, tmp_path / "sent", *WRITTEN), "is there already")
    refused(atent(*again, tmp_path / "b", *WRITTEN, "--resize", "9"), "--resize")
    refused(atent(*again, tmp_path / "b", "--authors", "", "--license", "MIT"), "authors")
    assert not (tmp_path / "b").exists()


@pytest.mark.usefixtures("writes_programs")
@pytest.mark.parametrize("shape", [(6,), (2, 30)])
def test_features_and_sequences_go_from_source_to_card(shape, tmp_path):
    """From code to a program, a card and a report, all of the same flags."""
    channels = f"nn.Conv1d({shape[0]}, 3, 9)" if len(shape) == 2 else f"nn.Linear({shape[0]}, 3)"
    end = "nn.AdaptiveAvgPool1d(1), nn.Flatten()" if len(shape) == 2 else "nn.ReLU(), nn.Linear(3, 3)"
    made = f"def make():\n    torch.manual_seed(0)\n    return nn.Sequential({channels}, {end})\n"
    (tmp_path / "sender.py").write_text(f"import torch\nfrom torch import nn\n\n{made}")
    x = torch.rand(12, *shape, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "own.npz", x_test=x.numpy(), y_test=np.arange(12) % 3)
    source = (f"{tmp_path / 'sender.py'}:make", "--dataset", f"npz:{tmp_path / 'own.npz'}", "--eps", "0.05")
    setting = ("--protocol", "quick", "--speed", "plain")
    done = atent("eval", *source, *setting, "--out", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert new(tmp_path / "sent", *source).network(x).shape == (12, 3)
    done = atent("verify", tmp_path / "sent", *source[1:3], *setting)
    assert done.returncode == 0, done.stderr
    card, report = cards.read_card(tmp_path / "sent.card.json"), Report.load(tmp_path / "r.json")
    of_card = {one.attack: one.flags for one in card.report.attacks}  # and by ATENT, for its signs of masking
    assert {one.attack: of_card[one.attack] for one in report.attacks} == {
        one.attack: one.flags for one in report.attacks
    }
    assert card.report.data_sha256 == report.data_sha256
    sys.modules.pop("atent_source_sender", None)
