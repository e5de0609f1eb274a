"""The certified part of a loss, which any objective may have."""

import pytest
import torch
from problems import chain as network
from problems import chain_batch as batch
from problems import gradient_vector

from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.certification.intervals import interval_bounds
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF
from atent_ext.objectives import ATENT, MART, MMA, PGDAT, TRADES, Standard
from atent_ext.objectives.certified import Certified, WithCertified

COMMON = {"eps": 0.2, "steps": 3, "step_size": 0.08}
OBJECTIVES = [
    Standard(),
    PGDAT(**COMMON),
    TRADES(**COMMON),
    MART(**COMMON),
    ATENT(**COMMON),
    MMA(eps=0.2, steps=2, least=0.05),
]


def generator():
    return torch.Generator().manual_seed(5)


def total(objective, model, x, y):
    model.zero_grad()
    terms = []
    for term in objective(model, x, y, generator=generator()):
        term.backward()
        terms.append(float(term.detach()))
    assert len(terms) == objective.terms
    return sum(terms), gradient_vector(model)


def worst(model, centre, y, radius):
    """The mean cross-entropy of the worst logits, whose differences to the label are bounded row by row."""
    low, high = interval_bounds(model[:-1], (centre - radius).clamp(0, 1), (centre + radius).clamp(0, 1))
    rows = model[-1].weight - model[-1].weight[y][:, None]
    tops = (rows.clamp_min(0) * high[:, None] + rows.clamp_max(0) * low[:, None]).sum(2)
    return cross_entropy(tops + model[-1].bias - model[-1].bias[y][:, None], y).mean()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
def test_the_loss_is_the_blend_of_both_parts(objective):
    model, (x, y) = network(), batch()
    part = WithCertified(objective, Certified(weight=0.3), 0.2)  # MTL-IBP: the box is the ball
    loss, gradient = total(part, model, x, y)
    adversarial, adversarial_gradient = total(objective, model, x, y)
    model.zero_grad()
    bound = worst(model, x, y, 0.2)
    bound.backward()
    assert loss == pytest.approx(0.7 * adversarial + 0.3 * float(bound.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, 0.7 * adversarial_gradient + 0.3 * gradient_vector(model))
    assert part.terms == objective.terms + 1


def test_a_small_box_lies_around_an_adversary_inside_the_ball():
    """SABR: radius share * eps, around the end of PGD in the ball of the rest."""
    model, (x, y) = network(), batch()
    part = WithCertified(Standard(), Certified(weight=0.5, share=0.25, steps=4), 0.2)
    bound = next(part(model, x, y, generator=generator()))
    centre = last_iterate(pgd(LINF, 0.15, 4), model, x, y, cross_entropy, generator())
    assert float(bound.detach()) == pytest.approx(0.5 * float(worst(model, centre, y, 0.05).detach()), rel=1e-9)
    assert (centre - x).abs().max() <= 0.15 + 1e-12
    assert 2 * float(bound.detach()) < float(worst(model, x, y, 0.2).detach())  # a smaller box is easier


def test_the_radius_grows_and_the_state_is_the_objectives():
    method = MMA(eps=0.2, steps=2, least=0.05)
    part = WithCertified(method, Certified(weight=0.5), 0.2)
    half = part.scaled(0.5)
    assert (half.eps, half.objective.eps) == (0.1, 0.1)
    part.load_state_dict({"lengths": torch.tensor([0.125])})
    assert method.state_dict()["lengths"].tolist() == [0.125]
    assert not hasattr(WithCertified(Standard(), Certified(weight=0.5), 0.2), "state_dict")


def test_a_network_without_bounds_is_refused():
    model, (x, y) = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU(), torch.nn.Linear(36, 4)).double(), batch()
    with pytest.raises(BadInput) as error:
        next(WithCertified(Standard(), Certified(weight=0.5), 0.2)(model, x, y))
    assert (error.value.code, error.value.field) == ("unsupported", "model")
