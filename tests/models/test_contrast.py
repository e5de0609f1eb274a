"""The network whose first layer saturates."""

import math

import pytest
import torch
from torch import nn

from atent_ext.certification.intervals import worst_margins
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.models.contrast import Contrast, ContrastCNN


def network(**arguments):
    with seeded(0):
        return ContrastCNN(**arguments)


def test_values_between_the_limits_are_stretched_and_others_saturate():
    x = torch.tensor([0.0, 0.3, 0.4, 0.5, 0.7, 1.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0.25, 0.5, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(Contrast(0.3, 0.7)(x), expected)


def test_pixels_of_0_and_1_are_points_in_the_ball_and_grey_ones_intervals():
    model = network().double().eval()
    black_and_white = (torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    y = torch.tensor([0, 4, 9])
    logits = model(black_and_white)
    exact = logits - logits.gather(1, y[:, None])
    torch.testing.assert_close(worst_margins(model, black_and_white, y, 0.299), exact)
    assert (worst_margins(model, black_and_white.clamp(0.2, 0.8), y, 0.299) - exact).sum().item() > 1e-4


def test_the_rounding_of_float32_is_allowed_for():
    model = network().eval()
    x, y = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1)), torch.arange(4)
    logits = model(x).detach().double()
    wider = worst_margins(model.double(), x.double(), y, 0.0, rounding=2.0**-22).detach()
    computed = logits - logits.gather(1, y[:, None])
    assert bool((wider >= computed).all())
    assert float((wider - computed).max()) < 0.05


def test_weights_start_as_the_paper_says():
    for layer in network():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.numel() > 5000:
            expected = math.sqrt(2 * math.pi) / layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not layer.bias.any()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"low": 0.7, "high": 0.7}, "low"),
        ({"low": -0.1}, "low"),
        ({"high": 1.5}, "high"),
        ({"low": 0.0, "high": 1e-46}, "low"),
        ({"high": float("nan")}, "high"),
        ({"hidden": 5000}, "hidden"),
        ({"width": 17}, "width"),
    ],
)
def test_other_values_are_refused_by_name(arguments, field):
    with pytest.raises(BadInput) as error:
        ContrastCNN(**arguments)
    assert (error.value.code, error.value.field) == ("bad-value", field)
