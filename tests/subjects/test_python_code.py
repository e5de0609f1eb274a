"""Networks of Python code: the user's own, timm's and torchvision's."""

import importlib.util
import re
import sys

import pytest
import torch
from commands import atent, refused
from strangers import digits_cnn

from atent_ext import subjects
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.models import weights

OWN = """\
from torch import nn
from beside import hidden

class Net(nn.Sequential):
    def __init__(self, width=hidden, name="plain"):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

def fails():
    raise RuntimeError("no luck")

def text():
    return "a network"

number = 3
"""
DATA = {"dataset": "digits", "eps": 0.1}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "beside.py").write_text("hidden = 7\n")
    yield tmp_path / "own.py"
    sys.modules.pop("beside", None)
    sys.modules.pop("own", None)


def widths(subject):
    return [tuple(parameter.shape) for parameter in subject.model.parameters()]


def test_the_users_own_file_makes_the_network(file):
    path = list(sys.path)
    subject = subjects.load(f"{file}:Net", **DATA)
    assert widths(subject) == [(7, 64), (7,), (10, 7), (10,)]
    assert widths(subjects.load(f"{file}:Net", **DATA, arguments={"width": 5}))[0] == (5, 64)
    about = subject.about
    assert (about.name, about.model.partition(", code ")[0], about.weights_sha256) == ("own-Net", "own.py:Net", None)
    assert sys.path == path
    assert not subject.model.training


def test_a_module_makes_the_network(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    subject = subjects.load("own:Net", **DATA)
    assert (widths(subject)[0], subject.about.model.partition(", code ")[0]) == ((7, 64), "own:Net")


def test_weights_are_loaded_into_code_and_code_takes_a_weights_file(file, tmp_path):
    network = subjects.load(f"{file}:Net", **DATA).model
    with torch.no_grad():
        network[1].weight.fill_(0.25)
    weights.save_weights(network, tmp_path / "w.safetensors")
    first = subjects.load(f"{file}:Net", **DATA, weights=tmp_path / "w.safetensors")
    second = subjects.load(tmp_path / "w.safetensors", model=f"{file}:Net", **DATA)
    assert first.about.weights_sha256 == second.about.weights_sha256 is not None
    assert second.about.model == first.about.model
    assert re.fullmatch(r"own\.py:Net, code [0-9a-f]{16}", second.about.model)
    file.write_text(file.read_text() + "\n# another one\n")
    changed = subjects.load(f"{file}:Net", **DATA, weights=tmp_path / "w.safetensors")
    assert changed.about.model != first.about.model  # a report of the other code is not returned for it
    assert (bool(changed.about.weights_notes), "given" in str(subjects.load(f"{file}:Net", **DATA).about)) == (
        False,
        True,
    )
    for subject in (first, second):
        assert bool((subject.model[1].weight == 0.25).all())


def test_libraries_make_networks_for_the_classes_and_channels():
    images = torch.zeros(1, 3, 32, 32)
    network = subjects.build("torchvision:mobilenet_v3_small", {}, images, 4)
    assert network.classifier[-1].out_features == 4
    if importlib.util.find_spec("timm"):
        network = subjects.build("timm:resnet10t", {}, torch.zeros(1, 1, 32, 32), 4)
        assert network.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize(
    ("reference", "arguments", "code", "field"),
    [
        ("{}:Net", {"dataset": "digits"}, "missing", "eps"),
        ("{}:Net", {"eps": 0.1}, "missing", "dataset"),
        ("{}:Net", {**DATA, "model": "digits-cnn"}, "unused", "model"),
        ("{}:Net", {**DATA, "held_out": True}, "unused", "held_out"),
        ("{}:Net", {**DATA, "arguments": {"depth": 3}}, "bad-value", "model"),
        ("{}:Nett", DATA, "unknown-name", "model"),
        ("{}:number", DATA, "unknown-name", "model"),
        ("{}:fails", DATA, "bad-value", "model"),
        ("{}:text", DATA, "bad-type", "model"),
        ("absent.py:Net", DATA, "missing", "model"),
        ("no_such_module:Net", DATA, "unreadable", "model"),
        ("torchvision:resnet19", DATA, "unknown-name", "model"),
        ("digits-linf-pgd-at", {**DATA, "weights": "w.pth"}, "unused", "weights"),
        ("w.pth", {"dataset": "digits", "arguments": {"width": 2}}, "unused", "model_arg"),
    ],
)
def test_code_that_makes_no_network_is_refused(file, reference, arguments, code, field):
    with pytest.raises(BadInput) as error:
        subjects.load(reference.format(file), **arguments)
    assert (error.value.code, error.value.field) == (code, field)


@pytest.mark.usefixtures("writes_programs")
def test_the_commands_take_code(file, tmp_path):
    weights.save_weights(subjects.load(f"{file}:Net", **DATA).model, tmp_path / "w.safetensors")
    source = (f"{file}:Net", "--weights", tmp_path / "w.safetensors", "--model-arg", "width=7", "--dataset", "digits")
    scored = ("--eps", "0.1", "--protocol", "clean", "--n", "8", "--out", tmp_path / "r.json")
    done = atent("eval", *source, *scored)
    assert done.returncode == 0, done.stderr
    assert Report.load(tmp_path / "r.json").model.startswith("own.py:Net(width=7), code ")
    done = atent("export", *source, "--to", "pt2", "--out", tmp_path / "m.pt2")
    assert done.returncode == 0, done.stderr
    x = datasets.load("digits").test.images[:5]
    program = subjects.load(tmp_path / "m.pt2", **DATA).model
    assert torch.equal(program(x), subjects.load(f"{file}:Net", **DATA, weights=tmp_path / "w.safetensors").model(x))
    refused(atent("eval", *source, *scored, "--model-arg", "width"), "--model-arg 'width'", "key=value")


def test_verify_never_runs_code(file, tmp_path):
    folder = tmp_path / "sent"
    folder.mkdir()
    weights.save_weights(digits_cnn(), folder / "model.safetensors")
    card = "{name: a, authors: A, license: MIT, dataset: digits, threat: {norm: Linf, eps: 0.1}, architecture: "
    (folder / "card.yaml").write_text(card + f'{{name: "{file}:Net"}}}}')
    sys.modules.pop("atent_source_own", None)
    refused(atent("verify", folder), "unknown model")
    assert "atent_source_own" not in sys.modules
