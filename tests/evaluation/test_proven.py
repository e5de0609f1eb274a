"""Images that interval bounds prove robust take no passes, and no flag changes."""

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
        attacker.square.n_queries = 100
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
    assert fast.notes == (f"interval bounds prove {count} of 40 images robust; no attack ran the network on them",)
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
