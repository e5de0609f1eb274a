"""`atent_ext.evaluate`: any network in memory, by the engine of `atent eval`."""

import copy
import json

import numpy as np
import pytest
import torch
from problems import LinearTwoClass, attack_spec, small_net, visible
from pyautoattack import AutoAttack
from torch import nn

import atent_ext
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import engine, scoring
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report

SHAPE = (1, 6, 6)
PGD = Protocol(name="mine", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=3)))


@pytest.fixture(scope="module")
def problem():
    """A network, random images, and its own predictions as labels: clean accuracy is 1."""
    torch.manual_seed(0)
    network = small_net().float().eval()
    images = torch.rand(24, *SHAPE)
    with torch.no_grad():
        return network, images, network(images).argmax(1)


def refused(code, field, *arguments, **options):
    with pytest.raises(BadInput) as error:
        atent_ext.evaluate(*arguments, **{"norm": "Linf", "eps": 0.1, "protocol": PGD} | options)
    assert (error.value.code, error.value.field) == (code, field)
    return str(error.value)


def without_seconds(report):
    plain = report.model_dump(mode="json")
    return plain | {"results": [result | {"seconds": 0} for result in plain["results"]]}


def test_autoattack_is_stock_autoattack_chunk_by_chunk():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    x = torch.rand(24, *SHAPE)
    with torch.no_grad():
        best = network(x).topk(2).values
    x = x[(best[:, 0] - best[:, 1]).argsort()][:12]  # the first chunk is broken at once, the second in part
    y = network(x).argmax(1)
    report = atent_ext.evaluate(network, x, y, norm="Linf", eps=0.03, chunk=6, batch_size=6, speed="plain", seed=5)
    flags = []
    for number, (images, labels) in enumerate(zip(x.split(6), y.split(6), strict=True)):
        attack = AutoAttack(network, norm="Linf", eps=0.03, seed=5 + number, version="standard", device="cpu")
        found, _ = attack.run_standard_evaluation(images, labels, batch_size=6)
        flags.append("".join("01"[int(right)] for right in network(found).argmax(1) == labels))
    assert report.result("autoattack").flags == "".join(flags)
    assert [set(chunk) for chunk in flags] == [{"0"}, {"0", "1"}]
    assert report.accuracy("clean") == 1


def test_it_is_the_engine_of_the_command(problem):
    network, x, y = problem
    by_hand = scoring.score(
        scoring.Subject(network, Split(x, y), Threat(norm="L2", eps=0.3), About(name="a", model="b", data="c")), PGD
    )
    report = atent_ext.evaluate(network, x, y, norm="L2", eps=0.3, protocol=PGD)
    assert [result.flags for result in report.results] == [result.flags for result in by_hand.results]
    assert report.worst_case == by_hand.worst_case < 1


def test_the_accuracy_of_a_linear_network_is_the_closed_form():
    torch.manual_seed(0)
    model, x = LinearTwoClass(SHAPE).float(), torch.rand(40, *SHAPE)
    with torch.no_grad():
        margin = model(x)[:, 1]
    y = (margin > 0).long()
    inside = Split(x.clamp(0.2, 0.8), y)
    with torch.no_grad():
        distance = model(inside.images)[:, 1] * (2 * y - 1) / model.w.abs().sum()
    report = atent_ext.evaluate(model, inside.images, y, norm="Linf", eps=0.05, protocol="quick")
    assert report.flags("PGD-20").equal(distance > 0.05)
    assert report.flags("clean").equal(distance > 0)


def test_arrays_are_taken_as_tensors_are(problem):
    network, x, y = problem
    options = {"norm": "Linf", "eps": 0.05, "protocol": PGD, "n": 10}
    arrays = atent_ext.evaluate(network, x.numpy(), y.numpy().astype(np.int32), **options)
    assert without_seconds(arrays) == without_seconds(atent_ext.evaluate(network, x, y, **options))
    assert (arrays.n, arrays.total, arrays.name) == (10, 24, "SmallNet")


def test_the_model_comes_back_as_it_was_found(problem):
    _, x, y = problem
    network = nn.Sequential(small_net().float(), nn.Dropout(0.5)).train()
    network[0].eval()
    first, *others = network.parameters()
    first.requires_grad_(False)
    others[0].grad = torch.ones_like(others[0])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    atent_ext.evaluate(network, x, y, norm="Linf", eps=0.05, protocol=PGD)
    with pytest.raises(BadInput):  # after an exception, too
        atent_ext.evaluate(network, x, y + 100, norm="Linf", eps=0.05, protocol=PGD)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == [False] + [True] * len(others)
    assert others[0].grad.equal(torch.ones_like(others[0]))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_an_interrupted_call_goes_on_to_the_same_report(problem, tmp_path, monkeypatch):
    network, x, y = problem
    options = {"norm": "Linf", "eps": 0.05, "protocol": PGD, "chunk": 6, "out": tmp_path / "r.json"}
    whole = atent_ext.evaluate(network, x, y, **options | {"out": tmp_path / "whole.json"})
    real, scored = engine.score, []

    def stopping(*arguments):
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(arguments[2].number)
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            atent_ext.evaluate(network, x, y, **options)
    assert not (tmp_path / "r.json").exists()
    heard = []
    report = atent_ext.evaluate(network, x, y, **options, progress=heard.append)
    assert (heard[0].done, heard[-1].done, heard[-1].chunks) == (2, 4, 4)
    assert without_seconds(report) == without_seconds(whole) == without_seconds(Report.load(tmp_path / "r.json"))
    assert {path.name for path in visible(tmp_path)} == {"r.json", "whole.json"}


@pytest.mark.parametrize("change", ["weights", "images", "labels", "seed", "protocol"])
def test_an_out_of_another_evaluation_is_refused(problem, tmp_path, monkeypatch, change):
    network, x, y = problem
    options = {"norm": "Linf", "eps": 0.05, "protocol": PGD, "chunk": 6, "out": tmp_path / "r.json"}
    stop_after_one_chunk(monkeypatch, lambda: atent_ext.evaluate(network, x, y, **options))
    if change == "weights":
        network = copy.deepcopy(network)
        next(network.parameters()).data[0] += 0.1
    elif change == "images":
        x = x.flip(0)
    elif change == "labels":
        y = y.roll(1)
    elif change == "seed":
        options["seed"] = 1
    else:
        options["protocol"] = PGD.model_copy(update={"attacks": (attack_spec("clean"), attack_spec("pgd", steps=4))})
    with pytest.raises(BadInput, match="holds chunks scored with"):
        atent_ext.evaluate(network, x, y, **options)


def test_a_finished_out_is_replaced_only_when_asked(problem, tmp_path):
    network, x, y = problem
    options = {"norm": "Linf", "protocol": PGD, "out": tmp_path / "r.json"}
    atent_ext.evaluate(network, x, y, eps=0.05, **options)
    message = refused("other-content", "threat.eps", network, x, y, **options)
    assert "threat.eps = 0.05, not 0.1" in message
    assert refused("other-content", "data_sha256", network, x.flip(0), y, eps=0.05, **options)
    report = atent_ext.evaluate(network, x, y, eps=0.1, overwrite=True, **options)
    assert Report.load(tmp_path / "r.json") == report


def test_a_protocol_file_and_an_array_of_any_strides(problem, tmp_path):
    network, x, y = problem
    (tmp_path / "mine.yaml").write_text("{name: mine, description: '', attacks: [{attack: clean}]}")
    images = np.flip(x.numpy(), 3)
    report = atent_ext.evaluate(network, images, y, norm="Linf", eps=0.1, protocol=tmp_path / "mine.yaml")
    assert report.protocol == "mine"
    assert report.accuracy("clean") == float((network(x.flip(3)).argmax(1) == y).double().mean())


def test_what_cannot_be_scored_is_refused_by_name(problem):
    network, x, y = problem
    refused("bad-type", "model", network.forward, x, y)
    refused("bad-value", "batch_size", network, x, y, batch_size=0)
    refused("bad-value", "device", network, x, y, device="nowhere")
    refused("bad-type", "labels", network, x, np.array(["a"] * len(y), dtype=object))


def test_a_report_on_disk_is_the_one_returned(problem, tmp_path):
    network, x, y = problem
    report = atent_ext.evaluate(
        network, x, y, norm="Linf", eps=0.05, protocol=PGD, out=tmp_path / "r.json", name="my net"
    )
    assert Report.load(tmp_path / "r.json") == report
    assert json.loads((tmp_path / "r.json").read_text())["name"] == "my net"


def stop_after_one_chunk(monkeypatch, call):
    real, scored = engine.score, []

    def stopping(*arguments):
        if scored:
            raise KeyboardInterrupt
        scored.append(real(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(engine, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            call()


# ---- what is refused


def test_images_outside_the_unit_box(problem):
    network, x, y = problem
    assert "divide them by 255" in refused("bad-value", "images", network, 255 * x, y)
    assert "look normalised" in refused("bad-value", "images", network, (x - 0.5) / 0.25, y)
    for kind in (torch.uint8, torch.int64):
        assert "divide them by 255" in refused("bad-type", "images", network, (255 * x).to(kind), y)
    assert "NaN" in refused("bad-value", "images", network, x * torch.nan, y)
    refused("bad-type", "images", network, [[0.5]], y)
    refused("bad-shape", "images", network, x[:0], y[:0])


def test_images_with_the_channels_last():
    torch.manual_seed(0)
    x = torch.rand(24, 3, 8, 8)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()  # it takes either order
    last = x.permute(0, 2, 3, 1)
    with torch.no_grad():
        labels = {network: network(x).argmax(1) for network in (convolution, flat)}
        own = flat(last.flatten(1)).argmax(1)
    remedy = "images.permute(0, 3, 1, 2)"
    message = refused("bad-shape", "images", convolution, last, labels[convolution])
    assert remedy in message
    assert "(N, 8, 8, 3), which is (N, H, W, C), 8×8 pixels of 3 channels" in message
    assert remedy in refused("conflict", "images", flat, last, labels[flat])
    clean = Protocol(name="c", description="", attacks=(attack_spec("clean"),))
    assert atent_ext.evaluate(flat, last, own, norm="Linf", eps=0.1, protocol=clean).accuracy("clean") == 1


def test_images_of_a_shape_that_the_network_does_not_take(problem):
    network, x, y = problem
    message = refused("bad-shape", "images", network, x[:, :, :-1], y)
    assert "the network does not take images (N, 1, 5, 6)" in message


def test_the_logits_may_be_named_by_position(problem):
    network, x, y = problem

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return -self.network(x), self.network(x)

    clean = Protocol(name="c", description="", attacks=(attack_spec("clean"),))
    report = atent_ext.evaluate(Two(), x, y, norm="Linf", eps=0.1, protocol=clean, output=1)
    assert report.accuracy("clean") == 1
    refused("bad-type", "output", Two(), x, y, output=True)


def test_a_network_that_asserts_one_order_of_the_axes(problem):
    class Last(nn.Module):
        def forward(self, x):
            assert x.shape[3] == 3
            return x.mean((1, 2))

    x = torch.rand(6, 8, 8, 3)
    clean = Protocol(name="c", description="", attacks=(attack_spec("clean"),))
    how = {"norm": "Linf", "eps": 0.1, "protocol": clean}
    assert atent_ext.evaluate(Last(), x, x.mean((1, 2)).argmax(1), **how).accuracy("clean") == 1


def test_labels_that_are_one_hot(problem):
    network, x, y = problem
    rows = nn.functional.one_hot(y, 10)
    assert "labels.argmax(1)" in refused("bad-shape", "labels", network, x, rows)
    assert "labels.argmax(1)" in refused("bad-type", "labels", network, x, rows.float())


def test_labels_of_another_type_range_or_length(problem):
    network, x, y = problem
    refused("bad-type", "labels", network, x, y.float())
    refused("bad-shape", "labels", network, x, y[:-1])
    refused("bad-value", "labels", network, x, y - 1)
    refused("bad-value", "labels", network, x, y + 100)


def test_an_eps_that_looks_like_0_to_255(problem):
    network, x, y = problem
    assert "write 8/255" in refused("bad-value", "eps", network, x, y, eps=8)
    assert "write 128/255" in refused("bad-value", "eps", network, x, y, eps=128, norm="L2")
    refused("bad-value", "eps", network, x, y, eps=-0.1)
    refused("bad-shape", "eps", network, x, y, eps=torch.full((len(x),), 0.1))
    refused("unknown-name", "norm", network, x, y, norm="L3")


def test_a_network_that_returns_no_logits(problem):
    network, x, y = problem

    class Several(nn.Module):
        def forward(self, x):
            return network(x), x.flatten(1)

    assert "'0' (2, 4), '1' (2, 36)" in refused("conflict", "output", Several(), x, y)
    refused("bad-shape", "logits", nn.Flatten(0), x, y)


def test_classes_are_checked_against_the_logits(problem):
    network, x, y = problem
    count = network(x[:1]).shape[1]
    report = atent_ext.evaluate(network, x, y, norm="Linf", eps=0.05, protocol=PGD, classes=count, n=4)
    assert report.n == 4
    refused("conflict", "classes", network, x, y, classes=count + 1)
    refused("conflict", "classes", network, x, y, classes=["cat", "dog", *["more"] * count])
