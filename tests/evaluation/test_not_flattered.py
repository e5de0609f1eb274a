"""Networks whose true figure is known, and which an attack, a report or a proof once took for robust."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import atent_ext
from atent_ext import L2ATENTAttack, LinfATENTAttack
from atent_ext.attacks.accuracy import elected, votes
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.uphill import GradientVanished
from atent_ext.certification.intervals import certified_linf
from atent_ext.certification.smoothing import Smoothing, certify
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import LINF
from atent_ext.core.outputs import answers
from atent_ext.evaluation import Protocol


def prototypes(classes, noise=0.3, count=40):
    """Prototypes (classes, 1, 8, 8), noisy images of them, and labels."""
    generator = torch.Generator().manual_seed(0)
    centres = (torch.rand(classes, 1, 8, 8, generator=generator) > 0.5).float() * 0.4 + 0.3
    labels = torch.arange(count) % classes
    return centres, (centres[labels] + noise * torch.randn(count, 1, 8, 8, generator=generator)).clamp(0, 1), labels


def nearest(centres, scale=1.0):
    """The linear network that finds the nearest prototype."""
    layer = nn.Linear(64, len(centres))
    with torch.no_grad():
        layer.weight.copy_(scale * centres.flatten(1))
        layer.bias.copy_(-scale * centres.flatten(1).square().sum(1) / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def own(*attacks):
    return Protocol(name="own", description="own", attacks=attacks)


# ---- two classes


@pytest.mark.parametrize("scale", [1.0, 12.0, 50.0, 1e4])
def test_two_classes_are_attacked_as_well_at_every_scale(scale):
    centres, x, y = prototypes(2)
    network = nearest(centres, scale)
    gap = (centres[1] - centres[0]).sign()[None] * torch.where(y == 0, 1, -1)[:, None, None, None]
    exact = int((network((x + 0.2 * gap).clamp(0, 1)).argmax(1) == y).sum())  # the worst point of a linear network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientVanished)
        found = LinfATENTAttack(network, eps=0.2, generator=torch.Generator().manual_seed(0)).perturb(x, y)
        in_l2 = L2ATENTAttack(network, eps=1.3, generator=torch.Generator().manual_seed(0)).perturb(x, y)
    assert int((network(found).argmax(1) == y).sum()) == exact == 10
    assert int((network(in_l2).argmax(1) == y).sum()) == 7


# ---- NaN


class Failing(nn.Module):
    """Right on the images, and NaN for the first class everywhere else."""

    def __init__(self, network, images):
        super().__init__()
        self.network = network
        self.register_buffer("images", images.flatten(1))

    def forward(self, x):
        logits = self.network(x)
        away = (x.flatten(1)[:, None] - self.images).abs().amax(2).amin(1) > 1e-4
        return torch.where(away[:, None] & (torch.arange(logits.shape[1]) == 0), torch.nan, logits)


def test_an_answer_that_is_not_a_number_is_no_right_answer():
    logits = torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [0.0, torch.nan]])
    assert answers(logits).tolist() == [1, -1, -1]
    centres, x, _ = prototypes(4)
    network = Failing(nearest(centres), x).eval()
    y = network(x).argmax(1)
    counts = votes(network, x + 0.01, draws=3)
    assert int(counts.sum()) == 0
    assert set(elected(counts).tolist()) == {-1}
    with pytest.raises(BadInput) as error:
        atent_ext.evaluate(network, x, y, norm="Linf", eps=0.05, protocol=own({"attack": "square", "queries": 20}))
    assert error.value.code == "broken-model"


# ---- wide boxes


@pytest.mark.parametrize("width", [1.0, 255.0, 4095.0, 65535.0])
def test_the_corners_of_the_ball_count_in_wide_boxes(width):
    x = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * width
    corners = (x + 0.1 * width * torch.randn(x.shape).sign()).clamp(0, width)
    assert bool(allowed(LINF, 0.1 * width, x, corners, (0.0, width)).all())
    assert not bool(allowed(LINF, 0.0999 * width, x, corners, (0.0, width)).any())


def test_coarse_values_are_no_licence_for_fine_ones():
    box = (torch.zeros(2), torch.tensor([1.0, 65535.0]))
    x = torch.tensor([[0.5, 60000.0], [0.5, 0.5]])
    near, far = x + torch.tensor([0.0005, 0.0]), x + torch.tensor([0.03, 0.0])
    assert allowed(LINF, 0.001, x, near, box).tolist() == [True, True]
    assert allowed(LINF, 0.001, x, far, box).tolist() == [False, False]
    outside = torch.tensor([[1.02, 60000.0]])
    assert not bool(allowed(LINF, 1.0, x[:1], outside, box))


# ---- a network that works in place


class Halving(nn.Module):
    def __init__(self, network, inplace):
        super().__init__()
        self.network, self.inplace = network, inplace

    def forward(self, x):
        x = x.mul_(0.5) if self.inplace else x * 0.5
        return self.network(x * 2)


@pytest.mark.parametrize("protocol", ["clean", "quick", "fast", "autoattack", own({"attack": "square", "queries": 30})])
def test_a_network_that_changes_its_input_is_scored_as_its_twin_and_the_images_stay(protocol):
    centres, x, y = prototypes(4)
    mine = x.clone()
    how = {"norm": "Linf", "eps": 0.1, "protocol": protocol}
    reports = [atent_ext.evaluate(Halving(nearest(centres), flag), mine, y, **how) for flag in (False, True)]
    assert [one.flags for one in reports[0].results] == [one.flags for one in reports[1].results]
    assert torch.equal(mine, x)


# ---- another network under the same name


class Scaled(nn.Module):
    def __init__(self, network, strength, last):
        super().__init__()
        self.network, self.strength, self.last = network, strength, last

    def forward(self, x):
        return self.last(self.network(x) * self.strength)


def test_a_report_of_a_network_with_other_settings_is_not_returned(tmp_path):
    centres, x, y = prototypes(4)
    how = {"norm": "Linf", "eps": 0.1, "protocol": "clean", "out": tmp_path / "r.json"}
    plain = Scaled(nearest(centres), 1.0, nn.Identity())
    first = atent_ext.evaluate(plain, x, y, **how)
    assert atent_ext.evaluate(Scaled(nearest(centres), 1.0, nn.Identity()), x, y, **how) == first
    hooked = Scaled(nearest(centres), 1.0, nn.Identity())
    hooked.register_forward_hook(lambda module, inputs, output: -output)
    loose, listed = Scaled(nearest(centres), 1.0, nn.Identity()), Scaled(nearest(centres), 1.0, nn.Identity())
    loose.table, listed.parts = torch.ones(2), {"a": [np.ones(2), torch.eye(2).to_sparse()]}
    named, private = Scaled(nearest(centres), 1.0, nn.Identity()), Scaled(nearest(centres), 1.0, nn.Identity())
    named.activation, private._strength = lambda x: -x, 2.0
    others = [Scaled(nearest(centres), -1.0, nn.Identity()), Scaled(nearest(centres), 1.0, nn.Softmin(1))]
    for other in (*others, hooked, loose, listed, named, private):
        with pytest.raises(BadInput) as error:
            atent_ext.evaluate(other, x, y, **how)
        assert (error.value.code, error.value.field) == ("other-content", "model")


class Counting(Scaled):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


def test_a_network_that_counts_its_calls_is_still_the_same(tmp_path):
    centres, x, y = prototypes(4)
    network = Counting(nearest(centres), 1.0, nn.Identity())
    how = {"norm": "Linf", "eps": 0.1, "protocol": "clean", "out": tmp_path / "r.json"}
    assert atent_ext.evaluate(network, x, y, **how) == atent_ext.evaluate(network, x, y, **how)


# ---- draws of Python and NumPy


class Guessing(nn.Module):
    def __init__(self, network, draw):
        super().__init__()
        self.network, self.norm, self.draw = network, nn.BatchNorm2d(1), draw

    def forward(self, x):
        return self.network(self.norm(x).flip(-1) if self.draw() < 0.5 else self.norm(x))


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.random()])  # noqa: NPY002
def test_a_network_that_draws_by_python_or_numpy_has_one_report_a_seed(draw):
    centres, x, y = prototypes(4)
    accuracies = set()
    for seed in range(3):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        network = Guessing(nearest(centres), draw).eval()
        report = atent_ext.evaluate(network, x, y, norm="Linf", eps=0.1, protocol="clean", chunk=4)
        assert not report.folded
        accuracies.add(report.worst_case)
    assert len(accuracies) == 1
    assert 0.2 < accuracies.pop() < 1


# ---- one output


def test_one_output_in_0_1_may_be_a_probability_and_a_note_says_so():
    centres, x, y = prototypes(2)
    difference = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        difference.weight.copy_(torch.tensor([[-1.0, 1.0]]))
    logit = nn.Sequential(nearest(centres, 10.0), difference)
    how = {"norm": "Linf", "eps": 0.1, "protocol": "clean"}
    as_logit = atent_ext.evaluate(logit, x, y, **how)
    as_probability = atent_ext.evaluate(nn.Sequential(logit, nn.Sigmoid()), x, y, **how)
    assert as_logit.worst_case == 1.0
    assert as_probability.worst_case == 0.5
    assert [any("lie in [0, 1]" in note for note in one.prepared) for one in (as_logit, as_probability)] == [
        False,
        True,
    ]


# ---- draws of the Gibbs law


class Four(nn.Module):
    """The adversaries of least cross-entropy are wrong, those of largest are right."""

    def forward(self, x):
        v = x.flatten(1)[:, 0]
        o = -0.01 - 20 * (v - 0.4).clamp(min=0)
        return torch.stack([torch.zeros_like(v), 3 * (v - 0.5) - 0.3, o, o], 1)


def test_an_image_with_adversarial_draws_is_not_robust():
    x, y = torch.full((20, 2), 0.5), torch.zeros(20, dtype=torch.long)
    report = atent_ext.evaluate(Four(), x, y, norm="Linf", eps=0.2, protocol=own({"attack": "entropy"}))
    drawn = report.results[0]
    assert sum(drawn.per_image["share"]) > 2
    fell = [share > 0 for share in drawn.per_image["share"]]
    assert report.flags(drawn.attack).tolist() == [not one for one in fell]


# ---- float64


def test_float64_logits_are_compared_in_float64():
    centres, x, y = prototypes(4, noise=0.05)

    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nearest(centres).double()

        def forward(self, x):
            return self.network(x) + 1e9

    report = atent_ext.evaluate(Offset(), x, y, norm="Linf", eps=0.1, protocol="clean")
    assert report.worst_case == 1.0


# ---- proofs


def changed_network(how):
    network = nearest(prototypes(4)[0])
    if how == "forward hook":
        network.register_forward_hook(lambda module, inputs, output: output[:, [1, 2, 3, 0]])
    elif how == "hook before a layer":
        network[0].register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    elif how == "forward":
        network.forward = lambda x: nn.Sequential.forward(network, 1 - x)
    else:
        network[1].register_forward_hook(lambda module, inputs, output: -output)
    return network


@pytest.mark.parametrize("way", ["compile", "module"])
def test_bounds_see_through_compilation(way):
    centres, x, y = prototypes(4, noise=0.05)
    network = nearest(centres)
    proven = certified_linf(network, x, y, 0.05)
    assert int(proven.sum()) > 0
    if way == "module":
        network.compile(backend="eager")
    compiled = torch.compile(network, backend="eager") if way == "compile" else network
    assert torch.equal(certified_linf(compiled, x, y, 0.05), proven)


@pytest.mark.parametrize("how", ["forward hook", "hook before a layer", "forward", "hook of a layer"])
def test_bounds_refuse_a_network_that_something_else_changes(how):
    _, x, y = prototypes(4)
    with pytest.raises(BadInput) as error:
        certified_linf(changed_network(how), x, y, 0.1)
    assert (error.value.code, error.value.field) == ("unsupported", "model")


def test_one_logit_proves_nothing():
    one = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    _, x, _ = prototypes(4)
    with pytest.raises(BadInput) as error:
        certified_linf(one, x, torch.zeros(40, dtype=torch.long), 0.1)
    assert (error.value.code, error.value.field) == ("bad-shape", "model")
    with pytest.raises(BadInput) as error:
        certify(one, x[0], Smoothing(sigma=0.5, n=200, n0=20), 0)
    assert (error.value.code, error.value.field) == ("bad-shape", "model")
