import pytest
import torch
from problems import LinearTwoClass, small_batch, small_net
from scipy.optimize import brentq

from atent_ext.attacks.gamma import calibrate_gamma, distance
from atent_ext.attacks.langevin import atent
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2

FREE = (-float("inf"), float("inf"))


def test_on_a_linear_model_gamma_solves_the_recursion():
    """The gradient's direction never changes: r <- (1 - gamma) r + step, so r_K = step (1 - (1 - gamma)^K) / gamma."""
    model = LinearTwoClass((5,))
    x, y = torch.zeros(4, 5, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    settings = {"eps": 0.6, "steps": 30, "step_size": 0.05}
    gamma = calibrate_gamma(model, x, y, **settings, noise=0.0, start="clean", box=FREE)
    expected = brentq(lambda g: 0.05 * (1 - (1 - g) ** 30) / g - 0.6, 1e-6, 1.0, xtol=1e-12)
    assert gamma == pytest.approx(expected, abs=1e-4)


def test_the_chains_then_end_at_eps_on_average():
    model, (x, y) = small_net(), small_batch()
    gamma = calibrate_gamma(model, x, y, eps=0.5, steps=10, step_size=0.1)
    assert 0 < gamma < 1
    kernel = atent(L2, 0.5, 10, 0.1, gamma=gamma)
    unprojected = type(kernel)(**{**vars(kernel), "project": "never"})
    assert distance(model, x, y, unprojected) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"eps": 5.0, "steps": 3, "step_size": 0.01}, "step_size", "inside eps 5; take more or larger steps"),
        ({"eps": 0.1, "steps": 3, "step_size": 1.0}, "step_size", "beyond eps 0.1; take a smaller step_size"),
        ({"eps": -1.0}, "eps", "eps is -1.0"),
    ],
)
def test_without_a_suitable_gamma_the_remedy_is_named(settings, field, words):
    with pytest.raises(BadInput, match=words) as error:
        calibrate_gamma(small_net(), *small_batch(), **settings)
    assert (error.value.code, error.value.field) == ("bad-value", field)
