import dataclasses

import pytest
import torch
import torch.nn.functional as F
from problems import gradient_vector, small_batch, small_net

from atent_ext.attacks.langevin import Langevin, input_gradient, walk
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import NORMS
from atent_ext.objectives import ATENT, DESGD, PGDAT, GaussianNoise, SmoothAdv, SmoothTRADES
from atent_ext.training import recipes

COMMON = {"eps": 0.25, "steps": 4, "step_size": 0.08}
NOISY = [GaussianNoise(sigma=0.3), SmoothTRADES(sigma=0.3), SmoothAdv(sigma=0.3, **COMMON)]


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def normal(x, source):
    return torch.randn(x.shape, generator=source, dtype=x.dtype)


def gradient(objective, model, x, y, seed=5):
    """The weight gradient that a training loop accumulates."""
    model.zero_grad()
    for term in objective(model, x, y, generator=generator(seed)):
        term.backward()
    return gradient_vector(model)


def gradient_of(loss, model):
    model.zero_grad()
    loss.backward()
    return gradient_vector(model)


def assert_same(actual, expected, tolerance=1e-9):
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * float(expected.norm()))


# ---- Gaussian noise, smoothed TRADES


def test_without_noise_they_are_standard_training():
    model, (x, y) = small_net(), small_batch()
    plain = gradient_of(F.cross_entropy(model(x), y), model)
    assert_same(gradient(GaussianNoise(sigma=0.0), model, x, y), plain)
    assert_same(gradient(SmoothTRADES(sigma=0.0), model, x, y), plain)


# ---- SmoothAdv


def smooth_adv(objective, model, x, y, seed=5):
    """Salman et al. 2019, Algorithm 1, written naively: (the adversary, the weight gradient)."""
    source = generator(seed)
    noises = [objective.sigma * normal(x, source) for _ in range(objective.draws)]
    moving = x.clone()
    for _ in range(objective.steps):
        moving = moving.detach().requires_grad_()
        mean = sum(F.softmax(model(moving + noise), 1) for noise in noises) / len(noises)
        (slope,) = torch.autograd.grad(-mean.gather(1, y[:, None]).log().sum(), moving)
        ascent = slope.sign() if objective.norm == "Linf" else slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
        delta = moving.detach() + objective.step_size * ascent - x
        if objective.norm == "Linf":
            delta = delta.clamp(-objective.eps, objective.eps)
        else:
            delta = delta * (objective.eps / delta.flatten(1).norm(dim=1)).clamp_max(1)[:, None, None, None]
        moving = (x + delta).clamp(0, 1)
    loss = sum(F.cross_entropy(model(moving + noise), y) for noise in noises) / len(noises)
    return moving, gradient_of(loss, model)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("draws", [1, 3])
def test_smooth_adv_matches_the_naive_algorithm(norm, draws):
    # Five steps of 0.08 leave the ball of 0.25: the projection has work to do.
    objective = SmoothAdv(norm=norm, eps=0.25, steps=5, step_size=0.08, sigma=0.3, draws=draws)
    model, (x, y) = small_net(), small_batch()
    adversary, expected = smooth_adv(objective, model, x, y)
    assert float(NORMS[norm].size(adversary - x).max()) <= 0.25 + 1e-12
    model.passes = 0
    assert_same(gradient(objective, model, x, y), expected)
    assert model.passes == (5 + 1) * draws


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("draws", [1, 2])
def test_smooth_adv_without_noise_is_pgd_at_from_the_clean_image(norm, draws):
    model, (x, y) = small_net(), small_batch()
    pgd_at = PGDAT(norm=norm, **COMMON, start="clean")
    assert_same(
        gradient(SmoothAdv(norm=norm, **COMMON, sigma=0.0, draws=draws), model, x, y),
        gradient(pgd_at, model, x, y),
    )


def test_smooth_adv_is_an_l2_method_of_two_draws_by_default():
    objective = SmoothAdv(sigma=0.1, **COMMON)
    assert (objective.norm, objective.draws, objective.kernel.start) == ("L2", 2, "clean")
    assert (objective.kernel.noise, objective.kernel.project) == (0.0, "every")
    half = objective.scaled(0.5)
    assert (half.eps, half.step_size, half.sigma) == (0.125, 0.04, 0.1)


def test_smooth_adv_attacks_a_frozen_model_in_eval_mode_and_computes_its_loss_in_the_callers():
    model, (x, y) = small_net(), small_batch()
    modes = []
    model.train().register_forward_pre_hook(
        lambda module, _: modes.append((module.training, module.out.bias.requires_grad))
    )
    with torch.random.fork_rng():
        next(SmoothAdv(sigma=0.1, **COMMON)(model, x, y))
    assert modes == [(False, False)] * (4 * 2) + [(True, True)] * 2


# ---- common properties


def test_sigma_is_not_scaled_like_eps():
    for objective in NOISY[:2]:
        assert objective.scaled(0.1) is objective


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda: GaussianNoise(sigma=-0.1), "bad-value", "sigma is -0.1"),
        (lambda: GaussianNoise(sigma=float("nan")), "bad-value", "sigma is nan"),
        (lambda: SmoothTRADES(sigma=-0.1), "bad-value", "sigma is -0.1"),
        (lambda: SmoothTRADES(sigma=0.1, beta=-1.0), "bad-value", "beta is -1.0"),
        (lambda: SmoothAdv(sigma=-0.1, **COMMON), "bad-value", "sigma is -0.1"),
        (lambda: SmoothAdv(sigma=0.1, draws=0, **COMMON), "bad-value", "draws is 0; it must be a whole number >= 1"),
        (lambda: SmoothAdv(sigma=0.1, eps=-1, steps=1, step_size=1), "bad-value", "eps is -1"),
        (lambda: DESGD(eps=0.3, step_size=0.1, steps=0), "bad-value", "steps is 0"),
        (lambda: ATENT(**COMMON, average="median"), "unknown-name", "average is 'median'; known: exponential, uniform"),
        (
            lambda: PGDAT(**COMMON, start="nowhere"),
            "unknown-name",
            "start is 'nowhere'; known: uniform, ball, corner, blocks, near, clean",
        ),
    ],
)
def test_a_bad_value_is_refused_by_name(make, code, words):
    with pytest.raises(BadInput, match=words) as error:
        make()
    assert (error.value.code, error.value.field) == (code, words.partition(" ")[0])


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("{name: gaussian-noise, sigma: 1e-1}", GaussianNoise(sigma=0.1)),
        ("{name: smooth-trades, sigma: 0.1, beta: 2}", SmoothTRADES(sigma=0.1, beta=2.0)),
        (
            "{name: smooth-adv, norm: Linf, sigma: 0.1, eps: 0.25, steps: 4, step_size: 0.08, draws: 3}",
            SmoothAdv(norm="Linf", sigma=0.1, draws=3, **COMMON),
        ),
        ("{name: desgd, eps: 0.25, step_size: 0.08}", DESGD(eps=0.25, step_size=0.08)),
        (
            "{name: pgd-at, eps: 0.1, steps: 1, step_size: 0.1, start: clean}",
            PGDAT(eps=0.1, steps=1, step_size=0.1, start="clean"),
        ),
    ],
)
def test_a_recipe_may_name_them(objective, expected):
    recipe = recipes.load("digits-linf-pgd-at", ["name=mine", f"objective={objective}"])
    assert recipe.build_objective() == expected


# ---- DESGD and FGSM-AT, values of ATENT and PGD-AT


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "L2"},
        {"norm": "Linf"},
        {"norm": "L2", "noise": 0.02, "gamma": 0.1, "steps": 7},
        {"norm": "L2", "direction": "raw", "step_size": 2.0},
    ],
)
def test_desgd_has_the_gradient_of_the_mean_loss_over_its_iterates(options):
    objective = DESGD(**{"eps": 0.3, "step_size": 0.05} | options)
    model, (x, y) = small_net(), small_batch()
    chain = walk(objective.kernel, x, input_gradient(model, cross_entropy, y), generator())
    _, *points = (point.clone() for point in chain)
    assert len(points) == objective.terms == objective.steps == options.get("steps", 20)
    expected = gradient_of(sum(F.cross_entropy(model(point), y) for point in points) / len(points), model)
    model.passes = 0
    assert_same(gradient(objective, model, x, y), expected)
    assert model.passes == objective.steps + 1


def test_desgd_is_exact_in_float32():
    objective = DESGD(eps=0.3, step_size=0.05, steps=40)
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    _, *points = walk(objective.kernel, x, input_gradient(model, cross_entropy, y), generator())
    expected = gradient_of(sum(F.cross_entropy(model(point), y) for point in points) / 40, model)
    assert_same(gradient(objective, model, x, y), expected, 1e-4)


@pytest.mark.parametrize(
    ("norm", "direction", "pull", "start"),
    [("L2", "unit", "authors", "ball"), ("Linf", "sign", "coordinate", "corner")],
)
def test_desgds_chain_is_that_of_v1(norm, direction, pull, start):
    expected = Langevin(
        norm=NORMS[norm],
        eps=3.0,
        steps=20,
        step_size=0.01,
        direction=direction,
        noise=1e-3,
        gamma=1e-5,
        pull=pull,
        project="never",
        start=start,
    )
    assert DESGD(norm=norm, eps=3.0, step_size=0.01).kernel == expected


def test_uniform_weights_ignore_alpha_and_tolerance():
    objective = DESGD(eps=0.3, step_size=0.05, steps=5, alpha=0.9, tolerance=0.9)
    assert objective.weights == dict.fromkeys([1, 2, 3, 4, 5], 0.2)
    exponential = dataclasses.replace(objective, average="exponential", tolerance=0.0)
    assert list(exponential.weights.values()) == pytest.approx([0.9 * 0.1**k for k in (4, 3, 2, 1, 0)])


def test_desgds_terms_may_be_scaled():
    objective = DESGD(eps=0.3, step_size=0.05, steps=6)
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    usual = gradient(objective, model, x, y)
    for scale in (65536.0, 1 / 64, 1e-6):
        model.zero_grad()
        for term in objective(model, x, y, generator=generator()):
            (scale * term).backward()
        assert_same(gradient_vector(model) / scale, usual, 1e-4)


def test_one_step_of_pgd_at_from_the_clean_image_is_fgsm():
    objective = PGDAT(eps=0.2, steps=1, step_size=0.2, start="clean")
    model, (x, y) = small_net(), small_batch()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    adversary = (x + 0.2 * slope.sign()).clamp(0, 1)
    actual = objective.adversary(model, x, y, cross_entropy, None)
    torch.testing.assert_close(actual, adversary, rtol=0, atol=1e-12)
    assert_same(gradient(objective, model, x, y), gradient_of(F.cross_entropy(model(adversary), y), model))


@pytest.mark.parametrize(("norm", "start"), [("Linf", "uniform"), ("L2", "ball")])
def test_pgd_at_starts_at_random_by_default(norm, start):
    assert PGDAT(norm=norm, **COMMON).kernel.start == start
    assert PGDAT(norm=norm, **COMMON, start="corner").kernel.start == "corner"
