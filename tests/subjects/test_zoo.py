"""Models by name: the weights are those of the card, or there is an error."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
import torch

import atent_ext
from atent_ext import subjects
from atent_ext.attacks import accuracy
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.subjects import zoo
from atent_ext.submissions import cards

BEST = "mnist-linf-atent"


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The cards and the weights of one model, in a folder that a test may spoil."""
    (card, *_), weights = zoo.find(BEST)
    shutil.copytree(registry.folder("card") / card.place.parent, tmp_path / "card" / card.place.parent)
    (tmp_path / "weights").mkdir()
    shutil.copy(weights, tmp_path / "weights")
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path / kind)
    return tmp_path


def test_every_weights_file_has_its_card_and_loads():
    assert BEST in zoo.names()
    for name in zoo.names():
        (card, *_), path = zoo.find(name)
        assert card.submission.name == name
        assert path.stat().st_size < 5_000_000
        network = atent_ext.load(name)
        assert not network.training
        assert sum(p.numel() for p in network.parameters()) == card.weights["parameters"]
    assert sum(zoo.find(name)[1].stat().st_size for name in zoo.names()) < 40_000_000


def test_loading_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = atent_ext.load(BEST), atent_ext.load(BEST)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_a_file_that_is_not_the_cards_is_refused(copied):
    path = copied / "weights" / f"{BEST}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"atent\.safetensors has SHA-256 [0-9a-f]{64}, and the card of .* is of"):
        atent_ext.load(BEST)


def test_weights_that_are_not_here_come_from_a_folder_by_their_hash(copied, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (copied / "weights" / f"{BEST}.safetensors").rename(theirs / "any-name.safetensors")
    with pytest.raises(BadInput, match="has a card of mnist-linf-atent, but not its weights; name their folder"):
        atent_ext.load(BEST)
    (theirs / "a-wrong-one.safetensors").write_bytes(b"wrong")
    assert not atent_ext.load(BEST, folder=theirs).training
    (theirs / "any-name.safetensors").unlink()
    for name, code, field in ((BEST, "missing", "folder"), ("nobody", "unknown-name", "name")):
        with pytest.raises(BadInput) as error:
            atent_ext.load(name, folder=str(theirs))
        assert (error.value.code, error.value.field) == (code, field)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *_: SimpleNamespace(test=None, name="mnist", note=""))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_is_a_model_and_a_path_says_how_to_say_each(no_data, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for known in (BEST, f"zoo:{BEST}"):
        assert subjects.load(known).about.name == BEST
    assert "does not exist" in str(refusal(f"./{BEST}"))
    (tmp_path / BEST).mkdir() if kind == "folder" else (tmp_path / BEST).touch()
    for both in (BEST, Path(BEST)):
        error = refusal(both)
        assert (error.code, error.field) == ("conflict", "subject")
        assert f"{BEST} is a {kind} here and a model of the zoo; say ./{BEST} for the {kind}, or zoo:{BEST}" in str(
            error
        )
    assert subjects.load(f"zoo:{BEST}").about.name == BEST
    said = "there is no recipe.yaml in it" if kind == "folder" else "a weights file needs --model, --dataset and --eps"
    for path in (f"./{BEST}", f"{tmp_path}/{BEST}", tmp_path / BEST, *([f"{BEST}/"] if kind == "folder" else [])):
        assert said in str(refusal(path))


def test_a_prefix_names_a_zoo_and_a_separator_a_path(no_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no model 'mnist-linf-atnet' in the zoo" in str(refusal("zoo:mnist-linf-atnet"))
    assert "drop --model and --dataset" in str(refusal(f"zoo:{BEST}", model="small-cnn"))
    assert refusal(f"zoo:{BEST}", held_out=True).field == "held_out"
    for prefix in ("zoo:", "robustbench:"):
        (tmp_path / f"{prefix}{BEST}").mkdir()
        assert "there is no recipe.yaml in it" in str(refusal(f"./{prefix}{BEST}"))


def refusal(*arguments, **options):
    with pytest.raises(BadInput) as error:
        subjects.load(*arguments, **options)
    return error.value


def test_of_cards_under_several_threat_models_one_is_asked_for(copied, no_data):
    (card, *_), _ = zoo.find(BEST)
    threat = Threat(norm="L2", eps=2.0)
    other = card.model_copy(update={"submission": card.submission.model_copy(update={"threat": threat})})
    cards.write_card(other, copied / "card" / other.place)
    assert set(map(type, atent_ext.load(BEST).children())) == {torch.nn.Sequential}
    with pytest.raises(BadInput, match=f"^{BEST} has cards under L2 2, Linf 0.3; give --norm and --eps$"):
        subjects.load(Path(BEST))
    assert subjects.load(Path(BEST), norm="Linf", eps=0.3).threat == card.submission.threat


def test_weights_without_a_card_are_refused(copied):
    shutil.rmtree(copied / "card")
    (copied / "card").mkdir()
    with pytest.raises(BadInput, match="has no card"):
        atent_ext.load(BEST)


@pytest.mark.parametrize("name", ["mnist-linf-atnet", "", "../mnist-linf-atent", "*", "a\nb", None])
def test_an_unknown_name_is_told_what_there_is(name):
    with pytest.raises(BadInput, match=r"there is no model .* in the zoo; the zoo has: .*mnist-linf-atent"):
        atent_ext.load(name)


def test_a_model_with_a_card_alone_says_so():
    with pytest.raises(BadInput, match="has a card of advertorch-lenet5-clean, but not its weights"):
        atent_ext.load("advertorch-lenet5-clean")


@pytest.mark.data
@pytest.mark.parametrize("name", zoo.names())
def test_the_cards_clean_flags_are_reproduced(name, data_root):
    (card, *_), _ = zoo.find(name)
    test = datasets.load(card.submission.dataset, data_root).test.take(card.report.result("clean").n)
    assert torch.equal(accuracy.clean_flags(atent_ext.load(name), test), card.report.flags("clean"))


@pytest.mark.data
def test_eval_takes_a_name(tmp_path, data_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = commands.atent("eval", BEST, "--protocol", "quick", "--n", 20, "--data-root", data_root)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob(f"runs/{BEST}-*/eval-quick-Linf-0.3-n20-seed0.json")
    report, card = Report.load(path), zoo.find(BEST)[0][0]
    assert report.weights_sha256 == card.weights["sha256"]
    assert torch.equal(report.flags("clean"), card.report.flags("clean")[:20])


def test_names_that_are_not_in_the_zoo_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["mnist-linf-atnet"], "mnist-linf-atnet does not exist; give a run folder or a weights file; the zoo has:"),
        ([BEST, "--model", "small-cnn"], "drop --model and --dataset"),
        ([BEST, "--held-out"], f"{BEST} is a model of a zoo, and only a run says which images it held out; leave out"),
        (["nowhere", "--held-out"], "nowhere does not exist"),
    ):
        commands.refused(commands.atent("eval", *arguments), said)
    (tmp_path / BEST).mkdir()
    commands.refused(commands.atent("eval", BEST), f"./{BEST} for the folder, or zoo:{BEST} for the model")
    commands.refused(commands.atent("eval", f"./{BEST}", "--held-out"), "recipe.yaml")
