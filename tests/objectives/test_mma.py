import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from problems import LinearTwoClass, gradient_vector, small_batch, small_net

from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import soft_margin
from atent_ext.core.norms import NORMS
from atent_ext.objectives import MMA
from atent_ext.training import recipes

WIDE = (-10.0, 10.0)
EPS = 0.2
RESOLUTION = 1.05 * EPS / 2**10


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def linear_problem(count=40, seed=3):
    """Points on both sides of the boundary, those beyond 1.05 eps among them, all labelled as they are predicted."""
    model = LinearTwoClass((1, 2, 3))
    x = 0.5 * torch.randn(count, 1, 2, 3, generator=generator(seed), dtype=torch.float64)
    return model, x, model(x).detach().argmax(1)


def mma(norm="Linf", **options):
    return MMA(**({"norm": norm, "eps": EPS, "steps": 8, "least": 0.1, "box": WIDE} | options))


def inputs_of(model, objective, *arguments, **options):
    """The inputs of the model in one call, in order."""
    seen = []
    watch = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    term = next(objective(model, *arguments, **options))
    watch.remove()
    return seen, term


def score(model, x):
    return model(x).detach()[:, 1]


# ---- the boundary


def test_in_linf_the_search_ends_at_the_boundary_of_a_linear_model():
    model, x, y = linear_problem()
    objective, index = mma(), torch.arange(len(x))
    next(objective(model, x, y, index, generator=generator()))
    lengths = objective.state_dict()["lengths"].double()
    # Every gradient is ± w, and 8 steps of 2.5 / 8 cross the cube: PGD ends in its best corner.
    distance = score(model, x).abs() / model.w.detach().abs().sum()
    assert ((lengths - distance.clamp_max(1.05 * EPS)).abs() <= RESOLUTION).all()
    assert 5 < (distance < EPS).sum() < 35  # the problem has both kinds


def test_in_l2_the_search_ends_at_the_boundary_of_a_linear_model_along_pgds_direction():
    model, x, y = linear_problem()
    objective, index = mma("L2", steps=20), torch.arange(len(x))
    kernel = pgd(NORMS["L2"], 0.1, 20, 2.5 * 0.1 / 20, box=WIDE)
    unit = (last_iterate(kernel, model, x, y, soft_margin, generator()) - x) / 0.1
    next(objective(model, x, y, index, generator=generator()))
    lengths = objective.state_dict()["lengths"].double()
    along = score(model, x).abs() / (unit.flatten(1) @ model.w.detach()).abs()
    assert ((lengths - along.clamp_max(1.05 * EPS)).abs() <= RESOLUTION).all()
    shortest = score(model, x).abs() / model.w.detach().norm()  # no direction is shorter; PGD's is hardly longer
    near = along < EPS
    assert (lengths + RESOLUTION >= shortest)[near].all()
    assert (lengths - RESOLUTION <= 1.1 * shortest)[near].all()
    assert 5 < near.sum() < 35


def test_the_search_stays_inside_the_box():
    model, (x, y) = small_net(), small_batch()
    seen, _ = inputs_of(model, MMA(eps=0.8, steps=3, least=0.4), x, y, generator=generator())
    assert min(float(batch.min()) for batch in seen) >= 0
    assert max(float(batch.max()) for batch in seen) <= 1


def test_the_number_of_forward_passes():
    model, (x, y) = small_net(), small_batch()
    next(MMA(eps=0.3, steps=5, least=0.1)(model, x, y))
    # The clean predictions; 5 of PGD; the first probe and 10 halvings; the two passes of the loss.
    assert model.passes == 1 + 5 + 11 + 2


# ---- the loss


def test_the_loss_of_a_linear_model_is_the_closed_form():
    model, x, y = linear_problem()
    y[::5] = 1 - y[::5]
    distance = score(model, x).abs() / model.w.detach().abs().sum()
    right = score(model, x).gt(0) == y.bool()
    near = right & (distance < EPS - RESOLUTION)
    assert not ((distance - EPS).abs() <= RESOLUTION).any()
    assert min(near.sum(), (right & ~near).sum(), (~right).sum()) >= 3
    clean = F.cross_entropy(model(x), y, reduction="none").detach()
    # On the boundary of two classes the cross-entropy is log 2.
    hinge = (near.sum() * math.log(2) + clean[~right].sum()) / len(x)
    expected = 2 / 3 * hinge + clean.mean() / 3
    (term,) = mma()(model, x, y, generator=generator())
    dual = float(model.w.detach().abs().sum())
    assert term.item() == pytest.approx(float(expected), abs=2 / 3 * dual * RESOLUTION)


def slm(logits, label):
    others = [float(logit) for k, logit in enumerate(logits) if k != label]
    return math.log(sum(map(math.exp, others))) - float(logits[label])


def naive(objective, model, x, y, seed):
    """The formula, example by example: (gradient, how many examples are near, far and wrong)."""
    least, steps, eps = objective.least, objective.steps, objective.eps
    kernel = pgd(NORMS[objective.norm], least, steps, 2.5 * least / steps)
    ends = last_iterate(kernel, model, x, y, soft_margin, generator(seed))
    hinge, kinds = torch.zeros((), dtype=x.dtype), []
    for image, end, label in zip(x, ends, y, strict=True):

        def at(length, image=image, end=end):
            return (image + length * (end - image) / least).clamp(0, 1)[None]

        def wrong(length, label=label, at=at):
            return slm(model(at(length))[0].detach(), int(label)) >= 0

        low, high = (0.0, least) if wrong(least) else (least, 1.05 * eps)
        for _ in range(10):
            middle = (low + high) / 2
            low, high = (low, middle) if wrong(middle) else (middle, high)
        length = (low + high) / 2
        kinds.append("wrong" if wrong(0.0) else "near" if length < eps else "far")
        if kinds[-1] != "far":
            hinge = hinge + F.cross_entropy(model(at(length) if kinds[-1] == "near" else image[None]), label[None])
    model.zero_grad()
    (2 / 3 * hinge / len(x) + F.cross_entropy(model(x), y) / 3).backward()
    return gradient_vector(model), {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize(("norm", "eps", "least"), [("Linf", 0.08, 0.03), ("L2", 0.4, 0.1)])
def test_the_gradient_is_that_of_the_formula_computed_naively(norm, eps, least):
    objective = MMA(norm=norm, eps=eps, steps=4, least=least)
    model, (x, _) = small_net(), small_batch(12)
    with torch.no_grad():
        model.out.weight *= 10  # a label must have more than half of the probability to count as right
        y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    expected, kinds = naive(objective, model, x, y, seed=2)
    assert kinds.keys() == {"near", "far", "wrong"}
    model.zero_grad()
    (term,) = objective(model, x, y, generator=generator(2))
    term.backward()
    torch.testing.assert_close(gradient_vector(model), expected, rtol=0, atol=1e-9 * float(expected.norm()))


# ---- the memory


def first_probe(model, objective, x, y, index, seed=5):
    """How far from x the search starts, (N,): the last iterate of PGD with the lengths of the last visit."""
    seen, _ = inputs_of(model, objective, x, y, index, generator=generator(seed))
    return (seen[1 + objective.steps] - x).flatten(1).abs().amax(1)


def test_each_example_starts_with_the_length_of_its_last_visit():
    model, x, y = linear_problem(8)
    objective = mma()
    index = torch.tensor([7, 3, 11, 0, 2, 5, 1, 4])
    assert first_probe(model, objective, x, y, index).tolist() == pytest.approx([0.1] * 8)
    lengths = objective.state_dict()["lengths"].double()[index]
    assert len(set(lengths.tolist())) > 2
    shuffled = torch.randperm(8, generator=generator())
    second = first_probe(model, objective, x[shuffled], y[shuffled], index[shuffled])
    torch.testing.assert_close(second, lengths[shuffled], rtol=1e-6, atol=0)
    new = torch.arange(20, 28)  # other examples are still before their first visit
    assert first_probe(model, objective, x, y, new).tolist() == pytest.approx([0.1] * 8)
    assert objective.state_dict()["lengths"][[6, 8, 12, 19]].tolist() == pytest.approx([0.1] * 4)


def test_wrong_examples_keep_their_length():
    model, x, y = linear_problem(8)
    objective, index = mma(), torch.arange(8)
    next(objective(model, x, y, index, generator=generator()))
    before = objective.state_dict()["lengths"].clone()
    y[:4] = 1 - y[:4]
    next(objective(model, 1.01 * x, y, index, generator=generator()))
    changed = objective.state_dict()["lengths"] != before
    far = before >= EPS
    assert not changed[:4].any()
    assert changed[4:][~far[4:]].all()
    assert not far[4:].all()


def test_without_an_index_every_visit_is_the_first():
    model, x, y = linear_problem(8)
    objective = mma()
    for _ in range(2):
        assert first_probe(model, objective, x, y, None).tolist() == pytest.approx([0.1] * 8)
    assert len(objective.state_dict()["lengths"]) == 0


def test_the_state_is_restored_and_not_shared():
    model, x, y = linear_problem(8)
    first, other, index = mma(), mma(), torch.arange(8)
    next(first(model, x, y, index, generator=generator()))
    other.load_state_dict(first.state_dict())
    kept = other.state_dict()["lengths"].clone()
    assert torch.equal(first.state_dict()["lengths"], kept)
    next(first(model, 0.9 * x, y, index, generator=generator()))
    assert not torch.equal(first.state_dict()["lengths"], kept)
    assert torch.equal(other.state_dict()["lengths"], kept)
    assert torch.equal(first_probe(model, other, x, y, index).float(), kept)


def test_another_d_max_has_the_same_memory():
    model, x, y = linear_problem(8)
    objective, index = mma(), torch.arange(8)
    small = objective.scaled(0.5)
    assert (small.eps, small.least, small.norm, small.steps) == (0.5 * EPS, 0.1, "Linf", 8)
    assert objective.scaled(0.125).least == 0.125 * EPS
    next(small(model, x, y, index, generator=generator()))
    lengths = objective.state_dict()["lengths"].clone()
    assert lengths.max() <= 1.05 * 0.5 * EPS
    torch.testing.assert_close(first_probe(model, objective, x, y, index).float(), lengths)
    objective.load_state_dict({"lengths": torch.full((8,), 0.05)})
    assert first_probe(model, small, x, y, index).tolist() == pytest.approx([0.05] * 8)
    objective.load_state_dict({"lengths": torch.full((8,), EPS)})  # longer than the smaller search is
    assert first_probe(model, small, x, y, index).tolist() == pytest.approx([1.05 * 0.5 * EPS] * 8)


def test_two_methods_of_equal_settings_are_equal_but_do_not_share_their_memory():
    first, other = mma(), mma()
    assert first == other
    model, x, y = linear_problem(8)
    next(first(model, x, y, torch.arange(8), generator=generator()))
    assert len(other.state_dict()["lengths"]) == 0
    assert first == other


# ---- the model, recipes, bad input


def test_the_search_runs_in_eval_mode_and_the_loss_in_the_callers_mode():
    model, (x, y) = small_net(), small_batch()
    modes = []
    model.train().register_forward_pre_hook(lambda module, _: modes.append(module.training))
    with torch.random.fork_rng():
        next(MMA(eps=0.1, steps=2, least=0.05)(model, x, y))
    assert modes == [False] * (1 + 2 + 11) + [True] * 2


@pytest.mark.parametrize(
    ("options", "code", "field", "words"),
    [
        ({"least": 0.0}, "bad-value", "least", r"least is 0.0; it must lie in \(0, eps\], and eps is 0.2"),
        ({"least": 0.5}, "bad-value", "least", "least is 0.5"),
        ({"least": math.nan}, "bad-value", "least", "least is nan"),
        ({"eps": 0.0}, "bad-value", "least", "eps is 0.0"),
        ({"eps": math.inf}, "bad-value", "eps", "eps is inf"),
        ({"steps": 0}, "bad-value", "steps", "steps is 0"),
        ({"norm": "L7"}, "unknown-name", "norm", "unknown norm 'L7'"),
        ({"inner_mode": "sleep"}, "unknown-name", "inner_mode", "inner_mode is 'sleep'"),
    ],
)
def test_a_bad_value_is_refused_by_name(options, code, field, words):
    with pytest.raises(BadInput, match=words) as error:
        mma(**options)
    assert (error.value.code, error.value.field) == (code, field)


OBJECTIVE = "objective={name: mma, norm: Linf, eps: 0.15, steps: 3, least: 3e-2}"


def test_a_recipe_may_name_it():
    recipe = recipes.load("digits-linf-pgd-at", ["name=mine", OBJECTIVE])
    objective = recipe.build_objective()
    assert objective == MMA(eps=0.15, steps=3, least=0.03)
    assert dataclasses.replace(objective, least=0.05).least == 0.05


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.least=1", "least is 1.0; it must lie in"),
        ("objective.leest=1", "unknown field 'objective.leest'; did you mean 'objective.least'?"),
        ("objective.step_size=1", "unknown field 'objective.step_size'; "),
        ("objective.lengths=1", "unknown field 'objective.lengths'; "),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(override, words):
    with pytest.raises(BadInput) as error:
        recipes.load("digits-linf-pgd-at", [OBJECTIVE, override])
    assert words in str(error.value)
    key = override.partition("=")[0]
    assert not str(error.value).endswith(f"did you mean {key!r}?")
