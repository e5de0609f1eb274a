"""What stands around a network: the Python object, code, and the exported program give the same flags."""

import sys

import numpy as np
import pytest
import torch
from commands import atent, refused
from torch import nn

import atent_ext
from atent_ext import subjects
from atent_ext.core import around
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.evaluation import scoring
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.models import programs

N, EPS = 16, 0.02
QUICK = {"protocol": "quick", "seed": 0, "speed": "plain"}
CODE = """\
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind="plain", side=8, dtype="float32"):
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 16), nn.ReLU())
        self.last = nn.Linear(16, 1 if kind == "binary" else 10)
        self.to(getattr(torch, dtype))

    def forward(self, x):
        features = self.layers(x)
        logits = 5 * self.last(features)
        if self.kind == "both":
            return {"features": features, "scores": logits}
        return (logits, features[:, :, None]) if self.kind == "tuple" else logits
"""
CASES = {
    "a tuple": ({"kind": "tuple"}, {}, "the network returns 2 results; '0' is read as logits"),
    "a named output": ({"kind": "both"}, {"output": "scores"}, "the network returns 2 results; 'scores' is read as"),
    "one logit": ({"kind": "binary"}, {}, "the network has one logit, z; it is read as the two logits (0, z)"),
    "float64": ({"dtype": "float64"}, {}, "the network computes in float64; its images are attacked in float32"),
    "bfloat16": ({"dtype": "bfloat16"}, {}, "the network computes in bfloat16, which rounds small perturbations away"),
    "a normalisation": ({}, {"normalisation": "{mean: [0.5], std: [0.25]}"}, "speed: plain"),
    "resized inside": ({"side": 12}, {"resize_inside": "12"}, "the network gets images resized to 12 (shorter side, "),
    "resized": ({"side": 6}, {"resize": "6"}, "speed: plain"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "surrounded.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("atent_source_surrounded", None)


def scored(subject):
    return scoring.score(subject, load_protocol("quick"), n=N, seed=0, speed="plain")


@pytest.mark.usefixtures("writes_programs")
@pytest.mark.parametrize("name", CASES)
def test_every_route_gives_the_same_flags(name, file, tmp_path):
    arguments, options, note = CASES[name]
    binary = name == "one logit"
    eps = 0.2 if binary else EPS
    given = {"dataset": f"npz:{tmp_path / 'own.npz'}", "eps": eps, "classes": 2 if binary else 10}
    images = datasets.load("digits").test.take(N).images
    code = {"reference": f"{file}:Net", "arguments": arguments, "around": around.parse(**options)}
    labels = torch.zeros(N, dtype=torch.long)
    for _ in range(2):  # the second time with the network's own predictions as labels
        np.savez(tmp_path / "own.npz", x_test=images.numpy(), y_test=labels.numpy())
        of_code = subjects.load(**code, **given)
        with torch.no_grad():
            labels = of_code.model(of_code.test.images).argmax(1)
    programs.export(of_code.model, of_code.test.images, tmp_path / "m.pt2")
    of_program = subjects.load(tmp_path / "m.pt2", **given, around=around.parse(resize=options.get("resize")))
    network = sys.modules["atent_source_surrounded"].Net(**arguments)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    own = atent_ext.evaluate(network, images, labels, norm="Linf", eps=eps, **options, **QUICK)
    reports = [own, scored(of_code), scored(of_program)]
    flags = [[result.flags for result in report.results] for report in reports]
    assert flags[0] == flags[1] == flags[2]
    assert own.results[0].correct == N > own.results[-1].correct > 0
    for report in reports[:2]:
        assert any(line.startswith(note) for line in report.prepared)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_report_says_what_stands_around_the_network(file):
    source = {"reference": f"{file}:Net", "dataset": "digits", "eps": EPS}
    plain = subjects.load(**source).about
    inside = subjects.load(**source, arguments={"side": 9}, around=around.parse(resize_inside="9"))
    first = subjects.load(**source, arguments={"side": 9}, around=around.parse(resize="9"))
    named = subjects.load(
        **source, arguments={"kind": "both"}, around=around.parse(output="scores", mean="0.5", std="1")
    )
    assert (plain.data, inside.about.data) == ("digits", "digits")
    assert inside.about.model.endswith(", images resized to 9 (shorter side, bilinear) by the network")
    assert first.about.data == "digits, resized to 9 (shorter side, bilinear)"
    assert first.notes == ("test images are resized to 9 (shorter side, bilinear) first, and eps is of those",)
    assert ", output 'scores', images normalised by mean (0.5,) and std (1.0,)" in named.about.model
    assert inside.test.images.shape[2:] == (8, 8)
    assert first.test.images.shape[2:] == (9, 9)


def test_the_gradient_passes_through_a_resizing_of_the_network():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6 * 6, 3)).eval()
    images, labels = torch.rand(8, 1, 12, 12), torch.zeros(8).long()
    with torch.no_grad():
        labels = network(torch.nn.functional.interpolate(images, (6, 6), mode="bilinear", antialias=True)).argmax(1)
    report = atent_ext.evaluate(network, images, labels, norm="Linf", eps=0.2, resize_inside=6, **QUICK)
    assert report.results[0].correct == 8 > report.worst.correct


@pytest.mark.parametrize("shape", [(12,), (2, 30)])
def test_inputs_of_any_rank_are_attacked(shape):
    torch.manual_seed(0)
    size = int(np.prod(shape))
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, 4)).double().eval()
    x = torch.rand(12, *shape)
    with torch.no_grad():
        labels = network(x.double()).argmax(1)
    scale = str({"mean": [0.1] * shape[0], "std": [1.0] * shape[0]})
    report = atent_ext.evaluate(network, x, labels, norm="Linf", eps=0.2, **QUICK)
    assert report.results[0].correct == 12 > report.worst.correct
    shifted = atent_ext.evaluate(network, x, labels, norm="Linf", eps=0.02, normalisation=scale, **QUICK)
    with torch.no_grad():
        right = int((network(x.double() - 0.1).argmax(1) == labels).sum())
    assert shifted.results[0].correct == right
    numbers = {"mean": [0.1] * shape[0], "std": [1.0] * shape[0]}
    same = atent_ext.evaluate(network, x, labels, norm="Linf", eps=0.02, normalisation=numbers, **QUICK)
    assert (same.model, same.results[0].correct) == (shifted.model, right)
    for wrong in ({"mean": [0.1]}, {"mean": 1, "std": "x"}, [0.1]):
        with pytest.raises(BadInput) as error:
            atent_ext.evaluate(network, x, labels, norm="Linf", eps=0.02, normalisation=wrong, **QUICK)
        assert (error.value.code, error.value.field) == ("bad-value", "normalisation")
    with pytest.raises(BadInput) as error:
        atent_ext.evaluate(network, x, labels, norm="Linf", eps=0.02, resize=8, **QUICK)
    assert (error.value.code, error.value.field) == ("unsupported", "resize")


def test_a_network_of_two_results_is_named_in_the_command(file, tmp_path):
    source = ("eval", f"{file}:Net", "--model-arg", "kind=both", "--dataset", "digits", "--eps", EPS)
    setting = ("--protocol", "clean", "--n", "8", "--out", tmp_path / "r.json")
    refused(atent(*source, *setting), "'features' (2, 16), 'scores' (2, 10)", "--output")
    refused(atent(*source, *setting, "--output", "score"), "no 'score'", "features, scores")
    done = atent(*source, *setting, "--output", "scores", "--normalisation", "mnist")
    assert done.returncode == 0, done.stderr
    assert "note: the network returns 2 results; 'scores' is read as logits" in done.stdout
    report = Report.load(tmp_path / "r.json")
    assert "mean (0.1307,)" in report.model
    assert "the network returns 2 results; 'scores' is read as logits" in report.prepared
