import ast
import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2, LINF, NORMS, gaussian, norm, per_example

SHAPES = [(1, 1), (3, 5), (2, 2, 3), (4, 1, 2, 3)]
BOTH = pytest.mark.parametrize("ball", [LINF, L2], ids=["Linf", "L2"])
PROPERTIES = settings(max_examples=40, deadline=None)
ROUNDING = 1e-12
ROOT = Path(__file__).resolve().parents[2]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def vectors(seed, shape, scale=1.0):
    return scale * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


@st.composite
def problems(draw):
    """Displacements of very different lengths and a radius that is one number, or one per example with zeros."""
    shape, seed = draw(st.sampled_from(SHAPES)), draw(st.integers(0, 2**32))
    delta = vectors(seed, shape, 10 ** draw(st.floats(-6, 6)))
    if draw(st.booleans()):
        return delta, draw(st.just(0.0) | st.floats(1e-6, 100))
    radii = draw(st.lists(st.sampled_from([0.0, 1e-5, 0.3, 2.0, 1e4]), min_size=shape[0], max_size=shape[0]))
    return delta, torch.tensor(radii, dtype=torch.float64)


@BOTH
@PROPERTIES
@given(problems())
def test_projection_lands_in_the_ball_and_stays(ball, problem):
    delta, eps = problem
    projected = ball.project(delta, eps)
    bound = eps + ROUNDING * (1 + eps)
    assert (ball.size(projected) <= bound).all()
    torch.testing.assert_close(ball.project(projected, eps), projected, rtol=ROUNDING, atol=0)


@BOTH
@PROPERTIES
@given(problems())
def test_projection_leaves_inner_points_bit_by_bit(ball, problem):
    delta, eps = problem
    inside = ball.size(delta) <= eps
    assert torch.equal(ball.project(delta, eps)[inside], delta[inside])
    shrunk = ball.project(delta, eps) * 0.999
    assert torch.equal(ball.project(shrunk, eps), shrunk)


@BOTH
@PROPERTIES
@given(problems(), st.integers(0, 2**32))
def test_projection_is_the_nearest_point(ball, problem, seed):
    """p is the nearest point of a convex set exactly if (delta - p) . (q - p) <= 0 for every q of the set."""
    delta, eps = problem
    projected = ball.project(delta, eps)
    other = ball.project(vectors(seed, delta.shape, 10.0), eps)
    scale = L2.size(delta - projected) * (L2.size(other) + L2.size(projected))
    assert (inner(delta - projected, other - projected) <= 1e-9 * scale).all()


@PROPERTIES
@given(problems())
def test_projection_in_closed_form(problem):
    delta, eps = problem
    bound = torch.as_tensor(eps, dtype=delta.dtype).expand(len(delta))
    for i, example in enumerate(delta):
        clamped = torch.minimum(torch.maximum(example, -bound[i]), bound[i])
        assert torch.equal(LINF.project(delta, eps)[i], clamped)
        factor = min(1.0, bound[i].item() / math.sqrt((example**2).sum().item()))
        torch.testing.assert_close(L2.project(delta, eps)[i], example * factor, rtol=1e-12, atol=0)


@BOTH
@PROPERTIES
@given(problems(), st.integers(0, 2**32))
def test_steepest_is_the_unit_step_that_a_linear_loss_likes_best(ball, problem, seed):
    gradient, _ = problem
    step = ball.steepest(gradient)
    dual = gradient.flatten(1).abs().sum(1) if ball == LINF else L2.size(gradient)
    torch.testing.assert_close(ball.size(step), torch.ones(len(gradient), dtype=torch.float64))
    torch.testing.assert_close(inner(gradient, step), dual, rtol=1e-12, atol=0)
    rival = ball.project(vectors(seed, gradient.shape), 1.0)
    assert (inner(gradient, rival) <= dual * (1 + ROUNDING)).all()


@BOTH
def test_a_zero_gradient_has_no_direction(ball):
    gradient = torch.tensor([[0.0, 0.0], [3.0, -4.0]])
    step = ball.steepest(gradient)
    assert step[0].tolist() == [0.0, 0.0]
    assert step[1].tolist() == pytest.approx([1.0, -1.0] if ball == LINF else [0.6, -0.8])


@BOTH
@PROPERTIES
@given(problems())
def test_each_example_is_on_its_own(ball, problem):
    delta, eps = problem
    radii = torch.as_tensor(eps, dtype=delta.dtype).expand(len(delta))
    for i in range(len(delta)):
        example, radius = delta[i : i + 1], radii[i].item()
        for batched, single in (
            (ball.size(delta), ball.size(example)),
            (ball.steepest(delta), ball.steepest(example)),
            (ball.project(delta, eps), ball.project(example, radius)),
        ):
            torch.testing.assert_close(batched[i : i + 1], single, rtol=1e-14, atol=0)


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
def test_size_is_the_norm_of_the_flattened_example(ball, shape):
    delta = vectors(1, shape)
    order = {"Linf": torch.inf, "L2": 2}[ball.name]
    expected = [torch.linalg.vector_norm(example.flatten(), order) for example in delta]
    torch.testing.assert_close(ball.size(delta), torch.stack(expected))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.4, torch.tensor(0.4), torch.tensor([0.0, 0.4, 2.0])])
def test_random_points_lie_in_the_ball(ball, dtype, eps):
    x = torch.zeros(3, 2, 4, dtype=dtype)
    state = torch.get_rng_state()
    point = ball.random(x, eps, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert point.dtype is dtype
    assert point.shape == x.shape
    assert (ball.size(point) <= eps + 1e-6).all()
    assert torch.equal(point, ball.random(x, eps, generator()))
    assert not torch.equal(point, ball.random(x, eps, generator(1)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert torch.equal(point, ball.random(x, eps, None))


def test_linf_points_are_uniform_in_the_cube():
    points = LINF.random(torch.zeros(20_000, 2, dtype=torch.float64), 0.3, generator())
    share = torch.histc(points, bins=10, min=-0.3, max=0.3) / points.numel()
    assert (share - 0.1).abs().max() < 0.005
    assert torch.corrcoef(points.T)[0, 1].abs() < 0.03


def test_l2_points_are_normal_ones_projected():
    x = torch.zeros(20_000, 2, dtype=torch.float64)
    points = L2.random(x, 0.5, generator())
    torch.testing.assert_close(points, L2.project(gaussian(x, generator()), 0.5), rtol=0, atol=0)
    on_the_sphere = (L2.size(points) > 0.5 - 1e-9).double().mean().item()
    assert on_the_sphere == pytest.approx(math.exp(-(0.5**2) / 2), abs=0.01)  # the tail of a Rayleigh variable
    assert points.mean(0).abs().max() < 0.01


def test_a_radius_broadcasts_against_its_examples():
    x = torch.zeros(3, 2, 4)
    assert per_example(0.3, x) == 0.3
    assert per_example(torch.tensor(0.3), x).dim() == 0
    radii = per_example(torch.tensor([1, 2, 3]), x)
    assert radii.shape == (3, 1, 1)
    assert radii.dtype is x.dtype


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1,)])
def test_a_radius_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(BadInput, match=r"per example must have shape \(3,\), not \(") as error:
        LINF.project(torch.zeros(3, 2), torch.ones(shape))
    assert error.value.code == "bad-shape"


def test_the_norms_by_name():
    assert NORMS == {"Linf": LINF, "L2": L2}
    assert {name: norm(name) for name in NORMS} == NORMS
    assert [(n.name, n.direction, n.start) for n in (LINF, L2)] == [("Linf", "sign", "uniform"), ("L2", "unit", "ball")]
    with pytest.raises(BadInput, match="unknown norm 'linf'; known: Linf, L2") as error:
        norm("linf")
    assert (error.value.code, error.value.field) == ("unknown-name", "norm")


@BOTH
def test_a_copy_of_a_norm_is_the_same_norm(ball):
    for twin in (copy.deepcopy(ball), pickle.loads(pickle.dumps(ball))):
        assert twin == ball
        assert [other == twin for other in NORMS.values()] == [other.name == ball.name for other in NORMS.values()]


def names_of_norms_in(part):
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(part)
        if isinstance(node, ast.Name | ast.Attribute)
    } & {"LINF", "L2"}


def identity_comparisons(text):
    """The lines on which a norm is compared by `is`, to which a copy or a pickled norm is another one."""
    comparisons = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Compare)]
    return [
        node.lineno
        for node in comparisons
        if any(isinstance(sign, ast.Is | ast.IsNot) for sign in node.ops) and names_of_norms_in(node)
    ]


def test_norms_are_compared_by_value_everywhere():
    assert identity_comparisons("a = 1\nb = norm is L2\nc = norms.LINF is not norm\nd = norm == L2") == [2, 3]
    files = [path for folder in ("atent_ext", "eval", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert {path: lines for path in files if (lines := identity_comparisons(path.read_text(encoding="utf-8")))} == {}
