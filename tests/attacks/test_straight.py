"""Gradients straight through layers that saturate."""

import pytest
import torch
from torch import nn

from atent_ext.attacks.proven import Proven
from atent_ext.attacks.spec import Setting, parse
from atent_ext.attacks.straight import straight_through
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.run import run_protocol
from atent_ext.models.contrast import Contrast

LAYERS = [
    *(nn.Hardtanh(), nn.Hardtanh(inplace=True), nn.ReLU6(), nn.ReLU6(inplace=True), nn.Hardsigmoid()),
    *(nn.Sigmoid(), nn.Tanh(), nn.Softsign(), Contrast(0.3, 0.7)),
]
SETTING = Setting(Threat(norm="Linf", eps=0.3))
SHORT = {"attack": "bpda", "steps": 5, "restarts": 1}


def saturated():
    """Wrong exactly where the pixel exceeds 0.45, and without a gradient at pixels below 0.4."""
    network = nn.Sequential(Contrast(0.4, 0.6), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        network[2].bias.copy_(torch.tensor([0.25, -0.25]))
    return network.eval()


def dark(count=40):
    return Split(torch.full((count, 1, 1, 1), 0.2), torch.zeros(count, dtype=torch.long))


def attack(network, raw=SHORT, split=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return parse(raw).run(network, split or dark(), SETTING)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [5.0, 1e9])
def test_backwards_the_layer_is_the_identity_and_forwards_itself(layer, size):
    network = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 2))
    x = (size * torch.randn(4, 3)).requires_grad_()
    expected = network(x)
    with straight_through(network) as layers:
        output = network(x)
        (gradient,) = torch.autograd.grad(output.sum(), x)
    assert layers == 1
    assert torch.equal(output, expected)
    torch.testing.assert_close(gradient, (network[2].weight.sum(0) @ network[0].weight).expand(4, 3))


def test_a_layer_that_is_called_by_name_in_half_precision_is_found():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Tanh()

        def forward(self, x):
            return self.layer(input=x)

    network, x = Named(), torch.full((1, 2), 300.0, dtype=torch.bfloat16, requires_grad=True)
    with straight_through(network):
        output = network(x)
        output.sum().backward()
    assert output.tolist() == [[1.0, 1.0]]
    assert x.grad.tolist() == [[1.0, 1.0]]


def test_a_network_that_was_compiled_before_is_run_uncompiled():
    network, x = saturated(), torch.zeros(1, 1, 1, 1, requires_grad=True)
    network.compile(backend="eager")
    assert not torch.autograd.grad(network(x)[:, 1].sum(), x)[0].any()
    compiled = network._compiled_call_impl
    with straight_through(network):
        assert torch.autograd.grad(network(x)[:, 1].sum(), x)[0].any()
    assert network._compiled_call_impl is compiled


def test_the_network_comes_back_as_it_was():
    network = nn.Sequential(saturated(), nn.ReLU6(inplace=True))
    with pytest.raises(ZeroDivisionError), straight_through(network):
        raise ZeroDivisionError
    assert not network[0][0]._forward_hooks
    assert network[1].inplace
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    assert not torch.autograd.grad(network(x).sum(), x)[0].any()


def test_the_attack_finds_what_lies_beyond_vanished_gradients():
    outcome = attack(saturated())
    assert outcome.accuracy == 0
    assert outcome.attack == "annealed BPDA-5"
    assert outcome.notes[-1].text == "layers that saturate, which gradients passed as the identity: 1"


def test_it_works_where_some_images_are_proven():
    images, none = dark(4), torch.zeros(4, dtype=torch.bool)
    assert attack(Proven(saturated(), images.images, images.labels, none, 0.3, 2), split=images).accuracy == 0


def test_a_robust_network_of_huge_weights_stays_robust():
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 2))
    with torch.no_grad():
        for values, value in zip(network.parameters(), (1e9, 1e9, [[1.0], [-1.0]], [0.0, 0.0]), strict=True):
            values.copy_(torch.tensor(value))
    assert attack(network.eval()).accuracy == 1


def test_without_such_a_layer_a_note_warns():
    network = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    note = attack(network).notes[-1]
    assert (note.kind, note.text[:31]) == ("warning", "no layer that saturates was fou")


def test_the_worst_case_of_the_protocol_for_publishing_is_bpdas():
    plan = load_protocol("published")
    short = [
        one.model_copy(update={"steps": 5, "restarts": 1}) for one in plan.attacks if one.attack in ("pgd", "bpda")
    ]
    some = plan.model_copy(
        update={"attacks": (plan.attacks[0], *short, plan.attacks[-1].model_copy(update={"queries": 5}))}
    )
    clean, pgd, bpda, square, worst = (outcome.accuracy for outcome in run_protocol(saturated(), dark(), some, SETTING))
    assert (clean, bpda, worst) == (1, 0, 0)
    assert pgd > 0.2
    assert 0 <= square <= 1
