"""Images that interval bounds prove robust take no passes, and no flag changes."""

import copy

import pytest
import torch
from problems import LinearTwoClass, attack_spec
from torch import nn

import atent_ext
from atent_ext.attacks import autoattack
from atent_ext.attacks.proven import Proven
from atent_ext.certification import intervals
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import proven, run
from atent_ext.evaluation.protocol import Protocol
from atent_ext.models import wrappers
from atent_ext.models.networks import SmallCNN

SHAPE, EPS, COUNT = (1, 6, 6), 0.03, 40
PLAN = Protocol(
    name="mine",
    description="",
    attacks=(
        attack_spec("clean"),
        attack_spec("fgsm"),
        attack_spec("pgd", steps=5, restarts=2, keep="success"),
        attack_spec("atent", steps=5, restarts=2),
        attack_spec("autoattack", version="standard"),
        attack_spec("square", queries=60),
    ),
)


@pytest.fixture(scope="module")
def problem():
    """A network and images, of which bounds prove some; others are broken, or robust without a proof."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 10)).eval()
    x = torch.rand(COUNT, *SHAPE)
    return network, x, network(x).argmax(1)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """AutoAttack of few steps."""
    count = autoattack._count_images

    def shortened(attacker, *others):
        attacker.square.n_queries = min(attacker.square.n_queries, 100)
        attacker.apgd.n_iter = attacker.apgd_targeted.n_iter = attacker.fab.n_iter = 10
        return count(attacker, *others)

    monkeypatch.setattr(autoattack, "_count_images", shortened)


def evaluated(network, x, y, eps=EPS, plan=PLAN, norm="Linf"):
    return atent_ext.evaluate(network, x, y, norm=norm, eps=eps, protocol=plan, chunk=20, seed=3, speed="plain")


def test_flags_are_those_of_the_full_run_at_fewer_passes(problem, monkeypatch):
    fast = evaluated(*problem)
    monkeypatch.setattr(run, "proven", lambda *_: None)
    full = evaluated(*problem)
    assert [result.flags for result in fast.results] == [result.flags for result in full.results]
    assert [result.robust_after for result in fast.results] == [result.robust_after for result in full.results]
    certified = intervals.certified_linf(*problem, EPS)
    count = fast.worst.proven
    assert 0 < count <= int(certified.sum()) < full.worst.correct < COUNT
    assert torch.equal(certified & fast.worst.robust(), certified)
    said = "; attacks that treat images singly left them out"
    assert fast.notes == (f"interval bounds prove {count} of 40 images robust{said}",)
    assert full.notes == ()
    assert fast.result("clean").proven == 0
    for attack in fast.attacks:
        assert attack.passes < full.result(attack.attack).passes
    assert fast.passes == sum(result.passes for result in fast.results if result.kind != "worst_case")


def test_where_all_are_proven_no_attack_runs(problem):
    network, x, y = problem
    report = evaluated(network, x, y, eps=1e-4)
    assert report.worst.flags == "1" * COUNT
    assert report.worst.proven == COUNT
    assert report.result("autoattack").passes < 10 * COUNT  # its checks, and the clean predictions


def test_for_clean_accuracy_alone_nothing_is_proven(problem, monkeypatch):
    monkeypatch.setattr(run, "proven", lambda *_: pytest.fail("bounds were computed"))
    plan = Protocol(name="clean", description="", attacks=(attack_spec("clean"),))
    assert evaluated(*problem, plan=plan).accuracy("clean") == 1


class Trap(nn.Sequential):
    """Answers as its layers, but for one image."""

    def forward(self, x):
        logits = super().forward(x)
        return torch.where((x.flatten(1)[:, :1] > 0.99), -logits, logits)


def hooked(network):
    copy = nn.Sequential(*network)
    copy.register_forward_hook(lambda module, inputs, output: -output)
    return copy


@pytest.mark.parametrize(
    "change",
    [lambda net: Trap(*net), hooked, lambda net: nn.Sequential(*net, nn.Softplus()), lambda net: LinearTwoClass(SHAPE)],
)
def test_nothing_is_proven_of_networks_that_may_do_something_else(problem, change):
    network, x, y = problem
    threat = Threat(norm="Linf", eps=1e-4)
    assert proven.proven(network, Split(x, y), threat) is not None
    assert proven.proven(change(network), Split(x, y), threat) is None


def test_a_layer_that_is_used_twice_counts_twice():
    torch.manual_seed(0)
    relu = nn.ReLU()
    parts = [nn.Linear(36, 24), nn.Linear(24, 24), nn.Linear(24, 3)]
    shared = nn.Sequential(nn.Flatten(), parts[0], relu, parts[1], relu, parts[2])
    apart = nn.Sequential(nn.Flatten(), parts[0], nn.ReLU(), parts[1], nn.ReLU(), parts[2])
    assert len(intervals.sequence(shared, torch.rand(2, *SHAPE))) == 6
    x = torch.rand(50, *SHAPE)
    split = Split(x, apart(x).argmax(1))
    for eps in (0.001, 0.01, 0.05):
        one, other = (proven.proven(net, split, Threat(norm="Linf", eps=eps)) for net in (shared, apart))
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one[0], other[0])


def test_nothing_is_proven_behind_what_is_no_chain(problem):
    network, x, y = problem
    threat = Threat(norm="Linf", eps=1e-4)
    own = type("Own", (nn.Sequential,), {})  # a subclass may override anything
    for around in (wrappers.Normalised(network, [0.5], [0.001]), own(*network), copy.deepcopy(network).double()):
        assert proven.proven(around, Split(x, y), threat) is None


def test_what_float32_rounds_away_is_not_proven():
    """The radius vanishes beside a bias of 2^24, but the network answers otherwise inside the ball."""
    first, last = nn.Linear(1, 1), nn.Linear(1, 2)
    with torch.no_grad():
        first.weight.fill_(10.0)
        first.bias.fill_(2.0**24)
        last.weight.copy_(torch.tensor([[0.0], [1.0]]))
        last.bias.copy_(torch.tensor([1.0, -(2.0**24) - 4]))
    network = nn.Sequential(first, last).eval()
    x = torch.full((8, 1), 0.5)
    split = Split(x, torch.zeros(8, dtype=torch.long))
    assert network(x).argmax(1).tolist() == [0] * 8
    assert network(x + 8 / 255).argmax(1).tolist() == [1] * 8
    assert proven.proven(network, split, Threat(norm="Linf", eps=8 / 255)) is None


@pytest.mark.parametrize("weight", [1e25, 1e-25])
def test_what_leaves_the_range_of_float32_is_not_proven(weight):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(4)]
    with torch.no_grad():
        for layer in layers[:2]:
            layer.weight.copy_(weight * torch.eye(4))
        for layer in layers[2:]:
            layer.weight.copy_(torch.eye(4) / weight)
    network = nn.Sequential(*layers).eval()
    x = torch.eye(4)
    assert proven.proven(network, Split(x, torch.arange(4)), Threat(norm="Linf", eps=0.1)) is None


def test_the_bounds_allow_for_the_rounding_of_the_network(problem):
    """Far coarser arithmetic than float32: half precision stays inside the bounds that are widened for it."""
    network, x, y = problem
    exactly = intervals.worst_margins(network.double(), x.double(), y, 0.0)
    widened = intervals.worst_margins(network, x.double(), y, 0.0, rounding=2.0**-9)
    half = network.bfloat16()(x.bfloat16()).double()
    found = half - half.gather(1, y[:, None])
    network.float()
    assert bool((found <= widened + 1e-12).all())
    assert not bool((found <= exactly + 1e-12).all())


def test_other_balls_and_our_own_networks(problem):
    network, x, y = problem
    assert proven.proven(network, Split(x, y), Threat(norm="L2", eps=1e-4)) is None
    assert proven.proven(network, Split(x, y), Threat(norm="Linf", eps=0.0)) is None
    assert proven.proven(network, Split(x, (y + 1) % 10), Threat(norm="Linf", eps=1e-4)) is None  # all are wrong
    assert intervals.exact(SmallCNN())


def test_the_network_is_run_wherever_an_input_may_be_another_images(problem):
    network, x, y = problem
    flags = torch.zeros(4, dtype=torch.bool)
    flags[:2] = True
    images = x[:4].clone()
    images[3] = images[1] + 0.01  # so near that their balls overlap
    known = Proven(network, images, y[:4], flags, EPS, 10)
    inputs = torch.stack([images[0] + EPS, images[0] - 1.1 * EPS, images[1], images[2], images[3]])
    assert known.belongs(inputs.clamp(0, 1)).tolist() == [0, -1, -1, -1, -1]
    logits = known(inputs.clamp(0, 1))
    assert int(logits[0].argmax()) == int(y[0])
    torch.testing.assert_close(logits[1:], network(inputs.clamp(0, 1)[1:]))
    assert known.settled(images[:1])
    assert not known.settled(images)
    point = images[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(known(point)[:, 3].sum(), point)
    assert bool((gradient != 0).all())
