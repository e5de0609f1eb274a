import copy
import dataclasses
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import LinearTwoClass, small_batch, small_net
from torch.utils._python_dispatch import TorchDispatchMode

from atent_ext.attacks.langevin import Langevin, atent, fgsm, hardest, input_gradient, last_iterate, pgd, walk
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF, norm
from atent_ext.core.validate import shown

FREE = (-float("inf"), float("inf"))
RAW = Langevin(
    norm=L2, eps=1.0, steps=400, step_size=0.13, direction="raw", noise=0.7, gamma=2.5, project="never", box=FREE
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def last(kernel, x, gradient, seed=0):
    return list(walk(kernel, x, gradient, generator(seed)))[-1]


@pytest.mark.parametrize("pull", ["paper", "authors"])
def test_raw_kernel_samples_the_stationary_law_at_finite_step(pull):
    """Spec 1: mean x + H^-1 grad L(x), covariance noise^2 H^-1 (I - eta H / 2)^-1 with H = gamma I - hess L."""
    g = generator(3)
    basis = torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.tensor([-1.4, -0.6, 0.3, 0.9, 1.7], dtype=torch.float64)) @ basis.T
    slope = torch.randn(5, generator=g, dtype=torch.float64)
    center = torch.randn(5, generator=g, dtype=torch.float64)
    x = center.expand(12_000, 5)
    gamma = RAW.gamma if pull == "paper" else 0.41  # the authors' pull is not times the step: gamma / eta instead
    effective = gamma if pull == "paper" else gamma / RAW.step_size
    kernel = dataclasses.replace(RAW, gamma=gamma, pull=pull)

    final = last(kernel, x, lambda moving: (moving - center) @ hessian + slope)

    identity = torch.eye(5, dtype=torch.float64)
    h = effective * identity - hessian
    covariance = RAW.noise**2 * torch.linalg.inv(h) @ torch.linalg.inv(identity - RAW.step_size * h / 2)
    mean = center + torch.linalg.solve(h, slope)
    assert torch.linalg.eigvalsh(h).min() > 0
    assert RAW.step_size * torch.linalg.eigvalsh(h).max() < 2
    error = torch.linalg.norm(torch.cov(final.T) - covariance) / torch.linalg.norm(covariance)
    assert error < 0.05
    assert ((final.mean(0) - mean).abs() / covariance.diagonal().sqrt()).max() < 0.05


SHARES = {
    "constant": lambda k, steps: 1.0,
    "cosine": lambda k, steps: 0.5 + 0.5 * math.cos(math.pi * k / steps),
    "linear": lambda k, steps: (steps - k) / steps,
}


@pytest.mark.parametrize("schedule", SHARES)
def test_a_schedule_scales_step_size_and_temperature(schedule):
    """On a quadratic loss, with the share s of step size eta and temperature T: the mean m grows by s eta (g - H m),
    and the variance C becomes (1 - s eta H)^2 C + 2 (s eta) (s T)."""
    steps, noise, eta = 7, 0.7, 0.3
    curvature, slope = torch.tensor([0.4, 1.1, 2.3], dtype=torch.float64), torch.tensor([0.8, -0.5, 0.3]).double()
    kernel = dataclasses.replace(RAW, steps=steps, step_size=eta, noise=noise, gamma=0.0, schedule=schedule)
    x = torch.zeros(40_000, 3, dtype=torch.float64)

    final = last(kernel, x, lambda moving: slope - curvature * moving)
    still = last(dataclasses.replace(kernel, noise=0.0), x[:1], lambda moving: slope - curvature * moving)

    mean, variance = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(steps):
        share = SHARES[schedule](k, steps)
        keeps = 1 - share * eta * curvature
        mean = mean * keeps + share * eta * slope
        variance = variance * keeps**2 + 2 * share * eta * share * noise**2
    torch.testing.assert_close(still[0], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(final.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(final.var(0), variance, rtol=0.03, atol=0)


@pytest.mark.parametrize("name", ["Linf", "L2"])
@pytest.mark.parametrize("per_example", [False, True])
def test_a_constant_schedule_is_the_formula_bit_for_bit(name, per_example):
    x, y = small_batch(3, dtype=torch.float32)
    step = torch.tensor([0.03, 0.05, 0.07]) if per_example else 0.05
    kernel = atent(norm(name), 0.2, 4, step, noise=0.03, gamma=0.0)
    gradient = input_gradient(small_net(dtype=torch.float32), cross_entropy, y)
    source, wide = generator(), step.reshape(3, 1, 1, 1) if per_example else step
    moving = kernel.begin(x, source)
    for _ in range(4):
        moved = moving + wide * kernel.norm.steepest(gradient(moving))
        moved = moved + math.sqrt(2) * 0.03 * wide**0.5 * torch.randn(x.shape, generator=source)
        moving = (x + kernel.norm.project(moved - x, 0.2)).clamp(0, 1)
    assert kernel.schedule == "constant"
    assert torch.equal(last(kernel, x, gradient), moving)


@pytest.mark.parametrize("name", ["Linf", "L2"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_an_annealed_chain_starts_with_steps_of_eps_and_reaches_the_optimum(name, schedule):
    model = LinearTwoClass((5,))
    x, y = torch.randn(4, 5, generator=generator(1), dtype=torch.float64), torch.arange(4) % 2
    kernel = atent(norm(name), 0.7, 20, noise=0.0, box=FREE, schedule=schedule)
    assert (kernel.step_size, kernel.gamma, kernel.project) == (0.7 if name == "Linf" else 1.4, 0.0, "every")
    adversary = last_iterate(kernel, model, x, y, cross_entropy, generator())
    torch.testing.assert_close(cross_entropy(model(adversary), y), model.worst_loss(x, y, name, 0.7), rtol=0, atol=1e-4)


def test_what_atent_is_by_default_and_with_a_step_size():
    annealed, given = atent(L2, 0.3, 50), atent(L2, 0.3, 50, 0.02)
    assert (annealed.schedule, annealed.step_size, annealed.gamma, annealed.noise) == ("cosine", 0.6, 0.0, 1e-3)
    assert (given.schedule, given.step_size, given.gamma) == ("constant", 0.02, 0.05)
    assert atent(LINF, 0.3, 50, schedule="constant").step_size == pytest.approx(2.5 * 0.3 / 50)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 3, 2)])
@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize(("name", "steps", "step_size"), [("Linf", 20, 0.07), ("L2", 100, 0.07)])
def test_pgd_reaches_the_optimum_of_a_linear_model(shape, count, name, steps, step_size):
    model = LinearTwoClass(shape)
    x = torch.randn(count, *shape, generator=generator(1), dtype=torch.float64)
    y = torch.arange(count) % 2
    kernel = pgd(norm(name), 0.7, steps, step_size, box=FREE)
    adversary = last_iterate(kernel, model, x, y, cross_entropy, generator())
    reached = cross_entropy(model(adversary), y)
    torch.testing.assert_close(reached, model.worst_loss(x, y, name, 0.7), rtol=0, atol=1e-4)


def test_targeted_descends_to_the_smallest_loss():
    model = LinearTwoClass((5,))
    x = torch.randn(3, 5, generator=generator(1), dtype=torch.float64)
    kernel = dataclasses.replace(pgd(LINF, 0.4, 20, 0.05, box=FREE), targeted=True)
    adversary = last_iterate(kernel, model, x, torch.ones(3, dtype=torch.long), cross_entropy, generator())
    torch.testing.assert_close(adversary, x + 0.4 * model.w.sign().detach())


def test_fgsm_is_one_signed_step_of_size_eps():
    model = small_net()
    x, y = small_batch()
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(leaf), y).mean(), leaf)
    adversary = last_iterate(fgsm(LINF, 0.1), model, x, y, cross_entropy)
    torch.testing.assert_close(adversary, (x + 0.1 * slope.sign()).clamp(0, 1), rtol=0, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["Linf", "L2"]),
    project=st.sampled_from(["every", "last"]),
    start=st.sampled_from(["uniform", "ball", "corner", "blocks", "near", "clean"]),
    direction=st.sampled_from(["sign", "unit", "unit-or-random", "raw"]),
    pull=st.sampled_from(["authors", "paper", "coordinate"]),
    box_first=st.booleans(),
    eps=st.floats(0, 3),
    noise=st.floats(0, 2),
)
def test_every_setting_ends_inside_ball_and_box(name, project, start, direction, pull, box_first, eps, noise):
    kernel = Langevin(
        norm=norm(name),
        eps=eps,
        steps=3,
        step_size=0.8,
        direction=direction,
        noise=noise,
        gamma=0.2,
        pull=pull,
        project=project,
        start=start,
        box_first=box_first,
    )
    x, y = small_batch(4)
    points = list(walk(kernel, x, input_gradient(small_net(), cross_entropy, y), generator()))
    assert len(points) == 4
    assert all(bool(((p >= 0) & (p <= 1)).all()) for p in points)
    assert kernel.norm.size(points[-1] - x).max() <= eps + 1e-9


@pytest.mark.parametrize("name", ["Linf", "L2"])
def test_a_result_does_not_depend_on_the_other_examples(name):
    model = small_net()
    x, y = small_batch(6)
    kernel = dataclasses.replace(pgd(norm(name), 0.2, 5, 0.07), start="clean")
    batched = last_iterate(kernel, model, x, y, cross_entropy)
    alone = torch.cat([last_iterate(kernel, model, x[i : i + 1], y[i : i + 1], cross_entropy) for i in range(6)])
    torch.testing.assert_close(batched, alone, rtol=0, atol=1e-12)


def test_radius_and_step_may_differ_per_example():
    x, y = small_batch(3)
    eps = torch.tensor([0.0, 0.05, 0.2], dtype=torch.float64)
    model = small_net()
    both = last_iterate(pgd(LINF, eps, 4, eps / 2, start="clean"), model, x, y, cross_entropy)
    for i in range(3):
        kernel = pgd(LINF, float(eps[i]), 4, float(eps[i]) / 2, start="clean")
        single = last_iterate(kernel, model, x[i : i + 1], y[i : i + 1], cross_entropy)
        torch.testing.assert_close(both[i : i + 1], single, rtol=0, atol=1e-12)


def test_starts_lie_where_they_say():
    x = torch.full((2000, 3), 0.5, dtype=torch.float64)

    def begin(start, eps=0.2):
        kernel = dataclasses.replace(pgd(LINF, eps, 1, 0.1), start=start)
        return kernel.begin(x, generator()) - x

    uniform = begin("uniform")
    assert uniform.abs().max() <= 0.2
    assert uniform.var().item() == pytest.approx(0.2**2 / 3, rel=0.05)
    torch.testing.assert_close(begin("corner").abs(), torch.full_like(x, 0.2))
    assert L2.size(begin("ball")).max() <= 0.2 + 1e-12
    assert begin("near").std().item() == pytest.approx(1e-3, rel=0.05)
    assert begin("clean").abs().max() == 0
    # The start is inside the box too, which the authors' code forgets.
    assert begin("corner", eps=0.9).abs().max() == pytest.approx(0.5)


def test_the_start_blocks_is_a_corner_with_one_sign_in_each_block_of_four_by_four_pixels():
    x = torch.full((200, 2, 10, 7), 0.5, dtype=torch.float64)
    delta = dataclasses.replace(pgd(LINF, 0.2, 1, 0.1), start="blocks").begin(x, generator()) - x
    torch.testing.assert_close(delta.abs(), torch.full_like(x, 0.2))
    for top in (0, 4, 8):
        for left in (0, 4):
            block = delta[:, :, top : top + 4, left : left + 4].flatten(2)
            assert torch.equal(block, block[..., :1].expand_as(block))
    signs = delta[:, :, ::4, ::4].sign().flatten(1)  # 12 blocks, drawn apart
    assert signs.mean().item() == pytest.approx(0, abs=0.1)
    assert (signs.T @ signs / 200 - torch.eye(12, dtype=torch.float64)).abs().max() < 0.3
    with pytest.raises(BadInput, match=r"'blocks' and the inputs have shape \(200, 20\)") as error:
        dataclasses.replace(pgd(LINF, 0.2, 1, 0.1), start="blocks").begin(torch.zeros(200, 20))
    assert (error.value.code, error.value.field) == ("bad-shape", "start")


def test_the_hardest_start_is_each_examples_own_worst_of_the_draws():
    x, y = small_batch(5)
    model = small_net()
    kernel = dataclasses.replace(pgd(LINF, 0.3, 1, 0.1), start="corner")
    draw = generator(7)
    drawn = torch.stack([kernel.begin(x, draw) for _ in range(6)])
    losses = torch.stack([cross_entropy(model(each), y) for each in drawn])
    start = hardest(kernel, x, lambda moving: cross_entropy(model(moving), y), 6, generator(7))
    worst = losses.argmax(0)
    assert len(worst.unique()) > 1
    torch.testing.assert_close(start, drawn[worst, torch.arange(5)], rtol=0, atol=0)


def test_a_loss_that_is_nan_hides_no_harder_start():
    x = torch.zeros(1, 20)
    losses = iter(torch.tensor([[1.0], [float("nan")], [3.0], [2.0]]))
    kernel = dataclasses.replace(pgd(LINF, 0.3, 1, 0.1), start="corner", box=FREE)
    draw = generator(7)
    drawn = [kernel.begin(x, draw) for _ in range(4)]
    assert len(torch.cat(drawn).unique(dim=0)) == 4
    start = hardest(kernel, x, lambda moving: next(losses), 4, generator(7))
    assert torch.equal(start, drawn[2])
    with pytest.raises(BadInput) as error:
        hardest(kernel, x, lambda moving: next(losses), 0)
    assert (error.value.code, error.value.field) == ("bad-value", "starts")


def test_a_single_start_costs_no_pass():
    x, _ = small_batch(5)
    kernel = pgd(LINF, 0.3, 1, 0.1)

    def none(moving):
        raise AssertionError("a pass")

    assert torch.equal(hardest(kernel, x, none, 1, generator(7)), kernel.begin(x, generator(7)))


def test_coordinate_pull_moves_only_the_farthest_coordinate():
    kernel = Langevin(
        norm=LINF, eps=9.0, steps=1, step_size=0.5, direction="raw", gamma=0.25, pull="coordinate", box=FREE
    )
    x = torch.zeros(2, 3)
    moving = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.1, -0.2]])
    moved = kernel.step(x, moving, torch.zeros(2, 3), k=0)
    torch.testing.assert_close(moved, torch.tensor([[1.0, -2.75, 2.0], [0.25, 0.1, -0.2]]))


def test_noise_has_the_papers_scale():
    kernel = dataclasses.replace(RAW, gamma=0.0, steps=1, noise=0.3, step_size=0.05)
    x = torch.zeros(50_000, 2, dtype=torch.float64)
    assert last(kernel, x, torch.zeros_like).std().item() == pytest.approx((2 * 0.05) ** 0.5 * 0.3, rel=0.01)


@pytest.mark.parametrize("tiny", [1e-30, 1e-42])
def test_unit_direction_survives_tiny_gradients(tiny):
    slope = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * tiny
    direction = L2.steepest(slope)
    torch.testing.assert_close(direction[0], torch.tensor([0.6, 0.8]), rtol=0, atol=2e-2 if tiny < 1e-40 else 1e-6)
    assert direction[1].tolist() == [0.0, 0.0]


def test_unit_or_random_leaves_a_flat_point():
    kernel = dataclasses.replace(pgd(L2, 1.0, 1, 0.1, box=FREE, start="clean"), direction="unit-or-random")
    moved = kernel.step(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4), k=0, generator=generator())
    torch.testing.assert_close(L2.size(moved), torch.full((3,), 0.1))


def test_the_model_and_the_random_state_are_left_alone():
    model = small_net(norm=True).train()
    model.norm.eval()
    model.out.bias.requires_grad_(False)
    x, y = small_batch()
    state = torch.get_rng_state()
    with torch.no_grad():
        last_iterate(pgd(LINF, 0.1, 3, 0.05), model.eval(), x, y, cross_entropy, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]


def test_parameters_thaw_after_an_exception():
    model = small_net()
    x, y = small_batch()
    with pytest.raises(BadInput, match=r"labels reach 10\d, for a model of 4 classes") as error:
        last_iterate(pgd(LINF, 0.1, 3, 0.05), model, x, y + 100, cross_entropy)
    assert (error.value.code, error.value.field) == ("bad-value", "labels")
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("norm", "Linf", "bad-type"),
        ("eps", -0.1, "bad-value"),
        ("eps", float("nan"), "bad-value"),
        ("eps", torch.tensor([0.1, -1.0]), "bad-value"),
        ("steps", 0, "bad-value"),
        ("step_size", float("inf"), "bad-value"),
        ("noise", -1.0, "bad-value"),
        ("direction", "up", "unknown-name"),
        ("start", "moon", "unknown-name"),
        ("pull", "push", "unknown-name"),
        ("project", "often", "unknown-name"),
        ("schedule", "sine", "unknown-name"),
        ("box", (1.0, 0.0), "bad-value"),
    ],
)
def test_invalid_settings_are_refused(field, value, code):
    with pytest.raises(BadInput, match=f"^{field} is {re.escape(shown(value))}") as error:
        dataclasses.replace(RAW, **{field: value})
    assert (error.value.code, error.value.field) == (code, field)


def test_a_radius_per_example_must_fit_the_batch():
    x, y = small_batch(7)
    with pytest.raises(BadInput, match=r"shape \(7,\), not \(3,\)") as error:
        last_iterate(pgd(LINF, torch.full((3,), 0.1), 2, 0.1), small_net(), x, y, cross_entropy)
    assert error.value.code == "bad-shape"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda ball: pickle.loads(pickle.dumps(ball))])
@pytest.mark.parametrize("ball", [LINF, L2], ids=["Linf", "L2"])
def test_a_copied_norm_gives_the_same_kernel(ball, copied):
    assert atent(copied(ball), 0.3, 40) == atent(ball, 0.3, 40)
    assert pgd(copied(ball), 0.3, 40) == pgd(ball, 0.3, 40)
    assert copied(atent(ball, 0.3, 40)) == atent(ball, 0.3, 40)


def test_unknown_norm():
    with pytest.raises(BadInput, match="unknown norm 'L7'") as error:
        norm("L7")
    assert (error.value.code, error.value.field) == ("unknown-name", "norm")


@pytest.mark.parametrize("steps", [20, 40, 80, 200])
def test_the_usual_l2_step_of_atent_as_an_attack_outweighs_its_pull(steps):
    model = LinearTwoClass((5,))
    x, y = 0.5 * torch.ones(3, 5, dtype=torch.float64), torch.tensor([0, 1, 0])
    kernel = atent(L2, 0.1, steps, noise=0.0, start="clean", schedule="constant")
    adversary = last_iterate(kernel, model, x, y, cross_entropy)
    assert kernel.step_size > kernel.gamma * 0.1
    torch.testing.assert_close((adversary - x).norm(dim=1), torch.full((3,), 0.1, dtype=torch.float64))


def test_the_default_step_size_refuses_an_invalid_radius():
    with pytest.raises(BadInput) as error:
        atent(L2, "a", 3)
    assert (error.value.code, error.value.field) == ("bad-type", "eps")
    with pytest.raises(BadInput) as error:
        pgd(LINF, 0.3, "a")
    assert (error.value.code, error.value.field) == ("bad-type", "steps")


# What a GPU would have to wait for.


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host has to read before it can go on."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waiting = (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        )
        by_mask = func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1])
        self.count += func in waiting or by_mask
        return func(*args, **(kwargs or {}))


def test_what_is_counted_as_waiting():
    with Waits() as waits:
        value = torch.ones(3).sum()
        assert waits.count == 0
        assert float(value) == 3
        assert bool(value > 1)
        value.reshape(1).nonzero()
        value.reshape(1)[torch.tensor([True])]
    assert waits.count == 4


@pytest.mark.parametrize("direction", ["sign", "unit", "unit-or-random", "raw"])
@pytest.mark.parametrize(("pull", "project"), [("coordinate", "every"), ("authors", "last"), ("paper", "never")])
def test_the_host_waits_for_nothing_inside_the_loop(direction, pull, project):
    x, y = small_batch()
    norm = LINF if direction == "sign" else L2
    kernel = Langevin(
        **{"norm": norm, "eps": 0.3, "steps": 4, "step_size": 0.1, "direction": direction, "noise": 0.01},
        **{"gamma": 0.1, "pull": pull, "project": project, "start": norm.start},
    )
    with Waits() as waits:
        last_iterate(kernel, small_net(), x, y, cross_entropy, generator())
    assert waits.count == 0
