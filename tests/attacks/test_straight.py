"""Gradients straight through layers that saturate."""

import pytest
import torch
from torch import nn

from atent_ext.attacks.spec import Setting, parse
from atent_ext.attacks.straight import straight_through
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.models.contrast import Contrast


def saturated():
    """Wrong exactly where the pixel exceeds 0.45, and without a gradient at pixels below 0.4."""
    network = nn.Sequential(Contrast(0.4, 0.6), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        network[2].weight.copy_(torch.tensor([[-1.0], [1.0]]))
        network[2].bias.copy_(torch.tensor([0.25, -0.25]))
    return network.eval()


@pytest.mark.parametrize(
    "layer", [nn.Hardtanh(), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.Softsign(), Contrast(0.3, 0.7)]
)
def test_backwards_the_layer_is_the_identity_and_forwards_itself(layer):
    network = nn.Sequential(nn.Linear(3, 3), layer, nn.Linear(3, 2))
    x = (5 * torch.randn(4, 3)).requires_grad_()
    expected = network(x)
    with straight_through(network) as layers:
        output = network(x)
        (gradient,) = torch.autograd.grad(output.sum(), x)
    assert layers == 1
    torch.testing.assert_close(output, expected)
    identity = (network[2].weight.sum(0) @ network[0].weight).expand(4, 3)
    torch.testing.assert_close(gradient, identity)


def test_the_network_comes_back_as_it_was():
    network = saturated()
    with pytest.raises(ZeroDivisionError), straight_through(network):
        raise ZeroDivisionError
    assert not network[0]._forward_hooks
    x = torch.zeros(1, 1, 1, 1, requires_grad=True)
    assert not torch.autograd.grad(network(x).sum(), x)[0].any()


def test_the_attack_finds_what_lies_beyond_vanished_gradients():
    images = torch.full((40, 1, 1, 1), 0.2)
    split, setting = Split(images, torch.zeros(40, dtype=torch.long)), Setting(Threat(norm="Linf", eps=0.3))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        outcome = parse({"attack": "bpda", "steps": 5, "restarts": 1}).run(saturated(), split, setting)
    assert outcome.accuracy == 0
    assert outcome.attack == "BPDA-5"
    assert outcome.notes[-1].text == "gradients passed 1 layers that saturate as if they were the identity"
