import pytest
import torch
from problems import LinearTwoClass, small_batch, small_net
from torch import nn

from atent_ext.attacks import uphill
from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.attacks.langevin import Langevin, atent, input_gradient, last_iterate, pgd, walk
from atent_ext.attacks.restarts import adversaries, allowed
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF

KERNELS = [
    pgd(LINF, 0.05, 6),
    pgd(L2, 0.4, 6),
    # Projected at the last step alone: the others may lie outside the ball.
    atent(LINF, 0.05, 6, noise=0.03, project="last", schedule="constant"),
    atent(LINF, 0.05, 6, noise=0.03),
    atent(L2, 0.4, 6, noise=0.03, schedule="constant"),
]
IDS = ["pgd-linf", "pgd-l2", "atent-last", "annealed", "atent-l2"]


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def labelled(count=40):
    """A network and images that it labels itself, so that every one is right before an attack."""
    model = small_net(seed=2)
    x, _ = small_batch(count, seed=4)
    return model, x, model(x).argmax(1)


class Counting(nn.Module):
    """Counts the images that it is shown."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.images = 0
        self.batches = []

    def forward(self, x):
        self.images += len(x)
        self.batches.append(len(x))
        return self.model(x)


def by_hand(kernel, model, x, y, restarts, keep, source):
    """Every run of every example to its end, and only then the choice."""
    chosen, success, last = x.clone(), torch.zeros(len(x), dtype=torch.bool), x
    for _ in range(restarts):
        points = list(walk(kernel, x, input_gradient(model, cross_entropy, y), source))
        last = points[-1]
        for point in points if keep == "success" else points[-1:]:
            hit = (model(point).argmax(1) != y) & allowed(kernel.norm, kernel.eps, x, point)
            new = hit & ~success
            chosen[new], success = point[new], success | hit
    chosen[~success] = last[~success]
    return chosen.detach(), success


@pytest.mark.parametrize("kernel", KERNELS, ids=IDS)
@pytest.mark.parametrize("keep", ["last", "success"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_what_is_returned_is_what_all_runs_to_their_end_would_choose(kernel, keep, restarts):
    model, x, y = labelled()
    expected, success = by_hand(kernel, model, x, y, restarts, keep, generator())
    for early_stop in (True, False):
        for batch_size in (None, 7):
            got = adversaries(
                *(kernel, model, x, y, cross_entropy, generator()),
                **{"restarts": restarts, "keep": keep, "early_stop": early_stop, "batch_size": batch_size},
            )
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    if (restarts, keep) == (3, "success"):
        assert 0 < int(success.sum()) < len(x), "the problem must have both kinds of examples"


def test_counting_iterates_on_the_way_breaks_more_than_the_last_alone():
    model, x, y = labelled()
    kernel = atent(LINF, 0.05, 6, noise=0.3, schedule="constant")
    broken = {}
    for keep in ("last", "success"):
        adversary = adversaries(kernel, model, x, y, cross_entropy, generator(), keep=keep)
        broken[keep] = model(adversary).argmax(1) != y
    assert bool(broken["success"][broken["last"]].all())
    assert int(broken["success"].sum()) > int(broken["last"].sum())


def test_stopping_early_spares_the_passes_of_what_is_done():
    """Every example falls at the first step, so that all but two of 5 x 10 passes are spared."""
    model = LinearTwoClass((4,))
    x = torch.zeros(6, 4, dtype=torch.float64)
    with torch.no_grad():
        model.b.fill_(1e-3)
    y = model(x).argmax(1)
    kernel = pgd(LINF, 0.5, 10, 0.1, start="clean", box=(-1.0, 1.0))
    seen = {}
    for keep, early_stop in (("success", True), ("last", True), ("success", False)):
        counting = Counting(model)
        adversary = adversaries(kernel, counting, x, y, cross_entropy, restarts=5, keep=keep, early_stop=early_stop)
        assert bool((model(adversary).argmax(1) != y).all())
        seen[keep, early_stop] = counting.images
    # success: only x'_1 is wrong. last: one run and its last iterate. Else: five runs and their last iterates.
    assert seen == {("success", True): 2 * 6, ("last", True): 11 * 6, ("success", False): (5 * 11 - 1) * 6}


def test_the_examples_that_are_left_are_gathered_into_full_batches():
    model, x, y = labelled(40)
    counting = Counting(model)
    adversaries(
        pgd(LINF, 0.05, 6), counting, x, y, cross_entropy, generator(), restarts=4, keep="success", batch_size=8
    )
    per_step = []  # batches of one step: all full but the last
    for size in counting.batches:
        if per_step and per_step[-1][-1] == 8:
            per_step[-1].append(size)
        else:
            per_step.append([size])
    assert max(counting.batches) == 8
    assert sum(size < 8 for size in counting.batches) <= 4 * 6 + 3  # at most one a step and one between two runs
    assert len(counting.batches) < 4 * 7 * 5


def test_one_run_is_the_plain_chain_bit_for_bit():
    model, x, y = labelled()
    kernel = atent(LINF, 0.05, 6, noise=0.03)
    plain = last_iterate(kernel, model, x, y, cross_entropy, generator())
    assert torch.equal(adversaries(kernel, model, x, y, cross_entropy, generator()), plain)


def test_a_targeted_chain_succeeds_where_the_target_is_predicted():
    model, x, _ = labelled()
    target = (model(x).argmax(1) + 1) % 4
    kernel = Langevin(norm=LINF, eps=0.3, steps=8, step_size=0.08, direction="sign", start="uniform", targeted=True)
    result = adversaries(kernel, model, x, target, cross_entropy, generator(), restarts=2, keep="success")
    first = adversaries(
        kernel, model, x, target, cross_entropy, generator(), restarts=2, keep="success", early_stop=False
    )
    torch.testing.assert_close(result, first, rtol=0, atol=1e-12)
    hits = int((model(result).argmax(1) == target).sum())
    assert (
        hits
        > int((model(last_iterate(kernel, model, x, target, cross_entropy, generator())).argmax(1) == target).sum()) - 1
    )
    assert hits > 0


def test_a_radius_per_example_goes_with_the_examples_that_are_left():
    model, x, y = labelled()
    eps = torch.linspace(0.0, 0.2, len(x), dtype=torch.float64)
    kernel = pgd(LINF, eps, 5, eps / 2)
    results = [
        adversaries(kernel, model, x, y, cross_entropy, generator(), restarts=3, keep="success", early_stop=early)
        for early in (True, False)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    assert bool(((results[0] - x).flatten(1).abs().amax(1) <= eps + 1e-9).all())


@pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])
def test_the_attacks_pass_it_on(kind):
    model, x, y = labelled()
    settings = {"eps": 0.05 if kind is LinfATENTAttack else 0.4, "nb_iter": 5, "eps_iter": 0.02, "noise": 0.02}
    results = {}
    for early_stop in (True, False):
        attack = kind(
            model, restarts=3, keep="success", early_stop=early_stop, batch_size=16, generator=generator(), **settings
        )
        results[early_stop] = attack.perturb(x, y)
        losses = uphill.in_turn(uphill.IN_TURN, 3)
        expected = adversaries(attack.kernel, model, x, y, losses, generator(), restarts=3, keep="success")
        torch.testing.assert_close(results[early_stop], expected, rtol=0, atol=1e-12)
    assert torch.equal(model(results[True]).argmax(1), model(results[False]).argmax(1))


def test_images_on_the_cpu_pass_64_at_a_time_with_the_same_result():
    images = torch.rand(150, 1, 8, 8, generator=generator(), dtype=torch.float64)
    model = Counting(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double())
    y = model(images).argmax(1)

    def attacked(batch_size):
        model.batches.clear()
        attack = LinfATENTAttack(model, eps=0.1, nb_iter=4, batch_size=batch_size, generator=generator())
        return attack.perturb(images, y), set(model.batches)

    parts, seen = attacked(None)
    whole, seen_whole = attacked(150)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-12)
    assert float((parts - images).abs().max()) == pytest.approx(0.1)
    assert {64, 22} <= seen <= {1, 64, 22}
    assert 150 in seen_whole


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [("restarts", 0, "bad-value"), ("keep", "best", "unknown-name"), ("batch_size", 0, "bad-value")],
)
def test_invalid_settings_are_refused(field, value, code):
    model, x, y = labelled(3)
    with pytest.raises(BadInput, match=f"^{field} is {value!r}") as error:
        LinfATENTAttack(model, **{field: value})
    assert (error.value.code, error.value.field) == (code, field)
    attack = LinfATENTAttack(model)
    setattr(attack, field, value)
    with pytest.raises(BadInput) as error:
        attack.perturb(x, y)
    assert (error.value.code, error.value.field) == (code, field)


def test_broken_gradients_are_no_robustness():
    class Broken(nn.Module):
        def forward(self, x):
            total = x.flatten(1).sum(1)
            return torch.stack([total, torch.sqrt(total - total)], 1)

    x = torch.full((3, 1, 2, 2), 0.5)
    y = torch.zeros(3, dtype=torch.long)
    with pytest.raises(BadInput, match="not finite") as error:
        adversaries(pgd(LINF, 0.1, 3), Broken(), x, y, cross_entropy, generator(), restarts=2)
    assert (error.value.code, error.value.field) == ("broken-model", "model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_reaches_the_boundary_of_the_ball(dtype):
    x = torch.rand(200, 3, 8, 8, generator=generator()).to(dtype)
    corner = (x + (8 / 255) * torch.randn(x.shape, generator=generator()).sign()).clamp(0, 1).to(dtype)
    assert bool(allowed(LINF, 8 / 255, x, corner).all())
    outside = (x.float() + 0.06).clamp(0, 1).to(dtype)  # by nearly another radius
    assert not bool(allowed(LINF, 8 / 255, x, outside).any())


@pytest.mark.parametrize(("passes", "expected"), [(3, (1, 1)), (20, (1, 18)), (100, (3, 32)), (1000, (10, 98))])
def test_restarts_divide_a_budget_of_passes(passes, expected):
    model, x, y = labelled(6)
    restarts, steps = uphill.divided(passes)
    assert (restarts, steps) == expected
    if passes <= 100:
        counting = Counting(model)
        losses = uphill.in_turn(uphill.IN_TURN, restarts)
        adversary = adversaries(
            atent(LINF, 1e-6, steps), counting, x, y, losses, generator(), restarts=restarts, keep="success"
        )
        assert bool((model(adversary).argmax(1) == y).all())
        assert passes - restarts - 2 <= counting.images / 6 <= passes


def test_an_attack_takes_at_least_three_passes():
    with pytest.raises(BadInput) as error:
        uphill.divided(2)
    assert (error.value.code, error.value.field) == ("bad-value", "passes")
