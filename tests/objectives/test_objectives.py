import dataclasses

import pytest
import torch
import torch.nn.functional as F
from problems import gradient_vector, small_batch, small_net

from atent_ext.attacks.langevin import hardest, input_gradient, walk
from atent_ext.core.errors import BadInput, TermsCollected
from atent_ext.core.losses import cross_entropy
from atent_ext.objectives import ATENT, MART, PGDAT, TRADES, Standard

COMMON = {"eps": 0.25, "steps": 4, "step_size": 0.08}


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def accumulate(objective, model, x, y, seed=5, scale=1.0):
    """The weight gradient that a user's own loop accumulates."""
    model.zero_grad()
    for term in objective(model, x, y, generator=generator(seed)):
        (scale * term).backward()
    return gradient_vector(model)


def naive_atent(objective, model, x, y, seed=5):
    """The authors' algorithm: K graphs are kept for the running average and one backward pass. Returns the gradient."""
    model.zero_grad()
    points = walk(objective.kernel, x, input_gradient(model, cross_entropy, y), generator(seed))
    next(points)
    average = torch.zeros((), dtype=x.dtype)
    for point in points:
        average = (1 - objective.alpha) * average + objective.alpha * F.cross_entropy(model(point), y)
    average.backward()
    return gradient_vector(model)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("alpha", [0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_atent_is_exact_at_one_more_pass_than_steps(norm, alpha, steps):
    objective = ATENT(norm=norm, eps=0.3, steps=steps, step_size=0.07, alpha=alpha, noise=0.02, tolerance=0.0)
    model, (x, y) = small_net(), small_batch()
    expected = naive_atent(objective, model, x, y)
    model.passes = 0
    actual = accumulate(objective, model, x, y)
    assert relative(actual, expected) < 1e-9
    assert model.passes == steps + 1
    assert objective.terms == steps
    shortened = dataclasses.replace(objective, tolerance=1e-3)
    assert relative(accumulate(shortened, model, x, y), expected) < 5e-3


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("options", [{}, {"direction": "raw", "step_size": 3.0}, {"schedule": "cosine"}])
def test_atent_is_exact_in_float32_over_forty_steps(norm, options):
    settings = {"norm": norm, "eps": 0.3, "steps": 40, "step_size": 0.02, "noise": 1e-3, "tolerance": 0.0} | options
    objective = ATENT(**settings)
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    expected = naive_atent(objective, model, x, y)
    model.passes = 0
    assert relative(accumulate(objective, model, x, y), expected) < 1e-4
    assert model.passes == 41


@pytest.mark.parametrize("scale", [65536.0, 1 / 64, 1e-38])
def test_atent_does_not_depend_on_how_the_caller_scales_the_loss(scale):
    objective = ATENT(norm="L2", eps=0.3, steps=6, step_size=0.05, tolerance=0.0)
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    points = []
    watch = model.register_forward_pre_hook(lambda _, inputs: points.append(inputs[0].detach().clone()))
    accumulate(objective, model, x, y)
    usual = points[-1]
    accumulate(objective, model, x, y, scale=scale)
    watch.remove()
    torch.testing.assert_close(points[-1], usual, rtol=0, atol=1e-5)


def test_atent_keeps_three_iterates_by_default():
    objective = ATENT(eps=0.3, steps=40, step_size=0.01)
    assert list(objective.weights) == [38, 39, 40]
    assert list(objective.weights.values()) == pytest.approx([0.009, 0.09, 0.9])
    assert objective.terms == 3
    assert ATENT(eps=0.3, steps=40, step_size=0.01, alpha=1.0, tolerance=0.0).terms == 1


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_atent_with_alpha_one_and_pgds_settings_is_pgd_at(norm):
    start = {"Linf": "uniform", "L2": "ball"}[norm]
    pgd_at = PGDAT(norm=norm, **COMMON)
    atent = ATENT(norm=norm, **COMMON, alpha=1.0, noise=0.0, gamma=0.0, project="every", start=start, inner_mode="eval")
    x, y = small_batch()
    gradients = []
    for objective in (pgd_at, atent):
        model = small_net(norm=True).train()  # a fresh network: a pass in train mode updates the running statistics
        model.drop.p = 0.0
        gradients.append(accumulate(objective, model, x, y))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@pytest.mark.parametrize("inner_mode", ["train", "eval"])
def test_atent_continues_from_the_hardest_of_its_starts(inner_mode):
    objective = ATENT(**COMMON, noise=0.02, tolerance=0.0, starts=5, start="blocks", inner_mode=inner_mode)
    model, (x, y) = small_net(), small_batch()
    draws = generator()
    first = hardest(objective.kernel, x, lambda moving: cross_entropy(model(moving), y), 5, draws)
    points = list(walk(objective.kernel, x, input_gradient(model, cross_entropy, y), draws, first))
    model.zero_grad()
    sum(weight * F.cross_entropy(model(points[j]), y) for j, weight in objective.weights.items()).backward()
    expected = gradient_vector(model)
    model.passes, modes = 0, []
    model.drop.p = 0.0
    model.train()
    watch = model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    assert relative(accumulate(objective, model, x, y), expected) < 1e-9
    watch.remove()
    assert modes[:5] == [inner_mode == "train"] * 5
    assert model.passes == 5 + COMMON["steps"] + (1 if inner_mode == "train" else COMMON["steps"])
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_choosing_a_start_leaves_no_weights_without_gradient_in_the_autocast_cache():
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    for starts in (1, 3):
        with torch.autocast("cpu", torch.bfloat16):
            accumulate(ATENT(**COMMON, starts=starts), model, x, y)
        sizes = [float(parameter.grad.norm()) for parameter in model.parameters()]
        assert min(sizes) > 1e-3, sizes


def test_collecting_the_terms_first_raises_terms_collected():
    objective = ATENT(**COMMON)
    model, (x, y) = small_net(), small_batch()
    with pytest.raises(TermsCollected, match="for term in objective"):
        list(objective(model, x, y))
    with pytest.raises(TermsCollected):
        sum(objective(model, x, y)).backward()


@pytest.mark.parametrize("inner_mode", ["train", "eval"])
def test_atents_inner_mode_is_the_mode_of_the_chain(inner_mode):
    """With `eval` the chain does not see dropout; the terms do."""
    objective = ATENT(**COMMON, start="clean", noise=0.0, inner_mode=inner_mode)
    model, (x, y) = small_net(), small_batch()
    reference = list(walk(objective.kernel, x, input_gradient(model, cross_entropy, y)))[-1]
    model.train()
    seen = []
    watch = model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0].detach())))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        accumulate(objective, model, x, y)
    watch.remove()
    assert model.training
    assert seen[-1][0] is True
    assert torch.equal(seen[-1][1], reference) is (inner_mode == "eval")
    assert any(not training for training, _ in seen) is (inner_mode == "eval")


def test_trades_l2_clamps_then_projects_and_leaves_flat_points():
    kernel = TRADES(norm="L2", **COMMON).kernel
    assert kernel.box_first
    assert kernel.direction == "unit-or-random"
    assert kernel.start == "near"


@pytest.mark.parametrize("method", [PGDAT, TRADES, MART, ATENT])
def test_the_steps_of_the_inner_maximisation_can_fall(method):
    model, (x, y) = small_net(), small_batch()
    objective = method(**COMMON, schedule="linear")
    lengths = []
    first, *others = walk(objective.kernel, x, lambda moving: torch.ones_like(moving), generator(), x)
    for before, after in zip([first, *others], others, strict=False):
        lengths.append(float((after - before).abs().max()))
    expected = [0.08, 0.06, 0.04, 0.02]
    assert lengths == pytest.approx(expected, abs=5e-3)  # ATENT adds noise of 1e-3
    usual = accumulate(method(**COMMON), model, x, y)
    assert relative(accumulate(objective, model, x, y), usual) > 1e-6


@pytest.mark.parametrize("method", [TRADES, MART])
def test_gradients_stay_finite_when_a_probability_underflows(method):
    """The reference codes give NaN here: a natural probability of exactly 0 in float32."""
    model = small_net(dtype=torch.float32)
    with torch.no_grad():
        model.out.bias += torch.tensor([0.0, 200.0, -200.0, 0.0])
    x, y = small_batch(dtype=torch.float32)
    assert torch.isfinite(accumulate(method(**COMMON), model, x, y)).all()


def test_scaling_grows_the_ball_and_the_step():
    objective = PGDAT(**COMMON).scaled(0.5)
    assert (objective.eps, objective.step_size, objective.steps) == (0.125, 0.04, 4)
    assert Standard().scaled(0.5) == Standard()


@pytest.mark.parametrize(
    ("make", "code", "field", "words"),
    [
        (lambda: PGDAT(eps=-1, steps=1, step_size=0.1), "bad-value", "eps", "eps is -1"),
        (lambda: PGDAT(eps=0.1, steps=0, step_size=0.1), "bad-value", "steps", "steps is 0"),
        (lambda: PGDAT(norm="L7", eps=0.1, steps=1, step_size=0.1), "unknown-name", "norm", "unknown norm 'L7'"),
        (lambda: ATENT(**COMMON, alpha=0.0), "bad-value", "alpha", r"alpha is 0.0; it must lie in \(0, 1\]"),
        (lambda: ATENT(**COMMON, tolerance=1.0), "bad-value", "tolerance", r"tolerance is 1.0; .* lie in \[0, 0.9\]"),
        (lambda: ATENT(**COMMON, noise=float("nan")), "bad-value", "noise", "noise is nan"),
        (lambda: ATENT(**COMMON, starts=0), "bad-value", "starts", "starts is 0"),
        (
            lambda: ATENT(**COMMON, starts=2, start="clean"),
            "conflict",
            "starts",
            "starts is 2 and the start is 'clean', which is always the same; name another",
        ),
        (lambda: TRADES(**COMMON, beta=-1.0), "bad-value", "beta", "beta is -1.0"),
        (lambda: MART(**COMMON, inner_mode="sleep"), "unknown-name", "inner_mode", "inner_mode is 'sleep'"),
    ],
)
def test_a_bad_value_is_refused_by_name(make, code, field, words):
    with pytest.raises(BadInput, match=words) as error:
        make()
    assert (error.value.code, error.value.field) == (code, field)


def test_an_empty_batch_is_refused_in_words():
    with pytest.raises(BadInput, match=r"^the batch is empty; a loss needs at least one image$"):
        next(Standard()(small_net(), *(part[:0] for part in small_batch())))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_nan_gradient_does_not_look_like_robustness(norm):
    """sign(NaN) is 0 in torch: x' would stay at x, as if the model were robust there."""

    def broken(x):
        flat = x.flatten(1)
        return torch.where(flat > 0, flat.log(), torch.full_like(flat, -4.0))[:, :4]

    x, y = small_batch()
    objective = TRADES(norm=norm, eps=0.1, steps=1, step_size=0.1)
    adversary = objective.adversary(broken, 0 * x, y, cross_entropy, generator())
    assert adversary.isnan().flatten(1).any(1).all()
