import dataclasses
import importlib
import inspect
import math
import re

import pytest
import torch
import torch.nn.functional as F
from problems import LinearTwoClass, small_batch, small_net
from torch import nn

from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.attacks.langevin import last_iterate
from atent_ext.attacks.uphill import GradientVanished
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.validate import shown

# They can be imported only once `atent_ext.attacks` has repaired advertorch.
advertorch = importlib.import_module("advertorch.attacks")
base = importlib.import_module("advertorch.attacks.base")
advertorch_models = importlib.import_module("advertorch.test_utils")

INF = float("inf")
FREE = {"clip_min": -INF, "clip_max": INF}
SHORT = {"eps": 0.2, "nb_iter": 3, "eps_iter": 0.08}
BOTH = pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_problem(shape=(5,), count=4):
    x = torch.randn(count, *shape, generator=generator(1), dtype=torch.float64)
    return LinearTwoClass(shape), x, torch.arange(count) % 2


def flat_problem(count, features):
    """A model whose loss does not depend on its input: only noise, start and pull move a chain."""
    model = LinearTwoClass((features,))
    nn.init.zeros_(model.w)
    return model, torch.zeros(count, features, dtype=torch.float64), torch.zeros(count, dtype=torch.long)


def size(kind, delta):
    return delta.flatten(1).norm(dim=1) if kind is L2ATENTAttack else delta.flatten(1).abs().amax(1)


def norm_batch_net():
    """Train mode, with a BatchNorm whose running statistics differ from any batch's, and that is frozen if asked."""
    model = small_net(norm=True)
    model.norm.running_mean += 0.3
    model.norm.running_var *= 2.0
    return model.train()


# What the attacks promise about the optimum.


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 3, 2)], ids=["rank2", "rank3", "rank4"])
@pytest.mark.parametrize("count", [1, 2, 17])
@pytest.mark.parametrize("box", [INF, 50.0])
@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        (LinfATENTAttack, "Linf", {"eps": 0.7, "nb_iter": 20, "eps_iter": 0.07}),  # just far enough: 20 * 0.07 = 2 eps
        (LinfATENTAttack, "Linf", {"eps": 0.7, "nb_iter": 20, "eps_iter": 0.07, "project": "every", "start": "corner"}),
        (LinfATENTAttack, "Linf", {"nb_iter": 60}),
        (L2ATENTAttack, "L2", {"nb_iter": 60}),  # annealed, as by default
        (L2ATENTAttack, "L2", {"nb_iter": 100, "eps_iter": 0.125}),  # eps 2.0, pull 0.05
        (L2ATENTAttack, "L2", {"nb_iter": 100, "gamma": 0.0, "eps": 0.7, "eps_iter": 0.07}),
        (L2ATENTAttack, "L2", {"nb_iter": 100, "eps_iter": 0.125, "project": "last"}),
    ],
)
def test_the_optimum_of_a_linear_model_is_reached(shape, count, box, kind, name, settings):
    model, x, y = linear_problem(shape, count)
    attack = kind(model, noise=0.0, clip_min=-box, clip_max=box, generator=generator(), **settings)
    reached = cross_entropy(model(attack.perturb(x, y)), y)
    torch.testing.assert_close(reached, model.worst_loss(x, y, name, attack.eps), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("pull", "strength"), [("authors", 0.05), ("paper", 0.05 * 0.125)])
def test_without_projection_the_pull_alone_holds_the_radius(pull, strength):
    """On a linear model the radius is a geometric series, eta (1 - (1 - gamma)^K) / gamma, and it may exceed eps."""
    model, x, y = linear_problem(count=2)
    attack = L2ATENTAttack.paper(model, noise=0.0, rand_init=False, pull=pull, **FREE)
    radius = attack.eps_iter * (1 - (1 - strength) ** attack.nb_iter) / strength
    uphill = torch.stack([model.w, -model.w]).detach() / model.w.norm().item()
    torch.testing.assert_close(attack.perturb(x, y) - x, radius * uphill)
    assert radius > attack.eps


def test_the_papers_sampler_leaves_the_ball():
    model, x, y = linear_problem(count=200)
    attack = L2ATENTAttack.paper(model, generator=generator(), **FREE)
    mean_radius = (attack.perturb(x, y) - x).norm(dim=1).mean().item()
    assert mean_radius == pytest.approx(2.5 * (1 - 0.95**40), abs=0.05)
    assert mean_radius > 2.1
    for project in ("every", "last"):
        attack.project = project
        assert (attack.perturb(x, y) - x).norm(dim=1).max() <= 2.0 + 1e-12


@BOTH
def test_targeted_reaches_the_smallest_loss_of_the_target(kind):
    model, x, y = linear_problem(count=5)
    attack = kind(model, noise=0.0, targeted=True, eps=0.5, nb_iter=100, eps_iter=0.05, generator=generator(), **FREE)
    name = "L2" if kind is L2ATENTAttack else "Linf"
    # Of two classes, the smallest loss of one is where the other's is largest: -log(1 - p).
    other = model.worst_loss(x, 1 - y, name, 0.5)
    least = -torch.log1p(-torch.exp(-other))
    torch.testing.assert_close(cross_entropy(model(attack.perturb(x, y)), y), least, rtol=0, atol=1e-4)


@BOTH
def test_targeted_lowers_the_loss_of_the_target_on_a_network(kind):
    model, (x, y) = small_net(), small_batch()
    target = (y + 1) % 4
    adversary = kind(model, targeted=True, generator=generator(), **SHORT).perturb(x, target)
    assert (cross_entropy(model(adversary), target) < cross_entropy(model(x), target)).all()


# What each argument means.


@BOTH
def test_noise_adds_up_at_the_papers_scale(kind):
    model, x, y = flat_problem(20_000, 2)
    attack = kind(
        model, eps=9.0, nb_iter=7, eps_iter=0.05, noise=0.3, gamma=0.0, rand_init=False, generator=generator(), **FREE
    )
    spread = attack.perturb(x, y)
    assert spread.std().item() == pytest.approx((7 * 2 * 0.05) ** 0.5 * 0.3, rel=0.02)
    assert abs(spread.mean().item()) < 0.01


def test_linf_gamma_pulls_the_farthest_coordinate():
    model, x, y = flat_problem(6, 3)
    settings = {"eps": 0.5, "nb_iter": 1, "eps_iter": 0.01, "noise": 0.0, "start": "corner"}
    attack = LinfATENTAttack(model, gamma=0.2, **settings, **FREE)
    moved = attack.perturb(x, y).abs()
    torch.testing.assert_close(moved.sort(1).values, torch.tensor([[0.3, 0.5, 0.5]] * 6, dtype=torch.float64))


@pytest.mark.parametrize(("pull", "kept"), [("authors", 0.8**4), ("paper", (1 - 0.1 * 0.2) ** 4)])
def test_l2_gamma_pulls_towards_the_clean_input(pull, kept):
    model, x, y = flat_problem(6, 3)
    settings = {"eps": 0.5, "nb_iter": 4, "eps_iter": 0.1, "noise": 0.0, "start": "corner", "project": None}
    attack = L2ATENTAttack(model, gamma=0.2, pull=pull, **settings, **FREE)
    torch.testing.assert_close(attack.perturb(x, y).abs(), torch.full_like(x, 0.5 * kept))


@BOTH
def test_raw_direction_steps_along_the_gradient_of_the_sum(kind):
    model, x, y = linear_problem()
    attack = kind(
        model, eps=9.0, nb_iter=1, eps_iter=0.3, noise=0.0, gamma=0.0, rand_init=False, direction="raw", **FREE
    )
    p = F.softmax(model(x), 1).detach()
    slope = (p[:, 1] - y)[:, None] * model.w.detach()
    torch.testing.assert_close(attack.perturb(x, y), x + 0.3 * slope)


def test_a_start_can_be_chosen_and_switched_off():
    model, x, y = flat_problem(500, 3)
    settings = {"eps": 0.4, "nb_iter": 1, "eps_iter": 0.1, "noise": 0.0, "gamma": 0.0, "generator": generator(), **FREE}
    uniform = LinfATENTAttack(model, **settings).perturb(x, y)
    assert uniform.abs().max() <= 0.4
    assert uniform.var().item() == pytest.approx(0.4**2 / 3, rel=0.1)
    ball = L2ATENTAttack(model, **settings).perturb(x, y).norm(dim=1)
    assert ball.max() <= 0.4 + 1e-12
    assert ball.mean() > 0.39
    for kind in (LinfATENTAttack, L2ATENTAttack):
        assert torch.equal(kind(model, rand_init=False, start="corner", **settings).perturb(x, y), x)


# advertorch's contract.


@BOTH
def test_they_are_advertorchs_attacks(kind):
    assert issubclass(kind, base.Attack)
    assert issubclass(kind, base.LabelMixin)
    attack = kind(small_net(), **SHORT)
    x, y = small_batch()
    kept = attack._verify_and_process_inputs(x, y)
    assert torch.equal(kept[0], x)
    assert torch.equal(kept[1], y)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            LinfATENTAttack,
            {"loss_fn": None, "eps": 0.3, "nb_iter": 40, "eps_iter": None, "noise": None, "rand_init": True}
            | {"clip_min": 0.0, "clip_max": 1.0, "targeted": False},
        ),
        (
            L2ATENTAttack,
            {"loss_fn": None, "eps": 2.0, "nb_iter": 40, "eps_iter": None, "noise": None, "gamma": None}
            | {"rand_init": True, "clip_min": 0.0, "clip_max": 1.0, "targeted": False},
        ),
    ],
)
def test_positional_arguments_and_their_defaults(kind, expected):
    parameters = list(inspect.signature(kind).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[0].name == "predict"
    assert positional[0].default is inspect.Parameter.empty
    assert {p.name: p.default for p in positional[1:]} == expected
    assert [p.name for p in positional[1:]] == list(expected)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(positional) :])


@BOTH
@pytest.mark.parametrize("image", [False, True], ids=["SimpleModel", "SimpleImageModel"])
def test_without_noise_and_pull_they_are_advertorchs_pgd(kind, image):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = (advertorch_models.SimpleImageModel() if image else advertorch_models.SimpleModel()).double()
        shape = (16, 3, 16, 16) if image else (16, 15)
        x, y = torch.rand(shape, dtype=torch.float64), torch.randint(0, 5, (16,))
    theirs = advertorch.L2PGDAttack if kind is L2ATENTAttack else advertorch.LinfPGDAttack
    # Theirs clips before it projects, so the box stays out of play in ℓ2.
    settings = {"eps": 0.4, "nb_iter": 12, "eps_iter": 0.1, "rand_init": False}
    settings |= {"clip_min": -1.0, "clip_max": 2.0} if kind is L2ATENTAttack else {}
    expected = theirs(model, loss_fn=nn.CrossEntropyLoss(reduction="sum"), **settings).perturb(x, y)
    adversary = kind(model, noise=0.0, gamma=0.0, project="every", **settings).perturb(x, y)
    torch.testing.assert_close(adversary, expected, rtol=0, atol=1e-4 if kind is L2ATENTAttack else 1e-12)
    assert (cross_entropy(model(adversary), y) > cross_entropy(model(x), y)).all()


@BOTH
def test_calling_an_attack_is_perturb(kind):
    model, (x, y) = small_net(), small_batch()
    results = [
        call(kind(model, generator=generator(), **SHORT))
        for call in (lambda a: a.perturb(x, y), lambda a: a(x, y), lambda a: a(x, y=y))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@BOTH
def test_without_labels_the_predictions_in_eval_mode_are_used(kind):
    model, (x, y) = norm_batch_net(), small_batch()
    predicted = model.eval()(x).argmax(1)
    assert not torch.equal(predicted, y)
    adversary = kind(model.train(), generator=generator(), **SHORT).perturb(x)
    assert torch.equal(adversary, kind(model, generator=generator(), **SHORT).perturb(x, predicted))
    assert not torch.equal(adversary, kind(model, generator=generator(), **SHORT).perturb(x, y))


@BOTH
def test_integer_labels_of_any_width_will_do(kind):
    model, (x, y) = small_net(), small_batch()
    expected = kind(model, generator=generator(), **SHORT).perturb(x, y)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(kind(model, generator=generator(), **SHORT).perturb(x, y.to(dtype)), expected)


@BOTH
def test_numpy_numbers_are_numbers(kind):
    numpy = pytest.importorskip("numpy")
    attack = kind(small_net(), eps=numpy.float32(0.2), nb_iter=numpy.int64(3), eps_iter=numpy.float64(0.08))
    x, y = small_batch()
    assert size(kind, attack.perturb(x, y) - x).max() <= 0.2 + 1e-6


@BOTH
def test_changed_attributes_take_effect(kind):
    model, (x, y) = small_net(), small_batch()
    attack = kind(model, **SHORT)
    changes = {
        "eps": 0.05,
        "nb_iter": 5,
        "eps_iter": 0.01,
        "noise": 0.2,
        "rand_init": False,
        "clip_max": 3.0,
        "targeted": True,
        "loss_fn": margin,
        "project": "last",
        "schedule": "cosine",
        "gamma": 0.4,
        "start": "corner",
        "direction": "raw",
        "predict": small_net(seed=7),
    }
    attack.generator = generator()
    before = attack.perturb(x, y)
    for name, value in changes.items():
        usual = getattr(attack, name)
        setattr(attack, name, value)
        attack.generator = generator()
        after = attack.perturb(x, y)
        arguments = {"predict": model} | SHORT | {name: value, "generator": generator()}
        assert torch.equal(after, kind(**arguments).perturb(x, y)), name
        assert not torch.equal(after, before), name
        setattr(attack, name, usual)
    attack.eps = -1.0
    with pytest.raises(BadInput) as error:
        attack.perturb(x, y)
    assert (error.value.code, error.value.field) == ("bad-value", "eps")


# What it does not touch.


@BOTH
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("inside", [False, True], ids=["inputs_from_outside", "inputs_from_inside"])
def test_it_runs_where_gradients_are_off(kind, context, inside):
    model, (x, y) = small_net(), small_batch()
    expected = kind(model, generator=generator(), **SHORT).perturb(x, y)
    with context():
        if inside:
            x, y = x.clone(), y.clone()
        adversary = kind(model, generator=generator(), **SHORT).perturb(x, y)
        predicted = kind(model, generator=generator(), **SHORT).perturb(x)
        assert not torch.is_grad_enabled()
    assert torch.equal(adversary, expected)
    assert predicted.shape == x.shape


@BOTH
@pytest.mark.parametrize("wants", [False, True])
def test_inputs_labels_and_gradients_are_left_alone(kind, wants):
    model, (x, y) = small_net(), small_batch()
    x.requires_grad_(wants)
    model.out.bias.requires_grad_(False)
    before = x.detach().clone(), y.clone()
    pending = model(x).sum()  # a graph that was built before the attack still works after it
    adversary = kind(model, **SHORT).perturb(x, y)
    assert not adversary.requires_grad
    assert x.requires_grad is wants
    assert x.grad is None
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(y, before[1])
    assert all(p.grad is None for p in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["out.bias"]
    pending.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["out.bias"]


@BOTH
def test_no_gradient_is_recorded_for_the_parameters(kind):
    def loss(logits, y):
        assert logits.requires_grad
        assert not any(p.requires_grad for p in model.parameters())
        return cross_entropy(logits, y)

    model, (x, y) = small_net(), small_batch()
    kind(model, loss, **SHORT).perturb(x, y)
    assert all(p.requires_grad for p in model.parameters())


@BOTH
@pytest.mark.parametrize("freeze", [False, True])
def test_batchnorm_and_modes_stay_as_they_are(kind, freeze):
    model, (x, y) = norm_batch_net(), small_batch()
    if freeze:
        model.norm.eval()
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    adversary = kind(model, generator=generator(), **SHORT).perturb(x, y)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(adversary, kind(model.eval(), generator=generator(), **SHORT).perturb(x, y))


@BOTH
def test_the_model_comes_back_after_an_exception(kind):
    def breaks(logits, y):
        raise ArithmeticError

    model, (x, y) = norm_batch_net(), small_batch()
    with pytest.raises(ArithmeticError):
        kind(model, breaks, **SHORT).perturb(x, y)
    with pytest.raises(BadInput) as error:
        kind(model, **SHORT).perturb(x, y + 9)
    assert (error.value.code, error.value.field) == ("bad-value", "labels")
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@BOTH
def test_randomness_comes_from_the_generator_or_else_from_torch(kind):
    model, (x, y) = small_net(norm=True).train(), small_batch()
    state = torch.get_rng_state()
    first, again, other = (kind(model, generator=generator(seed), **SHORT).perturb(x, y) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with torch.random.fork_rng():
        drawn = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            drawn.append(kind(model, **SHORT).perturb(x, y))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# What it returns.


@pytest.mark.parametrize(
    ("kind", "project"),
    [(LinfATENTAttack, "last"), (LinfATENTAttack, "every"), (L2ATENTAttack, "last"), (L2ATENTAttack, "every")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [None, "corner", "near"])
@pytest.mark.parametrize("direction", [None, "raw"])
def test_results_lie_in_ball_and_box(kind, project, dtype, start, direction):
    model, (x, y) = small_net(dtype=dtype), small_batch(dtype=dtype)
    x = x.round(decimals=1)  # some values on the border of the box
    attack = kind(model, eps=0.3, nb_iter=4, eps_iter=0.5, noise=0.5, project=project, start=start, direction=direction)
    adversary = attack.perturb(x, y)
    assert adversary.dtype is dtype
    assert ((adversary >= 0) & (adversary <= 1)).all()
    assert size(kind, adversary - x).max() <= 0.3 + (1e-6 if dtype is torch.float32 else 1e-12)


def test_without_projection_the_box_still_holds():
    model, (x, y) = small_net(), small_batch()
    adversary = L2ATENTAttack.paper(model, eps=0.3, noise=0.5, clip_min=-0.1, clip_max=1.2).perturb(x, y)
    assert adversary.min() == -0.1
    assert adversary.max() == 1.2
    assert (adversary - x).flatten(1).norm(dim=1).min() > 0.3


@BOTH
def test_eps_per_example(kind):
    model, (x, y) = small_net(dtype=torch.float32), small_batch(3, dtype=torch.float32)
    eps = torch.tensor([0.0, 0.05, 0.4], dtype=torch.float64)
    settings = {"nb_iter": 6, "noise": 0.0, "gamma": 0.0, "rand_init": False, **FREE}
    both = kind(model, eps=eps, eps_iter=eps / 4, **settings).perturb(x, y)
    assert both.dtype is torch.float32
    assert torch.equal(both[0], x[0])
    assert size(kind, both - x).tolist() == pytest.approx(eps.tolist(), abs=1e-6)
    for i, value in enumerate(eps):
        for radius in (value.item(), value):  # a tensor of rank 0 is a number
            alone = kind(model, eps=radius, eps_iter=radius / 4, **settings).perturb(x[i : i + 1], y[i : i + 1])
            torch.testing.assert_close(alone, both[i : i + 1], rtol=0, atol=1e-5)


@BOTH
def test_sample_returns_independent_chains(kind):
    model, x, y = flat_problem(3000, 2)
    attack = kind(model, eps=9.0, nb_iter=2, eps_iter=0.1, noise=0.4, rand_init=False, generator=generator(), **FREE)
    chains = attack.sample(x, y, 3)
    assert chains.shape == (3, 3000, 2)
    correlation = torch.corrcoef(chains.flatten(1)) - torch.eye(3)
    assert correlation.abs().max() < 0.05
    assert chains.std(dim=(1, 2)).min() > 0.2


@BOTH
def test_the_first_chain_of_sample_is_perturb(kind):
    model, (x, y) = small_net(), small_batch()
    chains = kind(model, generator=generator(), **SHORT).sample(x, y, 2)
    assert torch.equal(chains[0], kind(model, generator=generator(), **SHORT).perturb(x, y))
    assert not torch.equal(chains[0], chains[1])
    still = kind(model, noise=0.0, rand_init=False, **SHORT).sample(x, n=2)
    assert torch.equal(still[0], still[1])
    assert kind(model, **SHORT).sample(x, y).shape == (1, *x.shape)


@BOTH
def test_a_users_loss_is_the_one_that_grows(kind):
    model, (x, y) = small_net(), small_batch()
    usual = kind(model, generator=generator(), **SHORT).perturb(x, y)
    summed = kind(model, nn.CrossEntropyLoss(reduction="sum"), generator=generator(), **SHORT).perturb(x, y)
    assert torch.equal(usual, summed)

    model, x, y = linear_problem()
    settings = {"eps": 0.5, "nb_iter": 100, "eps_iter": 0.05, "noise": 0.0, "generator": generator(), **FREE}
    dual = model.w.norm() if kind is L2ATENTAttack else model.w.abs().sum()
    margins = margin(model(x), y)
    for sign, loss in ((1, margin), (-1, lambda logits, labels: -margin(logits, labels))):
        reached = margin(model(kind(model, loss, **settings).perturb(x, y)), y)
        torch.testing.assert_close(reached, margins + sign * 0.5 * dual, rtol=0, atol=1e-4)


@BOTH
def test_predict_may_be_a_plain_function(kind):
    model, (x, y) = small_net(), small_batch()
    adversary = kind(lambda images: model(images), generator=generator(), **SHORT).perturb(x, y)
    assert torch.equal(adversary, kind(model, generator=generator(), **SHORT).perturb(x, y))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@BOTH
def test_an_empty_batch_gives_an_empty_result(kind):
    """advertorch's image model cannot even run on one: it ends in `view(0, -1)`."""
    attack = kind(advertorch_models.SimpleImageModel(), **SHORT)
    empty = torch.zeros(0, 3, 16, 16)
    assert attack.perturb(empty, torch.zeros(0, dtype=torch.long)).shape == empty.shape
    assert attack.perturb(empty).shape == empty.shape
    assert attack.sample(empty, n=4).shape == (4, *empty.shape)


@BOTH
def test_a_model_that_squeezes_a_single_example_will_do(kind):
    model, (x, y) = small_net(), small_batch()
    adversary = kind(lambda images: model(images).squeeze(), generator=generator(), **SHORT).perturb(x, y)
    assert torch.equal(adversary, kind(model, generator=generator(), **SHORT).perturb(x, y))


# What it refuses.


@BOTH
@pytest.mark.parametrize(
    ("change", "code", "field", "words"),
    [
        (lambda x, y: (x * 255, y), "bad-value", "images", "look like 0-255 images: divide them by 255"),
        (lambda x, y: ((x - 0.45) / 0.2, y), "bad-value", "images", "look normalised: .* normalisation into the model"),
        (lambda x, y: (x.where(x < 0.9, torch.nan), y), "bad-value", "images", "images hold NaN or infinity"),
        (lambda x, y: ((x * 255).to(torch.uint8), y), "bad-type", "images", "images are torch.uint8 of shape"),
        (
            lambda x, y: (x, y + 3),
            "bad-value",
            "labels",
            r"labels span \[\d, \d\]; .* at most 3, for a model of 4 classes",
        ),
        (lambda x, y: (x, y - 1), "bad-value", "labels", r"labels span \[-1, 1\]; they must be at least 0"),
        (lambda x, y: (x, y[:, None]), "bad-shape", "labels", r"labels have shape \(7, 1\)"),
        (lambda x, y: (x, y[:3]), "bad-shape", "labels", r"labels have shape \(3,\)"),
        (lambda x, y: (x, y.double()), "bad-type", "labels", "labels are torch.float64; integer class numbers"),
    ],
)
def test_invalid_images_and_labels_are_refused(kind, change, code, field, words):
    attack = kind(small_net(), **SHORT)
    with pytest.raises(BadInput, match=words) as error:
        attack.perturb(*change(*small_batch()))
    assert (error.value.code, error.value.field) == (code, field)


@BOTH
@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("eps", -0.1, "bad-value"),
        ("eps", float("nan"), "bad-value"),
        ("eps", torch.tensor([0.1, float("nan")]), "bad-value"),
        ("nb_iter", 0, "bad-value"),
        ("nb_iter", 2.5, "bad-type"),
        ("eps_iter", -1.0, "bad-value"),
        ("noise", -1.0, "bad-value"),
        ("gamma", INF, "bad-value"),
        ("project", "often", "unknown-name"),
        ("start", "moon", "unknown-name"),
        ("direction", "up", "unknown-name"),
        ("pull", "push", "unknown-name"),
        ("loss_fn", "ce", "bad-type"),
    ],
)
def test_invalid_arguments_are_refused_at_once(kind, field, value, code):
    with pytest.raises(BadInput, match=f"^{field} is {re.escape(shown(value))}") as error:
        kind(small_net(), **{field: value})
    assert (error.value.code, error.value.field) == (code, field)


SIDES = {
    "one number": (torch.tensor(0.2), torch.tensor([0.7])),
    "per channel": (torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.7)),
    "per feature": (torch.full((1, 6, 6), 0.2), torch.full((1, 6, 6), 0.7)),
    "per example": (torch.full((7, 1, 6, 6), 0.2), torch.full((7, 1, 6, 6), 0.7)),
    "one side": (0.2, torch.full((1, 6, 6), 0.7)),
}
"""Tensors, as advertorch takes them, for the box [0.2, 0.7]."""


@BOTH
@pytest.mark.parametrize("settings", [{}, {"restarts": 2, "keep": "success"}], ids=["chain", "restarts"])
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_clip_values_may_be_tensors(kind, sides, settings):
    model, (x, y) = small_net(), small_batch()
    x = 0.2 + x / 2
    given = {"eps": 0.3, **SHORT, **settings}
    expected = kind(model, clip_min=0.2, clip_max=0.7, generator=generator(), **given).perturb(x, y)
    attack = kind(model, generator=generator(), **given)
    attack.clip_min, attack.clip_max = sides
    torch.testing.assert_close(attack.perturb(x, y), expected, rtol=0, atol=1e-6)


@BOTH
def test_each_feature_has_its_own_clip_values(kind):
    model, (x, y) = small_net(), small_batch()
    low, high = (x - 0.05).amin(0), (x + 0.05).amax(0)
    low[0, 0] = x[:, 0, 0].amin(0) - 1e-6
    found = kind(model, clip_min=low, clip_max=high, **SHORT).perturb(x, y)
    assert bool(((found >= low) & (found <= high)).all())
    assert bool(((found == low) | (found == high)).any())


@BOTH
@pytest.mark.parametrize(
    ("sides", "code", "field"),
    [
        ((torch.ones(1, 6, 6), torch.zeros(1, 6, 6)), "bad-value", "clip_min"),
        ((torch.full((1, 6, 6), torch.nan), 1.0), "bad-value", "clip_min"),
        ((0.0, torch.ones(1, 6, 6, dtype=torch.complex64)), "bad-value", "clip_max"),
        ((torch.zeros(5, 5), 1.0), "bad-shape", "clip_min"),
        ((torch.zeros(5, 5), torch.ones(4)), "bad-shape", "clip_min"),
        ((0.0, torch.full((1, 6, 6), 0.01)), "bad-value", "images"),
        ((0.0, "1"), "bad-type", "clip_min"),
    ],
    ids=["reversed", "NaN", "complex", "wrong shape", "two shapes", "images outside", "text"],
)
def test_clip_values_that_make_no_sense_are_refused_by_name(kind, sides, code, field):
    with pytest.raises(BadInput) as error:
        kind(small_net(), clip_min=sides[0], clip_max=sides[1], **SHORT).perturb(*small_batch())
    assert (error.value.code, error.value.field) == (code, field)
    assert len(str(error.value)) < 250


@BOTH
def test_an_empty_box_and_what_is_no_model_are_refused(kind):
    with pytest.raises(BadInput, match=r"^\(clip_min, clip_max\) is \(1\.0, 0\.0\)") as error:
        kind(small_net(), clip_min=1.0, clip_max=0.0)
    assert (error.value.code, error.value.field) == ("bad-value", "clip_min")
    with pytest.raises(BadInput, match=r"^predict is 3; it must be a model") as error:
        kind(3)
    assert (error.value.code, error.value.field) == ("bad-type", "predict")


def test_linf_without_projection_is_refused():
    with pytest.raises(BadInput, match="project is None; the ℓ∞ attack projects") as error:
        LinfATENTAttack(small_net(), project=None)
    assert (error.value.code, error.value.field) == ("bad-type", "project")


@BOTH
def test_other_refusals(kind):
    model, (x, y) = small_net(), small_batch()
    with pytest.raises(BadInput, match="a targeted attack needs the target classes") as error:
        kind(model, targeted=True, **SHORT).perturb(x)
    assert (error.value.code, error.value.field) == ("missing", "y")
    with pytest.raises(BadInput) as error:
        kind(model, **SHORT).sample(x, y, 0)
    assert (error.value.code, error.value.field) == ("bad-value", "n")
    with pytest.raises(BadInput, match=r"shape \(7,\), not \(2,\)"):
        kind(model, eps=torch.tensor([0.1, 0.2])).perturb(x, y)


@BOTH
def test_an_image_that_rounding_put_outside_the_box_is_taken(kind):
    model, (x, y) = small_net(dtype=torch.float32), small_batch(dtype=torch.float32)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = 1 + 1e-6, -1e-6
    adversary = kind(model, **SHORT).perturb(x, y)
    assert 0 <= adversary.min() <= adversary.max() <= 1


@BOTH
def test_the_kernel_holds_what_the_attack_says(kind):
    attack = kind(small_net(), targeted=True, clip_min=-1.0, rand_init=False)
    assert {f.name: getattr(attack.kernel, f.name) for f in dataclasses.fields(attack.kernel)} == {
        "norm": kind.norm,
        "eps": attack.eps,
        "steps": 40,
        "step_size": 2 * attack.eps if kind is L2ATENTAttack else attack.eps,
        "direction": "unit" if kind is L2ATENTAttack else "sign",
        "noise": 1e-3 if kind is L2ATENTAttack else 0.4 * math.sqrt(0.3 / 2),
        "gamma": 0.0,
        "pull": "authors" if kind is L2ATENTAttack else "coordinate",
        "project": "every",
        "start": "clean",
        "schedule": "cosine",
        "box": (-1.0, 1.0),
        "box_first": False,
        "targeted": True,
    }


# The paper, losses in turn, gradients that vanish.


def test_paper_is_the_printed_algorithm():
    linf, l2 = LinfATENTAttack.paper(small_net()), L2ATENTAttack.paper(small_net(), nb_iter=20)
    assert (linf.kernel.steps, linf.kernel.step_size, linf.kernel.noise) == (40, 0.01, 1e-3)
    assert (linf.kernel.schedule, linf.kernel.project, linf.kernel.gamma) == ("constant", "last", 0.0)
    assert (l2.kernel.steps, l2.kernel.step_size, l2.kernel.noise) == (20, 0.125, 1e-3)
    assert (l2.kernel.schedule, l2.kernel.project, l2.kernel.gamma) == ("constant", "never", 0.05)
    assert [attack.loss_fn.__name__ for attack in (linf, l2)] == ["cross_entropy"] * 2


@BOTH
def test_restarts_take_the_losses_in_turn(kind):
    model, (x, _) = small_net(), small_batch(30)
    y = model(x).argmax(1)
    attack = kind(model, eps=0.02, nb_iter=3, restarts=3, generator=generator())
    ranking = model(x).scatter(1, y[:, None], -torch.inf).argsort(1, descending=True)
    source, found, done = generator(), x, torch.zeros(30, dtype=torch.bool)
    for target in (None, ranking[:, 0], ranking[:, 1]):

        def loss(logits, y, target=target):
            pair = logits.gather(1, torch.stack([y, y if target is None else target], 1))
            return cross_entropy(logits, y) if target is None else pair[:, 1] - pair[:, 0]

        last = last_iterate(attack.kernel, model, x, y, loss, source)
        found = torch.where(done[:, None, None, None], found, last)
        done |= model(last).argmax(1) != y
    torch.testing.assert_close(attack.perturb(x, y), found, rtol=0, atol=1e-12)


class Hidden(nn.Module):
    """`network` with logits that `hide` changes."""

    def __init__(self, network, hide):
        super().__init__()
        self.network, self.hide = network, hide

    def forward(self, x):
        return self.hide(self.network, x)


@BOTH
@pytest.mark.parametrize(
    "hide",
    [
        lambda network, x: 1e5 * network(x),  # the softmax saturates
        lambda network, x: network((8 * x).round() / 8),  # no gradient anywhere
    ],
    ids=["scaled", "rounded"],
)
def test_a_gradient_that_vanishes_is_left_and_said(kind, hide):
    network = small_net(dtype=torch.float32)
    x, _ = small_batch(60, dtype=torch.float32)
    model, eps = Hidden(network, hide), 0.1 if kind is LinfATENTAttack else 0.8
    y = model(x).argmax(1)
    broken = {}
    for name, settings in (("annealed", {}), ("constant", {"eps_iter": 0.1 * eps, "loss_fn": cross_entropy})):
        attack = kind(model, eps=eps, nb_iter=20, restarts=2, keep="success", generator=generator(), **settings)
        if name == "annealed":
            with pytest.warns(GradientVanished, match=r"vanished for \d+ of 60 images") as heard:
                adversary = attack.perturb(x, y)
            assert heard[0].message.count > 40
        else:
            adversary = attack.perturb(x, y)
        broken[name] = int((model(adversary).argmax(1) != y).sum())
    assert broken["annealed"] > broken["constant"]
