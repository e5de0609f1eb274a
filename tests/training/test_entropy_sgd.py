import copy
import math

import pytest
import torch
from torch import nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.objectives import Standard
from atent_ext.training import loop, recipes
from atent_ext.training.entropy_sgd import EntropySGD

SETTINGS = {"lr": 0.7, "steps": 4, "gamma": 0.3, "h": 0.2, "noise": 0.0, "average": 0.6}


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


class Quadratic:
    """1/2 w' H w over two parameters that make up w. It is the closure of an optimizer and records its losses."""

    def __init__(self, seed=0):
        root = torch.randn(5, 5, generator=generator(seed), dtype=torch.float64)
        self.hessian = root @ root.T / 5 + 0.4 * torch.eye(5, dtype=torch.float64)
        start = torch.randn(5, generator=generator(seed + 1), dtype=torch.float64)
        self.parameters = [nn.Parameter(start[:2].clone()), nn.Parameter(start[2:].clone())]
        self.losses = []

    @property
    def w(self):
        return torch.cat([p.detach() for p in self.parameters])

    def __call__(self):
        for p in self.parameters:
            p.grad = None
        w = torch.cat(self.parameters)
        loss = w @ self.hessian @ w / 2
        loss.backward()
        self.losses.append(loss.item())
        return loss.item()

    def direction(self, w, steps, gamma, h, average):
        """w - mu of the noiseless recursion, out of powers of its matrix: w'_k = p + A^k (w - p)."""
        inverse = torch.linalg.inv(self.hessian + gamma * torch.eye(5, dtype=torch.float64))
        rest = gamma * inverse @ w
        step = torch.eye(5, dtype=torch.float64) - h * (self.hessian + gamma * torch.eye(5, dtype=torch.float64))
        points = [rest + torch.linalg.matrix_power(step, k) @ (w - rest) for k in range(1, steps + 1)]
        weighted = sum((1 - average) * average ** (steps - k) * point for k, point in enumerate(points, start=1))
        return w - average**steps * w - weighted


def inner(settings):
    return {name: settings[name] for name in ("steps", "gamma", "h", "average")}


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


# ---- the step


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(("gamma", "average"), [(0.3, 0.6), (0.0, 0.75), (2.0, 0.0)])
def test_a_step_is_the_finite_recursion(steps, gamma, average):
    settings = SETTINGS | {"steps": steps, "gamma": gamma, "average": average}
    problem = Quadratic()
    optimizer = EntropySGD(problem.parameters, **settings)
    for _ in range(2):
        before = problem.w
        optimizer.step(problem)
        close(problem.w, before - 0.7 * problem.direction(before, **inner(settings)))


def test_many_inner_steps_lead_to_the_gradient_of_the_local_entropy():
    problem = Quadratic()
    before, gamma = problem.w, 0.8
    EntropySGD(problem.parameters, lr=1.0, steps=600, gamma=gamma, h=0.2, noise=0.0).step(problem)
    hessian = problem.hessian
    smoothed = hessian @ torch.linalg.inv(hessian + gamma * torch.eye(5, dtype=torch.float64)) @ before
    close(before - problem.w, smoothed, 1e-9)


def test_the_papers_outer_step_is_gamma_times_the_authors():
    moves = []
    for outer in ("authors", "paper"):
        problem = Quadratic()
        before = problem.w
        EntropySGD(problem.parameters, **SETTINGS, outer=outer).step(problem)
        moves.append(problem.w - before)
    close(moves[1], 0.3 * moves[0])
    assert moves[0].norm() > 0.1


def test_momentum_and_weight_decay_are_those_of_sgd_on_the_outer_direction():
    problem = Quadratic()
    optimizer = EntropySGD(problem.parameters, **SETTINGS, momentum=0.8, weight_decay=0.05)
    w, velocity = problem.w, torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        velocity = 0.8 * velocity + problem.direction(w, **inner(SETTINGS)) + 0.05 * w
        w = w - 0.7 * velocity
        optimizer.step(problem)
        close(problem.w, w)


def test_one_inner_step_without_average_is_torchs_sgd():
    problem, reference = Quadratic(), Quadratic()
    entropy = EntropySGD(problem.parameters, lr=0.5, momentum=0.9, steps=1, h=0.2, noise=0.0, average=0.0)
    sgd = torch.optim.SGD(reference.parameters, lr=0.1, momentum=0.9)
    for _ in range(4):
        entropy.step(problem)
        sgd.step(reference)
        close(problem.w, reference.w)


def test_the_defaults_are_those_of_the_second_version():
    defaults = EntropySGD(Quadratic().parameters).defaults
    expected = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "steps": 5, "gamma": 1e-3, "h": 0.1, "noise": 1e-4}
    assert defaults == expected | {"average": 0.75, "outer": "authors"}


def test_it_returns_the_loss_at_the_weights_themselves():
    problem = Quadratic()
    w = problem.w
    loss = EntropySGD(problem.parameters, **SETTINGS).step(problem)
    assert loss == problem.losses[0] == pytest.approx(float(w @ problem.hessian @ w / 2))
    assert len(problem.losses) == 4
    assert sorted(problem.losses, reverse=True) == problem.losses


def test_weights_that_are_frozen_or_have_no_gradient_stay():
    problem = Quadratic()
    frozen, unused = nn.Parameter(torch.ones(3), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = EntropySGD([frozen, unused, *problem.parameters], **SETTINGS, momentum=0.9, weight_decay=0.1)
    before = problem.w
    for _ in range(2):
        optimizer.step(problem)
    assert frozen.tolist() == unused.tolist() == [1.0] * 3
    assert not torch.equal(problem.w, before)


def test_groups_have_their_own_settings():
    problem = Quadratic()
    groups = [{"params": [problem.parameters[0]], "lr": 0.0}, {"params": [problem.parameters[1]]}]
    before = problem.w
    EntropySGD(groups, **SETTINGS).step(problem)
    expected = before - 0.7 * problem.direction(before, **inner(SETTINGS))
    close(problem.w, torch.cat([before[:2], expected[2:]]))


# ---- noise


class Flat:
    """A constant loss: only the noise moves the weights."""

    def __init__(self, count=50_000):
        self.w = nn.Parameter(torch.zeros(count, dtype=torch.float64))

    def __call__(self):
        self.w.grad = torch.zeros_like(self.w)
        return 0.0


def test_the_noise_has_variance_2_h_noise_squared():
    flat = Flat()
    optimizer = EntropySGD([flat.w], lr=1.0, steps=1, gamma=0.0, h=0.3, noise=0.7, average=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        optimizer.step(flat)  # w - mu = -sqrt(2 h) noise N
        first = flat.w.detach().clone()
        optimizer.step(flat)
    second = flat.w.detach() - first
    expected = 2 * 0.3 * 0.7**2
    for move in (first, second):  # an estimate of a variance from n draws is off by sqrt(2 / n)
        assert move.var().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / len(move)))
        assert abs(move.mean().item()) < 4 * math.sqrt(expected / len(move))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 4 / math.sqrt(len(first))


def test_each_inner_step_draws_other_noise():
    flat = Flat()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        EntropySGD([flat.w], lr=1.0, steps=3, gamma=0.0, h=0.3, noise=0.7, average=0.5).step(flat)
    # mu = sum over k of 0.5^(4 - k) w'_k and w'_k the sum of k draws: the draws weigh 7/8, 6/8 and 4/8.
    share = (49 + 36 + 16) / 64
    assert flat.w.var().item() == pytest.approx(share * 2 * 0.3 * 0.7**2, rel=4 * math.sqrt(2 / len(flat.w)))


def test_parameters_of_the_same_shape_get_different_noise():
    flats = [Flat(10), Flat(10)]
    optimizer = EntropySGD([flat.w for flat in flats], lr=1.0, steps=1, noise=0.7)
    optimizer.step(lambda: sum(flat() for flat in flats))
    assert not torch.equal(flats[0].w, flats[1].w)


def test_torchs_global_state_decides_the_noise():
    weights = []
    for seed in (1, 1, 2):
        flat = Flat(10)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            EntropySGD([flat.w], noise=0.7).step(flat)
        weights.append(flat.w.tolist())
    assert weights[0] == weights[1] != weights[2]


def test_all_processes_draw_the_noise_of_the_first(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda seed, source: seed.fill_(11 + source))
    weights = []
    for seed in (1, 2):  # the trainer seeds each process's global state differently
        flat = Flat(10)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            EntropySGD([flat.w], noise=0.7).step(flat)
        weights.append(flat.w.tolist())
    assert weights[0] == weights[1]
    assert any(weights[0])


# ---- errors, and the state


def test_a_step_without_a_closure_is_refused():
    problem = Quadratic()
    problem()
    before = problem.w
    with pytest.raises(BadInput, match=r"write optimizer.step\(closure\)") as error:
        EntropySGD(problem.parameters, **SETTINGS).step()
    assert (error.value.code, error.value.field) == ("missing", "closure")
    assert torch.equal(problem.w, before)


@pytest.mark.parametrize("at", [1, 3])
def test_a_closure_that_raises_leaves_the_weights_as_they_were(at):
    problem = Quadratic()
    optimizer = EntropySGD(problem.parameters, **SETTINGS, momentum=0.9, weight_decay=0.1)
    before = problem.w

    def closure():
        if len(problem.losses) == at:
            raise KeyboardInterrupt
        return problem()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(problem.w, before)
    assert not optimizer.state


def test_the_state_is_saved_and_loaded():
    settings = SETTINGS | {"noise": 0.1, "momentum": 0.8}
    problem = Quadratic()
    optimizer = EntropySGD(problem.parameters, **settings)
    for _ in range(2):
        optimizer.step(problem)
    other = Quadratic()
    for p, q in zip(other.parameters, problem.parameters, strict=True):
        p.data.copy_(q.data)
    again = EntropySGD(other.parameters, lr=0.1)  # other settings: the state replaces them, also the steps
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for stepped, closure in ((optimizer, problem), (again, other)):
        with torch.random.fork_rng():
            torch.manual_seed(4)
            stepped.step(closure)
    assert torch.equal(problem.w, other.w)
    assert len(other.losses) == 4


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"lr": -1.0}, "bad-value", "lr is -1.0"),
        ({"steps": 0}, "bad-value", "steps is 0; it must be a whole number >= 1"),
        ({"steps": 2.0}, "bad-type", "steps is 2.0"),
        ({"gamma": math.nan}, "bad-value", "gamma is nan"),
        ({"h": -0.1}, "bad-value", "h is -0.1"),
        ({"noise": math.inf}, "bad-value", "noise is inf"),
        ({"noise": "1e-4"}, "bad-type", "noise is '1e-4'"),
        ({"momentum": -0.1}, "bad-value", "momentum is -0.1"),
        ({"weight_decay": -0.1}, "bad-value", "weight_decay is -0.1"),
        ({"average": 1.0}, "bad-value", r"average is 1.0; it must lie in \[0, 1\)"),
        ({"average": -0.5}, "bad-value", "average is -0.5"),
        ({"average": None}, "bad-type", "average is None"),
        ({"average": "high"}, "bad-type", "average is 'high'"),
        ({"outer": "mine"}, "unknown-name", "outer is 'mine'; known: authors, paper"),
    ],
)
def test_a_bad_value_is_refused_by_name(options, code, words):
    with pytest.raises(BadInput, match=words) as error:
        EntropySGD(Quadratic().parameters, **options)
    assert (error.value.code, error.value.field) == (code, next(iter(options)))


def test_groups_of_different_steps_are_refused():
    first, second = Quadratic().parameters
    optimizer = EntropySGD([{"params": [first], "steps": 2}, {"params": [second]}], **SETTINGS)
    with pytest.raises(BadInput, match=r"steps is \[2, 4\] in different parameter groups") as error:
        optimizer.step(lambda: 0.0)
    assert (error.value.code, error.value.field) == ("conflict", "steps")


# ---- in training


def test_training_makes_as_many_gradient_passes_per_step_as_inner_steps_and_learns(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")
    digits = datasets.load("digits")
    tiny = DataSet(digits.name, digits.classes, digits.train.take(200), digits.test)
    passes, call = [], Standard.__call__

    def spy(self, model, *arguments, **options):
        passes.append([p.detach().clone() for p in model.parameters()])
        return call(self, model, *arguments, **options)

    monkeypatch.setattr(Standard, "__call__", spy)
    optimizer = "optimizer={name: entropy-sgd, lr: 1, momentum: 0.9, arguments: {steps: 3, h: 0.3, noise: 1e-4}}"
    settings = ["model.name=tiny-net", "epochs=5", "batch_size=40", "validation={count: 40, steps: 1, select: clean}"]
    recipe = recipes.load("digits-linf-sgd", [*settings, "schedule.name=constant", optimizer])
    seen = []

    class Watch(loop.Silent):
        def step(self, loss):
            seen.append((loss, len(passes)))

        def epoch(self, metrics):
            seen.append(metrics)

    loop.fit(recipe, tiny, tmp_path, reporter=Watch())
    counts = [entry[1] for entry in seen if isinstance(entry, tuple)]
    assert counts == [3 * step for step in range(1, 5 * 4 + 1)]
    # The passes of one step are at different weights.
    assert not any(torch.equal(p, q) for p, q in zip(passes[0], passes[1], strict=True))
    metrics = [entry for entry in seen if isinstance(entry, dict)]
    assert metrics[-1]["loss"] < 0.6 * metrics[0]["loss"]
    assert metrics[-1]["clean"] > 0.6
