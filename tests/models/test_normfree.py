"""Wide residual networks without BatchNorm, against the formulas of their papers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atent_ext.core.errors import BadInput
from atent_ext.models.normfree import NormFreeWideResNet, StandardisedConv2d


def network(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NormFreeWideResNet(channels=1, depth=10, **arguments)


def test_kernels_are_standardised_as_in_the_paper():
    convolution = network().blocks[1].first
    with torch.no_grad():
        convolution.weight.add_(0.3).mul_(5)
        convolution.gain.uniform_(0.5, 2)
    for kernel, weight, gain in zip(convolution.standardised(), convolution.weight, convolution.gain, strict=True):
        deviation = ((weight - weight.mean()) ** 2).mean().sqrt()
        expected = gain * (weight - weight.mean()) / (deviation * weight.numel() ** 0.5)
        torch.testing.assert_close(kernel, expected, rtol=1e-4, atol=1e-6)
    x = torch.rand(2, 32, 7, 7)
    expected = F.conv2d(x, convolution.standardised(), convolution.bias, stride=2, padding=1)
    assert torch.equal(convolution(x), expected)


@pytest.mark.parametrize(("activation", "function"), [("silu", F.silu), ("relu", F.relu)])
def test_scaled_activations_keep_a_variance_of_one(activation, function):
    from atent_ext.models.normfree import _ACTIVATIONS

    x = torch.randn(10**6, generator=torch.Generator().manual_seed(0))
    own, gain = _ACTIVATIONS[activation]
    assert own is function
    assert float((gain * function(x)).var()) == pytest.approx(1, abs=0.01)


def test_a_standardised_network_keeps_variances_near_one_at_any_depth():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deep = NormFreeWideResNet(channels=3, depth=40, width=2)
        for block in deep.blocks:
            nn.init.ones_(block.skip)
        with torch.no_grad():
            features = deep.blocks(deep.stem(torch.randn(8, 3, 32, 32)))
    assert 0.5 < float(features.var()) < 2
    expected = [1 / block.scale for block in deep.blocks]
    assert expected[0] == 1
    assert expected[1] ** 2 == pytest.approx(1.04)  # after a block whose shortcut begins anew
    assert expected[5] ** 2 == pytest.approx(1 + 5 * 0.04)
    assert expected[7] ** 2 == pytest.approx(1.04)


def test_fixup_starts_with_branches_that_are_zero():
    fixup = network(scaling="fixup", width=1)
    x = torch.rand(3, 1, 28, 28)
    assert torch.equal(fixup(x), torch.zeros(3, 10))
    block = fixup.blocks[0]
    values = torch.rand(2, 16, 5, 5)
    assert torch.equal(block(values), values)
    with torch.no_grad():
        for parameter in (block.biases, block.scale, block.second.weight):
            parameter.uniform_(-1, 1)
    b1, b2, b3, b4, b5 = block.biases
    out = F.conv2d(F.silu(values + b1) + b2, block.first.weight, padding=1)
    expected = values + block.scale * F.conv2d(F.silu(out + b3) + b4, block.second.weight, padding=1) + b5
    torch.testing.assert_close(block(values), expected)
    deviation = float(NormFreeWideResNet(depth=28, width=4, scaling="fixup").blocks[-1].first.weight.detach().std())
    assert deviation == pytest.approx((2 / (9 * 256) / 12) ** 0.5, rel=0.02)  # L^(-1/2) of He's, for 12 branches


@pytest.mark.parametrize("scaling", ["standardised", "fixup"])
@pytest.mark.parametrize("size", [28, 32])
def test_an_example_does_not_depend_on_the_others_or_on_the_mode(scaling, size):
    model = network(scaling=scaling).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02)
    x = torch.rand(4, 1, size, size, generator=torch.Generator().manual_seed(1))
    together = model(x)
    torch.testing.assert_close(together[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, model.eval()(x))
    assert not list(model.buffers())
    assert isinstance(model.stem, StandardisedConv2d) is (scaling == "standardised")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [({"depth": 12}, "depth"), ({"depth": 106}, "depth"), ({"width": 17}, "width"), ({"scaling": "batch"}, "scaling")],
)
def test_other_values_are_refused(arguments, field):
    with pytest.raises(BadInput) as error:
        NormFreeWideResNet(**arguments)
    assert error.value.field == field
