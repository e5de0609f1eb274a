"""Networks that are written as programs (.pt2) and read back."""

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion

from atent_ext.core.errors import BadInput
from atent_ext.models import Normalised, programs
from atent_ext.models.networks import SmallCNN
from atent_ext.storage import untrusted_program


class Branching(nn.Module):
    """Its operators depend on the values of the images."""

    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Counting(nn.Module):
    """Every call gives other logits."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.flatten(1) * self.calls


@pytest.fixture(scope="module")
def exported(tmp_path_factory, writes_programs):
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    torch.manual_seed(0)
    network = Normalised(SmallCNN(classes=4, channels=1), [0.5], [0.25]).eval()
    return network, path, programs.export(network, torch.rand(3, 1, 28, 28), path)


def test_an_exported_network_has_the_same_logits_and_gradients(exported):
    network, path, program = exported
    assert (program.shape, program.classes, program.batch, program.notes) == ((1, 28, 28), 4, None, ())
    read = untrusted_program.read(path.read_bytes(), path).network
    for count in (1, 5):
        x = torch.rand(count, 1, 28, 28, requires_grad=True)
        assert torch.equal(read(x), network(x))
        gradients = [torch.autograd.grad(model(x).square().sum(), x)[0] for model in (network, read)]
        assert torch.equal(*gradients)
    assert [parameter.grad for parameter in network.parameters()] == [None] * len(list(network.parameters()))


def test_a_program_says_nothing_about_the_machine_or_the_images(exported):
    path = exported[1]
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        names = [name for name in archive.namelist() if "/data/weights/weight_" not in name]
        text = b"\n".join(archive.read(name) for name in names)
        assert archive.read("archive/data/sample_inputs/model.pt") == b""
    for trace in (
        "stack_trace",
        "site-packages",
        "SmallCNN",
        os.sep + "home",
        os.sep + "root",
        __file__,
        str(Path.cwd()),
    ):
        assert trace.encode() not in text


def test_torch_reads_the_file_as_well(exported):
    network, path, _ = exported
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(torch.export.load(path).module()(x), network(x))


@pytest.mark.usefixtures("writes_programs")
@pytest.mark.parametrize(
    ("network", "what"),
    [(Branching(), "cannot be exported"), (Counting(), "the program's logits differ")],
)
def test_a_network_that_is_no_program_is_refused_with_the_reason(network, what, tmp_path):
    with pytest.raises(BadInput, match=what) as error:
        programs.export(network, torch.rand(3, 2, 2), tmp_path / "m.pt2")
    assert (error.value.code, error.value.field) == ("unsupported", "model")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_program_replaces_a_file_only_if_told(exported, tmp_path):
    path = tmp_path / "m.pt2"
    path.write_bytes(b"precious")
    with pytest.raises(BadInput) as error:
        programs.export(exported[0], torch.rand(2, 1, 28, 28), path)
    assert (error.value.code, error.value.field) == ("exists", "out")
    assert path.read_bytes() == b"precious"
    with pytest.raises(BadInput) as error:
        programs.export(exported[0], torch.rand(2, 1, 28, 28), tmp_path / "m.pt")
    assert (error.value.code, error.value.field) == ("bad-value", "out")


@pytest.mark.usefixtures("writes_programs")
def test_a_network_keeps_its_mode(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.5)).train()
    program = programs.export(network, torch.rand(2, 2, 2), tmp_path / "m.pt2")
    assert network.training
    assert program.random == ()


def test_an_older_torch_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1+cpu"))
    with pytest.raises(BadInput, match=r"2\.8\.1") as error:
        programs.export(Counting(), torch.rand(2, 2, 2), tmp_path / "m.pt2")
    assert (error.value.code, error.value.field) == ("unsupported", "torch")
    assert list(tmp_path.iterdir()) == []
