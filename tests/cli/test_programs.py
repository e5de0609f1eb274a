"""Exported programs in the commands: export, eval, and a submission that holds model.pt2 instead of an architecture."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import atent, refused
from programs import Draft, node
from strangers import CARD, digits_cnn

from atent_ext import subjects
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.report import Report
from atent_ext.models import weights
from atent_ext.submissions import cards
from atent_ext.submissions import folder as submission_folder

DATA = ("--dataset", "digits", "--eps", "0.1")
SCORED = ("--protocol", "quick", "--n", "16", "--speed", "plain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, writes_programs):
    """A weights file of digits-cnn, and the program that `atent export` made of it."""
    folder = tmp_path_factory.mktemp("programs")
    weights.save_weights(digits_cnn(), folder / "weights.safetensors")
    source = (folder / "weights.safetensors", "--model", "digits-cnn", "--dataset", "digits")
    done = atent("export", *source, "--to", "pt2", "--out", folder / "model.pt2")
    assert done.returncode == 0, done.stderr
    assert str(folder / "model.pt2") in done.stdout.replace("\n", "")
    return folder


def linear(count=10, shape=(1, 8, 8), **options):
    """The bytes of a program for digits: one linear layer."""
    rng = np.random.default_rng(0)
    flat = node("aten.flatten.using_ints", "%x", 1, out="f")
    weights = {"w": rng.normal(size=(count, 64)), "b": np.zeros(count)}
    return Draft([flat, node("linear", "%f", "%w", "%b")], weights, shape=shape, **options).content()


def test_a_program_is_scored_as_the_network_that_it_was(folder, tmp_path):
    for source, out in (
        ((folder / "model.pt2",), "program"),
        ((folder / "weights.safetensors", "--model", "digits-cnn"), "weights"),
    ):
        done = atent("eval", *source, *DATA, *SCORED, "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
    program, plain = Report.load(tmp_path / "program"), Report.load(tmp_path / "weights")
    assert [result.flags for result in program.results] == [result.flags for result in plain.results]
    assert (program.model, program.name) == ("exported-program", "model")
    assert program.weights_sha256 == hashlib.sha256((folder / "model.pt2").read_bytes()).hexdigest()


def test_what_is_to_be_said_of_a_program_is_in_the_report(tmp_path):
    (tmp_path / "m.pt2").write_bytes(linear(batch={"as_int": 6}))
    done = atent("eval", tmp_path / "m.pt2", *DATA, *SCORED, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    note = "the program is for 6 images at once: others are scored in slices, filled up with zeros"
    assert Report.load(tmp_path / "out").prepared[0] == note
    assert note in done.stdout


@pytest.mark.parametrize(
    ("content", "arguments", "code", "field"),
    [
        (linear(), {"dataset": "digits"}, "missing", "eps"),
        (linear(), {"eps": 0.1}, "missing", "dataset"),
        (linear(), {"model": "digits-cnn", "dataset": "digits", "eps": 0.1}, "unused", "model"),
        (linear(shape=(64,)), {"dataset": "digits", "eps": 0.1}, "bad-shape", "dataset"),
        (linear(count=9), {"dataset": "digits", "eps": 0.1}, "bad-shape", "dataset"),
        (b"PK", {"dataset": "digits", "eps": 0.1}, "unreadable", "program"),
    ],
)
def test_a_program_that_does_not_fit_is_refused(tmp_path, content, arguments, code, field):
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(BadInput) as error:
        subjects.load(tmp_path / "m.pt2", **arguments)
    assert (error.value.code, error.value.field) == (code, field)


def test_the_users_own_program_may_be_a_link(folder, tmp_path):
    (tmp_path / "m.pt2").symlink_to(folder / "model.pt2")
    assert subjects.load(tmp_path / "m.pt2", dataset="digits", eps=0.1).about.name == "m"


def test_exports_that_are_refused(folder, tmp_path):
    source = (folder / "weights.safetensors", "--model", "digits-cnn", "--dataset", "digits")
    refused(atent("export", *source, "--to", "pt2", "--out", folder / "model.pt2"), "exists", "--overwrite")
    refused(atent("export", *source, "--to", "pt2", "--out", tmp_path / "m.pth"), "does not end in .pt2")
    refused(atent("export", *source, "--to", "pt2", "--out", tmp_path / "m.pt2", "--name", "x"), "--name is x")
    refused(atent("export", *source, "--to", "onnx", "--out", tmp_path / "m.pt2"), "onnx")
    assert atent("export", folder / "model.pt2", "--dataset", "digits", "--eps", 0.1, "--out", tmp_path).returncode == 2
    given = ("--model-arg", "width=2", "--out", tmp_path)
    refused(atent("export", *source, "--to", "robustbench", *given), "--model-arg is", "--to pt2")


# ---- submissions


def sent(folder, content, file="model.pt2", **card):
    folder.mkdir()
    (folder / file).write_bytes(content)
    fields = {name: value for name, value in (CARD | card).items() if value is not None}
    (folder / "card.yaml").write_text(yaml.safe_dump(fields))
    return folder


def refusal(folder):
    with pytest.raises(BadInput) as error:
        submission_folder.read(folder)
    return error.value.code, error.value.field


def test_an_exported_network_is_a_submission(folder, tmp_path):
    opened = submission_folder.read(sent(tmp_path / "s", (folder / "model.pt2").read_bytes(), architecture=None))
    assert opened.parameters == sum(parameter.numel() for parameter in digits_cnn().parameters())
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(opened.network(x), digits_cnn()(x))


def test_a_submission_of_a_program_is_verified_to_a_card(tmp_path):
    place = sent(tmp_path / "s", linear(), architecture=None)
    done = atent("verify", place, "--n", "8", "--protocol", "clean", "--speed", "plain")
    assert done.returncode == 0, done.stderr
    card = cards.read_card(tmp_path / "s.card.json")
    assert card.submission.architecture.name == "exported-program"
    assert card.weights["file"] == "model.pt2"
    assert card.weights["parameters"] == 650
    assert card.report.model == "exported-program"


def test_a_key_beside_a_program_is_refused(tmp_path):
    assert refusal(sent(tmp_path / "s", linear(), architecture=None, weights_key="ema")) == ("unused", "weights_key")


def test_a_program_on_data_of_its_own_is_verified(tmp_path):
    rng = np.random.default_rng(0)
    parts = {f"x_{part}": rng.integers(256, size=(20, 1, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(20) % 10 for part in ("train", "test")}
    np.savez(tmp_path / "own.npz", **parts, **labels)
    place = sent(tmp_path / "s", linear(), architecture=None, dataset="own-digits")
    setting = ("--dataset", f"npz:{tmp_path / 'own.npz'}", "--protocol", "clean", "--n", "8", "--speed", "plain")
    done = atent("verify", place, *setting)
    assert done.returncode == 0, done.stderr
    card = cards.read_card(tmp_path / "s.card.json")
    assert card.report.data == "own-digits (own.npz)"
    assert len(card.report.data_sha256) == 64
    assert str(tmp_path) not in (tmp_path / "s.card.json").read_text()


def test_a_normalisation_of_the_card_stands_before_a_program(tmp_path):
    normalisation = {"mean": [0.5], "std": [0.25]}
    plain = submission_folder.read(sent(tmp_path / "a", linear(), architecture=None)).network
    network = submission_folder.read(
        sent(tmp_path / "b", linear(), architecture=None, normalisation=normalisation)
    ).network
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(network(x), plain((x - 0.5) / 0.25))


def test_what_is_to_be_said_of_a_program_is_on_the_card(tmp_path):
    opened = submission_folder.read(sent(tmp_path / "s", linear(batch={"as_int": 6}), architecture=None))
    assert opened.notes == ("the program is for 6 images at once: others are scored in slices, filled up with zeros",)


def test_an_architecture_is_named_exactly_where_there_is_no_program(tmp_path):
    assert refusal(sent(tmp_path / "a", linear())) == ("conflict", "architecture")
    weights.save_weights(digits_cnn(), tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    missing = sent(tmp_path / "b", content, "model.safetensors", architecture=None)
    assert refusal(missing) == ("missing", "architecture")
    both = sent(tmp_path / "c", linear(), architecture=None)
    (both / "model.safetensors").write_bytes(content)
    assert refusal(both) == ("conflict", "weights")


def test_a_program_of_other_images_or_behind_a_link_is_refused(tmp_path):
    assert refusal(sent(tmp_path / "a", linear(shape=(64,)), architecture=None)) == ("bad-shape", "dataset")
    linked = sent(tmp_path / "b", linear(), architecture=None)
    (linked / "model.pt2").rename(tmp_path / "outside")
    (linked / "model.pt2").symlink_to(tmp_path / "outside")
    assert refusal(linked) == ("unsafe", "folder")
    assert refusal(sent(tmp_path / "c", b"PK\x03\x04", architecture=None)) == ("unreadable", "program")
    assert Path(tmp_path / "outside").is_file()
