import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from atent_ext.core.losses import (
    boosted_cross_entropy,
    cross_entropy,
    kl_divergence,
    margin,
    mart_regularizer,
    soft_margin,
)

# Three probabilities each, so that the figures below can be followed by hand.
P = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64)
Q = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.6, 0.3]], dtype=torch.float64)
Y = torch.tensor([0, 2])


def logits(seed=0, count=6, classes=4, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    values = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return values, torch.randint(0, classes, (count,), generator=generator)


def test_cross_entropy_is_not_reduced():
    values, y = logits()
    torch.testing.assert_close(cross_entropy(values, y), -F.log_softmax(values, 1)[range(6), y])
    torch.testing.assert_close(cross_entropy(P.log(), Y), -torch.tensor([0.7, 0.5], dtype=torch.float64).log())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 6))
def test_margin_is_the_gap_to_the_best_other_class(seed, classes):
    values, y = logits(seed, classes=classes)
    rows = [(row.tolist(), int(label)) for row, label in zip(values, y, strict=True)]
    expected = [max(v for k, v in enumerate(row) if k != label) - row[label] for row, label in rows]
    assert margin(values, y).tolist() == expected
    assert torch.equal(margin(values, y) > 0, values.argmax(1) != y)


def test_margin_of_a_tie_is_zero():
    assert margin(torch.tensor([[2.0, 2.0, 1.0]]), torch.tensor([0])).tolist() == [0.0]


def test_soft_margin_is_the_log_of_the_others_sum_less_the_label():
    values, y = logits()
    rows = [(row.tolist(), int(label)) for row, label in zip(values, y, strict=True)]
    sums = [sum(math.exp(v) for k, v in enumerate(row) if k != label) for row, label in rows]
    expected = [math.log(total) - row[label] for total, (row, label) in zip(sums, rows, strict=True)]
    assert soft_margin(values, y).tolist() == pytest.approx(expected, rel=1e-12)
    # Negative exactly where the label has more than half of the probability.
    assert torch.equal(soft_margin(values, y) < 0, F.softmax(values, 1)[range(6), y] > 0.5)


def test_the_gradient_of_soft_margin_is_finite_and_that_of_the_softmax_of_the_others():
    values, y = logits()
    (gradient,) = torch.autograd.grad(soft_margin(values.requires_grad_(), y).sum(), values)
    others = F.softmax(values.detach().scatter(1, y[:, None], -torch.inf), 1)
    torch.testing.assert_close(gradient, others.scatter(1, y[:, None], -1.0))


def test_kl_divergence_is_torchs():
    values, _ = logits()
    p = F.softmax(logits(1)[0], 1)
    ours = kl_divergence(values, p)
    assert ours.shape == (6,)
    torch.testing.assert_close(ours, F.kl_div(F.log_softmax(values, 1), p, reduction="none").sum(1))
    torch.testing.assert_close(ours.mean(), F.kl_div(F.log_softmax(values, 1), p, reduction="batchmean"))
    by_hand = 0.7 * math.log(0.7 / 0.4) + 0.2 * math.log(0.2 / 0.5)
    assert kl_divergence(Q.log(), P)[0].item() == pytest.approx(by_hand)
    torch.testing.assert_close(kl_divergence(values, F.softmax(values, 1)), torch.zeros_like(ours))


def test_kl_divergence_has_torchs_gradients_through_both_arguments():
    gradients = []
    for kl in (kl_divergence, lambda v, p: F.kl_div(F.log_softmax(v, 1), p, reduction="none").sum(1)):
        adversarial, clean = (logits(seed)[0].requires_grad_() for seed in (0, 1))
        gradients.append(torch.autograd.grad(kl(adversarial, F.softmax(clean, 1)).sum(), (adversarial, clean)))
    for ours, torchs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, torchs)
        assert ours.abs().max() > 0.1


def test_boosted_cross_entropy_is_marts_formula():
    """Spec 3: CE(f(x'), y) - log(1.0001 - max_{k != y} p_k(x') + 1e-12)."""
    by_hand = [-math.log(0.4) - math.log(1.0001 - 0.5 + 1e-12), -math.log(0.3) - math.log(1.0001 - 0.6 + 1e-12)]
    assert boosted_cross_entropy(Q.log(), Y).tolist() == pytest.approx(by_hand, rel=1e-12)
    values, y = logits()
    p = F.softmax(values, 1)
    wrong = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p, y, strict=True)])
    expected = F.cross_entropy(values, y, reduction="none") - torch.log(1.0001 - wrong + 1e-12)
    torch.testing.assert_close(boosted_cross_entropy(values, y), expected)


def test_mart_regularizer_is_its_formula():
    """Spec 3: KL(f(x) ‖ f(x')) * (1.0000001 - p_y(x)), where KL uses log(p(x') + 1e-12)."""
    kl = [sum(p * math.log(p / (q + 1e-12)) for p, q in zip(P[i].tolist(), Q[i].tolist(), strict=True)) for i in (0, 1)]
    by_hand = [kl[0] * (1.0000001 - 0.7), kl[1] * (1.0000001 - 0.5)]
    assert mart_regularizer(Q.log(), P.log(), Y).tolist() == pytest.approx(by_hand, rel=1e-12)


def test_mart_regularizer_has_its_formulas_gradients_through_both_arguments():
    def formula(adversarial, clean, y):
        p, q = F.softmax(clean, 1), F.softmax(adversarial, 1)
        kl = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(1)
        return kl * (1.0000001 - p[range(len(y)), y])

    y = logits()[1]
    gradients = []
    for regularizer in (mart_regularizer, formula):
        adversarial, clean = (logits(seed)[0].requires_grad_() for seed in (0, 1))
        gradients.append(torch.autograd.grad(regularizer(adversarial, clean, y).sum(), (adversarial, clean)))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)
        assert ours.abs().max() > 0.1


LOSSES = {
    "cross_entropy": lambda a, b, y: cross_entropy(a, y),
    "margin": lambda a, b, y: margin(a, y),
    "kl_divergence": lambda a, b, y: kl_divergence(a, F.softmax(b, 1)),
    "boosted_cross_entropy": lambda a, b, y: boosted_cross_entropy(a, y),
    "mart_regularizer": mart_regularizer,
}
ALL = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@ALL
def test_gradients_are_those_of_the_values(loss):
    (first, y), (second, _) = logits(0), logits(1)
    arguments = first.requires_grad_(), second.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y), arguments)


@ALL
def test_an_example_does_not_see_the_others(loss):
    (first, y), (second, _) = logits(0), logits(1)
    batched = loss(first, second, y)
    alone = [loss(first[i : i + 1], second[i : i + 1], y[i : i + 1]) for i in range(6)]
    torch.testing.assert_close(batched, torch.cat(alone))


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("adversarial", "clean"), [(200.0, 0.0), (0.0, 200.0), (200.0, 200.0), (-200.0, 200.0)])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_a_logit_gap_of_200_leaves_values_and_gradients_finite(loss, dtype, adversarial, clean, label):
    a, b = (torch.tensor([[gap, 0.0, 0.0]], dtype=dtype, requires_grad=True) for gap in (adversarial, clean))
    value = loss(a, b, torch.tensor([label]))
    value.sum().backward()
    assert value.dtype is dtype
    assert torch.isfinite(value).all()
    assert all(torch.isfinite(t.grad).all() for t in (a, b) if t.grad is not None)


def test_without_the_floor_that_gap_breaks_the_gradient():
    """Why p is kept above 1e-12: the textbook p log p has a NaN there."""
    clean = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    p = F.softmax(clean, 1)
    (p * (p.log() - torch.tensor([0.4, 0.5, 0.1]).log())).sum().backward()
    assert clean.grad.isnan().any()
