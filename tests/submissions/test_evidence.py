"""Adversarial images of others: what counts, what is refused by name, and how it lowers a card."""

import io
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import atent, refused
from sample_cards import CHECKS, claim

from atent_ext.cli import card_text
from atent_ext.core.around import Resizing
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation import scoring
from atent_ext.evaluation.protocol import Protocol
from atent_ext.leaderboard import ranking, view
from atent_ext.models import networks, weights
from atent_ext.storage import untrusted_arrays
from atent_ext.submissions import cards, claims, evidence, verification
from atent_ext.submissions import folder as submission_folder
from atent_ext.submissions.cards import Card, Submission

EPS = 0.1
N = 40
CLEAN = Protocol(name="weak", description="", attacks=[{"attack": "clean"}, {"attack": "fgsm"}])


class Bright(torch.nn.Module):
    """Class 1 if the sum of the image is larger than `edge`, else class 0: what fools it is known."""

    def __init__(self, edge=10.0):
        super().__init__()
        self.edge = torch.nn.Parameter(torch.tensor(edge))

    def forward(self, x):
        total = x.flatten(1).sum(1) - self.edge
        return torch.stack([-total, total], 1)


@pytest.fixture(scope="module")
def test():
    """Images of 4 x 4 pixels; the sum is 9 for class 0 and 11 for class 1, so that 1/16 a pixel fools."""
    labels = torch.arange(N) % 2
    pattern = 0.3 * torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = ((9 + 2 * labels).float() / 16).reshape(-1, 1, 1, 1) + pattern - pattern.mean((1, 2, 3), keepdim=True)
    return datasets.Split(images, labels)


def moved(test, by=0.09):
    """Adversaries of all images."""
    return test.images + by * (1 - 2 * test.labels.float()).reshape(-1, 1, 1, 1)


def packed(path, **arrays):
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def checked(test, path, model=None, random=False):
    threat = Threat(norm="Linf", eps=EPS)
    return evidence.check(model or Bright().eval(), evidence.read(path, test), test, threat, 16, random)


def counted(found):
    return {reason: count for reason, count in found.reasons.items() if count}


def test_adversaries_that_fool_count(test, tmp_path):
    found = checked(test, packed(tmp_path / "a.npz", x_adv=moved(test), y=test.labels))
    assert bool(found.counts.all())
    assert counted(found) == {}
    some = checked(test, packed(tmp_path / "b.npz", x_adv=moved(test)[[7, 3]].double(), index=[7, 3]))
    assert some.adversaries.index.tolist() == [7, 3]
    assert bool(some.counts.all())


def test_floats_of_another_byte_order_are_the_same_images(test, tmp_path):
    images = moved(test).numpy()
    file = packed(tmp_path / "a.npz", x_adv=images.astype(">f4"), y=test.labels.numpy().astype(">i4"))
    assert torch.equal(evidence.read(file, test).images, moved(test))


def test_what_does_not_count_is_named(test, tmp_path):
    images = moved(test)
    images[0, 0, 0, 0] = test.images[0, 0, 0, 0] + EPS + 1e-3
    images[1, 0, 0, 0] = float("nan")
    images[2] = test.images[2]
    images[3, 0, 0, 0] = -1e-3
    found = checked(test, packed(tmp_path / "a.npz", x_adv=images))
    assert counted(found) == {
        "not a number": 1,
        "outside [0, 1]": 1,
        f"outside the ball of Linf eps {EPS:g}": 1,
        "classified correctly": 1,
    }
    assert (~found.counts).nonzero().flatten().tolist() == [0, 1, 2, 3]
    swapped = moved(test).roll(2, 0)  # every image gets one of its class
    wrong = checked(test, packed(tmp_path / "b.npz", x_adv=swapped))
    assert counted(wrong) == {"in the ball of another test image, so their order is wrong": N}
    already = checked(test, packed(tmp_path / "c.npz", x_adv=moved(test)), Bright(edge=0.0).eval())
    assert counted(already)["of images that are misclassified already"] == N // 2  # class 0


def test_the_majority_of_a_random_network_decides(test, tmp_path):
    class Fickle(Bright):
        def forward(self, x):  # a fifth of the answers are those of an image of the other class
            flip = torch.rand(len(x), 1) < 0.2
            return torch.where(flip, -super().forward(x), super().forward(x))

    torch.manual_seed(0)
    images = moved(test)
    images[: N // 2] = test.images[: N // 2]
    found = checked(test, packed(tmp_path / "a.npz", x_adv=images), Fickle().eval(), random=True)
    assert found.counts.tolist() == [False] * (N // 2) + [True] * (N // 2)


# ---- files


@pytest.mark.parametrize(
    ("arrays", "code", "field"),
    [
        ({"x_adv": np.zeros((N, 4, 4, 1), "f4")}, "bad-shape", "x_adv"),
        ({"x_adv": np.zeros((N + 1, 1, 4, 4), "f4")}, "bad-shape", "x_adv"),
        ({"x_adv": np.zeros((N, 1, 4, 4), "i8")}, "bad-type", "x_adv"),
        ({"x_adv": np.zeros((N, 1, 4, 4), np.longdouble)}, "bad-type", "x_adv"),
        ({"images": np.zeros((N, 1, 4, 4), "f4")}, "missing", "x_adv"),
        ({"x_adv": np.zeros((N, 1, 4, 4), "f4"), "y": 1 - np.arange(N) % 2}, "conflict", "y"),
        ({"x_adv": np.zeros((N, 1, 4, 4), "f4"), "y": np.zeros(N)}, "bad-shape", "y"),
        ({"x_adv": np.zeros((2, 1, 4, 4), "f4"), "index": [3, 3]}, "bad-value", "index"),
        ({"x_adv": np.zeros((2, 1, 4, 4), "f4"), "index": [3, N]}, "bad-value", "index"),
        ({"x_adv": np.array([None] * N)}, "unsafe", "path"),
    ],
)
def test_files_that_do_not_fit_are_refused(test, tmp_path, arrays, code, field):
    with pytest.raises(BadInput) as caught:
        evidence.read(packed(tmp_path / "a.npz", **arrays), test)
    assert (caught.value.code, caught.value.field) == (code, field)


def hostile(member, extra=0):
    """An archive whose x_adv.npy holds these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_adv.npy", member)
        for number in range(extra):
            archive.writestr(f"{number}.npy", b"")
    return buffer.getvalue()


def member(shape, data=b"", dtype="<f4"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue() + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        hostile(b"no array"),
        hostile(member((N, 1, 4, 4))),  # a header that promises data which are not there
        hostile(member((10**9, 10**9))),
        hostile(member((2,), bytes(8)), extra=30),
        hostile(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535),
    ],
)
def test_hostile_archives_are_refused_before_they_are_unpacked(test, tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        evidence.read(tmp_path / "a.npz", test)
    assert caught.value.code == "unreadable"


def test_nothing_is_unpacked_before_its_header_is_checked(monkeypatch):
    monkeypatch.setattr(untrusted_arrays, "_array", lambda *_: pytest.fail("it was unpacked"))

    def check(headers):
        raise BadInput("not wanted", code="bad-shape", field=f"{headers['x_adv'].bytes}")

    with pytest.raises(BadInput) as caught:
        untrusted_arrays.read(hostile(member((5,), bytes(20))), "a.npz", ["x_adv"], check)
    assert caught.value.field == "20"


# ---- the card


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """A submission of an untrained network for digits, and its test images."""
    path = tmp_path_factory.mktemp("evidence") / "sent"
    path.mkdir()
    images = datasets.load("digits").test
    torch.manual_seed(0)
    network = networks.build_for("digits-cnn", images.images, 10).eval()
    with torch.no_grad():
        list(network.parameters())[-1][:] = 100 * torch.nn.functional.one_hot(images.labels[0], 10).float()
        predicted = network(images.images[:N]).argmax(1)
    assert bool((predicted == images.labels[0]).all())
    weights.save_weights(network, path / "model.safetensors")
    submission = Submission.model_validate(
        {
            "name": "constant",
            "authors": "A. Author",
            "architecture": {"name": "digits-cnn"},
            "dataset": "digits",
            "threat": {"norm": "Linf", "eps": 1.0},
            "license": "MIT",
            "claims": [claim("clean", 0.0)],
        }
    )
    cards.write_submission(submission, path / "card.yaml")
    return path, images


def carded(path, images, n=N, **changes):
    opened = submission_folder.read(path)
    data = verification.images_of(opened, None, None)
    report = scoring.score(verification._subject(opened, data), CLEAN, n=n)
    return Card.model_validate(
        {
            "submission": opened.submission,
            "weights": {"file": "model.safetensors", "sha256": opened.sha256, "parameters": 1},
            "checks": CHECKS,
            "signs": [],
            "verdicts": claims.verdicts(opened.submission.claims, report),
            "report": report,
            "command": "atent verify sent",
            "commit": "",
            "date": "2026-11-20",
            "seconds": 1.0,
        }
        | changes
    )


def fooled(found, rows):
    """A check in which the adversaries of these images count."""
    counts = torch.zeros(len(found), dtype=torch.bool)
    counts[rows] = True
    return evidence.Checked(found, counts, {"classified correctly": len(found) - len(rows)}, 0.5)


def test_evidence_lowers_the_card_with_attribution(sent, tmp_path):
    path, images = sent
    card = carded(path, images)
    right = card.report.worst.robust().nonzero().flatten().tolist()
    found = evidence.read(packed(tmp_path / "x.npz", x_adv=images.images[:N], y=images.labels[:N]), images)
    lowered = evidence.add(card, fooled(found, right[:2]), "B. Attacker")
    assert lowered.report.worst.correct == card.report.worst.correct - 2
    result, of_attacks = lowered.report.evidence[0], card.report.worst.passes
    assert (lowered.report.worst.passes, lowered.report.passes) == (of_attacks, of_attacks)
    assert lowered.report.worst.proven == card.report.worst.proven
    assert result.attack not in view.Shown("card", lowered.report).passes
    assert (result.settings["by"], result.settings["sha256"]) == ("B. Attacker", found.sha256)
    assert result.robust().tolist() == [
        flag and place not in right[:2] for place, flag in enumerate(card.report.flags("clean").tolist())
    ]
    cards.write_card(lowered, tmp_path / "card.json")
    assert cards.read_card(tmp_path / "card.json") == lowered
    assert evidence.add(lowered, fooled(found, right[:3]), "B. Attacker") is lowered  # the same file again
    other = replace(found, sha256="0" * 64)
    assert evidence.add(lowered, fooled(other, right[:2]), "C") is lowered  # nothing new falls
    again = evidence.add(lowered, fooled(other, right[:3]), "B. Attacker")
    assert [one.attack for one in again.report.evidence] == [
        "adversaries by B. Attacker",
        "adversaries by B. Attacker (2)",
    ]
    # who reads it: the text, the board, the page
    assert "adversaries by B. Attacker" in str(lowered.report)
    entry = ranking.measured(lowered, tmp_path / "card.json")
    assert "worst case lowered by B. Attacker" in [badge.text for badge in entry.badges]
    assert entry.strongest == ranking.Strongest("FGSM + adversaries by B. Attacker", entry.worst.accuracy)
    named = ranking.measured(
        again, tmp_path / "card.json"
    ).strongest.attack  # the second file has both images of the first
    assert named == "FGSM + adversaries by B. Attacker + adversaries by B. Attacker (2)"
    assert dict(view.read(tmp_path / "card.json").fallen)["fell first to adversaries by B. Attacker"] == 2
    assert list(card_text.remarks(lowered.model_dump()))


def test_a_card_that_is_measured_anew_keeps_its_evidence(sent, tmp_path, monkeypatch):
    path, images = sent
    out = tmp_path / "card.json"
    card = carded(path, images)
    right = card.report.worst.robust().nonzero().flatten().tolist()
    found = evidence.read(packed(tmp_path / "x.npz", x_adv=images.images[:N]), images)
    lowered = evidence.add(card, fooled(found, right[:2]), "eve")
    cards.write_card(lowered, out)
    monkeypatch.setattr(verification, "verify", lambda *_, **given: carded(path, images, n=given["n"]))
    again = ("verify", path, "--out", out, "--overwrite")
    refused(atent(*again, "--until-decided"), "adversarial images of others", "--n")
    for n in (N, right[0] + 1, N + 10):
        done = atent(*again, "--n", n)
        assert done.returncode == 0, done.stderr
        assert "kept of the card before: adversaries by eve" in done.stdout + done.stderr
        new = cards.read_card(out)
        fallen = [row for row in right[:2] if row < n]
        assert new.report.worst.correct == carded(path, images, n=n).report.worst.correct - len(fallen)
        assert new.report.evidence[0].settings == lowered.report.evidence[0].settings
        cards.write_card(lowered, out)
    changes = ({"weights_sha256": "0" * 64}, {"threat": Threat(norm="Linf", eps=0.5)}, {"data_sha256": "0" * 64})
    for change in changes:  # it is evidence about something else
        cards.write_card(lowered.model_copy(update={"report": lowered.report.model_copy(update=change)}), out)
        assert atent(*again, "--n", N).returncode == 0
        assert cards.read_card(out).report.evidence == ()


def test_the_command_checks_weights_and_images(sent, tmp_path):
    path, images = sent
    card = carded(path, images)
    cards.write_card(card, tmp_path / "card.json")
    before = (tmp_path / "card.json").read_bytes()
    same = packed(tmp_path / "x.npz", x_adv=images.images[:N])
    command = ("adversaries", "add", tmp_path / "card.json", same, "--by", "B", "--weights")
    done = atent(*command, path)
    assert done.returncode == 1, done.stderr
    assert f"of {N} adversarial images of x.npz 0 count" in done.stdout
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other weights")
    refused(atent(*command, tmp_path / "other"), "SHA-256", "constant")
    refused(atent("adversaries", "add", tmp_path / "card.json", same, "--by", " ", "--weights", path), "--by")
    far = packed(tmp_path / "test.npz", x_test=images.images[1:], y_test=images.labels[1:])
    refused(atent(*command, path, "--dataset", f"npz:{far}"), "other images")
    assert (tmp_path / "card.json").read_bytes() == before


def test_the_command_resizes_the_images_as_the_card_says(sent, tmp_path):
    path, images = sent
    resized = shutil.copytree(path, tmp_path / "resized")
    submission = cards.read_submission(path / "card.yaml").model_copy(update={"resize": Resizing(size=10, crop=8)})
    cards.write_submission(submission, resized / "card.yaml")
    network = networks.build_for("digits-cnn", torch.zeros(1, 1, 8, 8), 10)
    weights.save_weights(network, resized / "model.safetensors")
    cards.write_card(carded(resized, images), tmp_path / "card.json")
    test = verification.images_of(submission_folder.read(resized), None, None).test
    same = packed(tmp_path / "x.npz", x_adv=test.images[:N])
    done = atent("adversaries", "add", tmp_path / "card.json", same, "--by", "B", "--weights", resized)
    assert done.returncode == 1, done.stderr
    assert f"of {N} adversarial images of x.npz 0 count" in done.stdout


def test_saved_adversaries_are_the_evidence_of_their_flags(test, tmp_path):
    subject = scoring.Subject(Bright().eval(), test, Threat(norm="Linf", eps=EPS), about())
    out, file = tmp_path / "report.json", tmp_path / "x.npz"
    report = scoring.score(subject, CLEAN, chunk=16, path=out, adversaries=file)
    assert report.worst.correct == 0
    found = checked(test, file)
    assert bool(found.counts.all())
    with np.load(file) as archive:
        assert archive["x_adv"].shape == (N, 1, 4, 4)
        assert archive["y"].tolist() == test.labels.tolist()
    assert scoring.score(subject, CLEAN, chunk=16, path=out, adversaries=file) == report
    file.unlink()
    with pytest.raises(BadInput) as caught:
        scoring.score(subject, CLEAN, chunk=16, path=out, adversaries=file)
    assert caught.value.field == "adversaries"
    assert [name.name for name in tmp_path.iterdir()] == ["report.json"]


def about():
    from atent_ext.evaluation.report import About

    return About(name="bright", model="bright", data="squares")
