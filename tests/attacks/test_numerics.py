"""No NaN where numbers degenerate: saturated softmax, flat loss, eps 0, images alike or constant, half precision."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from problems import gradient_vector, small_batch, small_net
from torch import nn

from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import boosted_cross_entropy, kl_divergence, mart_regularizer
from atent_ext.core.norms import L2
from atent_ext.objectives import (
    ATENT,
    DESGD,
    IBP,
    MART,
    MMA,
    PGDAT,
    TRADES,
    GaussianNoise,
    SmoothAdv,
    SmoothTRADES,
    Standard,
)

STEPS = {"steps": 3, "step_size": 0.1}
HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
KINDS = pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])


@functools.cache
def objectives(eps):
    return tuple(made(eps))


def made(eps):
    yield from (Standard(), GaussianNoise(sigma=0.1), SmoothTRADES(sigma=0.1), IBP(eps=eps))
    for norm in ("Linf", "L2"):
        yield from (method(norm=norm, eps=eps, **STEPS) for method in (PGDAT, TRADES, MART, ATENT, DESGD))
        yield SmoothAdv(norm=norm, eps=eps, sigma=0.1, **STEPS)
        if eps:
            yield MMA(norm=norm, eps=eps, steps=3, least=eps / 2)


def net(**settings):
    return copy.deepcopy(original(**settings))


@functools.cache
def original(saturated=0.0, flat=False):
    """Chain of layers that `bounds` knows; `saturated`: the gap between the first logit and the others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    with torch.no_grad():
        model[-1].weight.mul_(0.0 if flat else 1.0)
        model[-1].bias += saturated * torch.eye(4)[0]
    return model


IMAGES = {
    "drawn": small_batch(5, dtype=torch.float32)[0],
    "identical": small_batch(1, dtype=torch.float32)[0].expand(5, 1, 6, 6),
    "black": torch.zeros(5, 1, 6, 6),
    "grey": torch.full((5, 1, 6, 6), 0.5),
    "white": torch.ones(5, 1, 6, 6),
}
NETWORKS = {
    "usual": {},
    "flat": {"flat": True},
    "gap of 200": {"saturated": 200.0},
    "gap of -200": {"saturated": -200.0},
    "flat, gap of 200": {"saturated": 200.0, "flat": True},
}
LABELS = torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("x", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_objective_is_finite(network, x, eps, training):
    for objective in objectives(eps):
        model = net(**network).train(training)
        for term in objective(model, x, LABELS, generator=torch.Generator().manual_seed(0)):
            assert term.isfinite(), objective
            term.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()), objective


@KINDS
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("x", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("direction", [None, "unit-or-random", "raw"])
def test_every_attack_is_finite_and_stays_at_eps_0(kind, network, x, direction):
    model = net(**network).eval()
    for eps in (0.0, 0.2):
        attack = kind(model, eps=eps, nb_iter=3, eps_iter=0.1, direction=direction, restarts=2, keep="success")
        adversary = attack.perturb(x, LABELS)
        assert adversary.isfinite().all()
        assert attack.norm.size(adversary - x).max() <= eps + 1e-6


def reference_trades(clean, adversarial):
    """The KL term of github.com/yaodongyu/TRADES, summed over the batch."""
    return nn.KLDivLoss(reduction="sum")(F.log_softmax(adversarial, dim=1), F.softmax(clean, dim=1))


def reference_mart(clean, adversarial, y):
    """The loss of github.com/YisenWang/MART, summed over the batch."""
    p, q = F.softmax(clean, dim=1), F.softmax(adversarial, dim=1)
    top = torch.argsort(q, dim=1)[:, -2:]
    other = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    boosted = F.cross_entropy(adversarial, y) + F.nll_loss(torch.log(1.0001 - q + 1e-12), other)
    kl = torch.sum(nn.KLDivLoss(reduction="none")(torch.log(q + 1e-12), p), dim=1)
    return boosted + torch.sum(kl * (1.0000001 - p.gather(1, y[:, None]).squeeze(1)))


@pytest.mark.parametrize("method", ["TRADES", "MART"])
def test_gradients_are_finite_where_those_of_the_reference_code_are_nan(method):
    y = torch.tensor([0])
    theirs, ours = (torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True) for _ in range(2))
    adversarial = torch.tensor([[0.3, 0.1, 0.0]])
    if method == "TRADES":
        reference_trades(theirs, adversarial).backward()
        kl_divergence(adversarial, F.softmax(ours, 1)).sum().backward()
    else:
        reference_mart(theirs, adversarial, y).backward()
        (boosted_cross_entropy(adversarial, y) + mart_regularizer(adversarial, ours, y)).sum().backward()
    assert theirs.grad.isnan().all()
    assert ours.grad.isfinite().all()


@HALF
@KINDS
def test_under_autocast_attacks_stay_in_the_ball_of_float32(kind, dtype):
    model, (x, y) = net(), small_batch(5, dtype=torch.float32)
    for start, project in (("ball", "last"), ("corner", "every")):
        attack = kind(model, eps=0.05, nb_iter=4, eps_iter=0.02, start=start, project=project)
        with torch.autocast("cpu", dtype):
            adversary = attack.perturb(x, y)
            logits = model.eval()(adversary)
        assert logits.dtype is dtype
        assert adversary.dtype is torch.float32
        sizes = attack.norm.size(adversary - x)
        assert sizes.max() <= 0.05 + 1e-6
        assert sizes.min() > 0.01
        assert ((adversary >= 0) & (adversary <= 1)).all()


@HALF
def test_objectives_in_half_precision_are_finite(dtype):
    """1e-12, which keeps probabilities off zero, is itself zero in float16."""
    for network in (net(saturated=200.0), net()):
        x = IMAGES["drawn"].to(dtype)
        for objective in objectives(0.1):
            network.to(dtype).zero_grad()
            for term in objective(network, x, LABELS, generator=torch.Generator().manual_seed(0)):
                term.backward()
            assert gradient_vector(network).isfinite().all(), objective


def test_the_smallest_displacement_is_projected_to_nothing_at_eps_0():
    """Its reciprocal is infinite in float16, and 0 times that is NaN."""
    smallest = torch.tensor([[torch.finfo(torch.float16).smallest_normal / 8, 0.0]], dtype=torch.float16)
    assert L2.size(smallest) > 0
    assert L2.project(smallest, 0.0).tolist() == [[0.0, 0.0]]


def test_a_network_without_a_gradient_is_named():
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    for cut in (lambda images: model(images.detach()), lambda images: torch.zeros(len(images), 4)):
        with pytest.raises(BadInput, match="no gradient with respect to the images") as error:
            LinfATENTAttack(cut).perturb(x, y)
        assert (error.value.code, error.value.field) == ("broken-model", "model")
