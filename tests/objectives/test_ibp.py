import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import gradient_vector, small_batch, small_net
from torch import nn

from atent_ext.attacks.accuracy import clean_flags, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.certification.intervals import certified_linf, interval_bounds, sequence, worst_margins
from atent_ext.core import registry, schema
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import LINF
from atent_ext.data import datasets
from atent_ext.models.contrast import ContrastCNN
from atent_ext.models.networks import DigitsCNN, LeNet5V1, ResNet20, SmallCNN
from atent_ext.objectives import IBP
from atent_ext.training import recipes
from atent_ext.training.loop import fit

BOX = (0.0, 1.0)
EVERYWHERE = (-torch.inf, torch.inf)


def many_layers():
    """Every kind of layer with bounds; batch norm has statistics and weights of both signs, away from 0 and 1."""
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2), nn.Tanh(), nn.Dropout(0.5)),
        nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Identity(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        nn.Sequential(nn.Linear(24, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 5)),
    )
    norm = network[0][1]
    for values, low, high in ((norm.weight, -2, 2), (norm.bias, -1, 1), (norm.running_mean, -1, 1)):
        nn.init.uniform_(values, low, high)
    nn.init.uniform_(norm.running_var, 0.3, 3)
    return network


def small_cnn():
    network = SmallCNN()
    nn.init.normal_(network.classifier[-1].weight)  # at its zero, the bounds would be empty
    return network


def contrast_cnn():
    network = ContrastCNN()
    nn.init.normal_(network[-1].weight, std=10)  # its own start is too small to see
    return network


NETWORKS = {
    "many-layers": (many_layers, (1, 8, 8)),
    "digits-cnn": (DigitsCNN, (1, 8, 8)),
    "lenet5-v1": (LeNet5V1, (1, 28, 28)),
    "small-cnn": (small_cnn, (1, 28, 28)),
    "contrast-cnn": (contrast_cnn, (1, 28, 28)),
}


def network(name, seed=0):
    """The network in float64, in eval mode, and two inputs."""
    make, shape = NETWORKS[name]
    with seeded(seed):
        return make().double().eval(), torch.rand(2, *shape, dtype=torch.float64)


def linear(seed=0, inputs=6, classes=4):
    with seeded(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double(), torch.randn(50, inputs).double()


# ---- bounds


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), eps=st.floats(0.0, 0.5))
def test_no_point_of_the_box_leaves_the_bounds(name, seed, eps):
    model, x = network(name, seed)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    y = torch.tensor([0, 3])
    with torch.no_grad():
        least, most = interval_bounds(model, low, high)
        margins = worst_margins(model, x, y, eps)
        generator = torch.Generator().manual_seed(seed)
        for point in range(8):
            where = torch.rand(x.shape, generator=generator, dtype=x.dtype)
            logits = model(low + (high - low) * (where.round() if point % 2 else where))
            assert bool((logits >= least - 1e-9).all())
            assert bool((logits <= most + 1e-9).all())
            assert bool((logits - logits.gather(1, y[:, None]) <= margins + 1e-9).all())


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_radius_the_bounds_are_the_logits(name):
    model, x = network(name)
    logits = model(x)
    assert float(logits.detach().std()) > 0.01
    for bound in interval_bounds(model, x, x):
        torch.testing.assert_close(bound, logits, rtol=0, atol=1e-12)
    y = torch.tensor([0, 3])
    torch.testing.assert_close(worst_margins(model, x, y, 0.0), logits - logits.gather(1, y[:, None]))


def test_of_a_linear_model_they_are_exact():
    model, x = linear()
    least, most = interval_bounds(model, x - 0.3, x + 0.3)
    reach = 0.3 * model[1].weight.abs().sum(1)
    torch.testing.assert_close(least, model(x) - reach)
    torch.testing.assert_close(most, model(x) + reach)


def test_of_a_monotone_function_of_one_number_they_are_exact():
    model = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    for layer in (model[0], model[2], model[4]):
        nn.init.uniform_(layer.weight, 0.1, 1)
    low = torch.linspace(-2, 1, 7, dtype=torch.float64)[:, None]
    least, most = interval_bounds(model, low, low + 1)
    torch.testing.assert_close((least, most), (model(low), model(low + 1)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["many-layers", "small-cnn"])
def test_they_are_those_of_eval_mode_and_leave_the_model_as_it_was(name):
    model, x = network(name)
    expected = interval_bounds(model, x - 0.1, x + 0.1)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = x.clone()
    torch.testing.assert_close(interval_bounds(model.train(), x - 0.1, x + 0.1), expected, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(x, inputs)


def test_an_in_place_layer_leaves_the_box_alone():
    low, high = torch.full((1, 2), -1.0), torch.ones(1, 2)
    least, _ = interval_bounds(nn.Sequential(nn.ReLU(inplace=True)), low, high)
    assert (float(low.min()), float(least.min())) == (-1, 0)


class Chained(nn.Module):
    """A chain of its children, or not: an operation between two of them, or a child that is used twice."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.first, self.relu, self.last = kind, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.relu(self.first(x))
        if self.kind == "twice":
            return self.relu(self.last(hidden))
        return self.last({"chain": hidden, "shift": hidden + 0.1, "skip": hidden + x}[self.kind])


@pytest.mark.parametrize("kind", ["chain", "shift", "skip", "twice"])
def test_a_network_with_its_own_forward_is_accepted_only_if_it_is_a_chain(kind):
    with seeded(0):
        model, x = Chained(kind), torch.rand(4, 6)
    if kind == "chain":
        assert sequence(model, x) == [model.first, model.relu, model.last]
        return
    with pytest.raises(BadInput, match=r"Chained does not apply its children in order; write it as an nn\.Sequential"):
        sequence(model, x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.GELU()), "the layer GELU.* has no interval bounds; build the network"),
        (lambda: nn.Sequential(nn.Flatten(), Doubled(64, 3)), "the layer Doubled.* has no interval bounds"),
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), "padding_mode 'reflect'"),
        (lambda: nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), "BatchNorm2d has no running statistics"),
        (lambda: ResNet20(channels=1), "ResNet20 does not apply its children in order"),
        (lambda: small_net().float(), "SmallNet does not apply its children in order"),
        (lambda: torch.sin, "the model is a builtin_function_or_method; interval bounds need an nn.Module"),
    ],
)
def test_a_network_without_bounds_is_refused_by_name(make, words):
    x = torch.rand(2, 1, 6, 6) if "SmallNet" in words else torch.rand(2, 1, 8, 8)
    with pytest.raises(BadInput, match=words):
        interval_bounds(make(), x, x)


@pytest.mark.parametrize("high", [torch.zeros(2, 6), torch.ones(1, 6), torch.full((2, 6), torch.nan)])
def test_a_bad_box_is_refused(high):
    with pytest.raises(BadInput, match=r"low .2, 6. must have the shape of high"):
        interval_bounds(linear()[0].float(), torch.full((2, 6), 0.5), high)


# ---- certification


def test_a_linear_model_is_certified_exactly_where_its_margin_exceeds_the_dual_norm():
    model, x = linear()
    logits, weight = model(x).detach(), model[1].weight.detach()
    for eps in (0.05, 0.2, 0.6):
        y = logits.argmax(1)
        y[::5] = (y[::5] + 1) % 4  # some are wrong
        reach = eps * (weight[y][:, None] - weight).abs().sum(2)
        safe = logits.gather(1, y[:, None]) - logits > reach
        expected = safe.scatter(1, y[:, None], True).all(1)
        assert 0 < int(expected.sum()) < 40
        assert not expected[::5].any()
        assert torch.equal(certified_linf(model, x, y, eps, EVERYWHERE), expected)
        assert torch.equal(certified_linf(model, x, y, eps, EVERYWHERE, batch_size=7), expected)


def test_the_box_cuts_the_ball():
    model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
    model[0].weight.data = torch.tensor([[-1.0], [1.0]]).double()  # margin of class 1: 2 x
    x, y = torch.tensor([[0.2]]).double(), torch.tensor([1])
    assert certified_linf(model, x, y, 0.5, (0.1, 1.0)).tolist() == [True]
    assert certified_linf(model, x, y, 0.5, (-1.0, 1.0)).tolist() == [False]
    assert certified_linf(model, x, y, 0.5).tolist() == [False]  # the margin is 0 at 0: a tie is not right


def test_a_last_layer_that_is_not_linear_is_not_elided():
    model, x = linear()
    wrapped = nn.Sequential(model, nn.Identity())
    least, most = interval_bounds(model, x - 0.1, x + 0.1)
    y = torch.arange(50) % 4
    expected = (most - least.gather(1, y[:, None])).scatter(1, y[:, None], 0.0)
    torch.testing.assert_close(worst_margins(wrapped, x, y, 0.1, EVERYWHERE), expected)
    assert bool((worst_margins(model, x, y, 0.1, EVERYWHERE) <= expected + 1e-12).all())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"x": torch.full((2, 1, 8, 8), 3.0)}, "images span"),
        ({"y": torch.tensor([0, 10])}, "labels span .0, 10.; they must be at least 0 and at most 9"),
        ({"y": torch.tensor([0])}, "labels have shape"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_certification_refuses_bad_input(change, words):
    arguments = {"x": torch.rand(2, 1, 8, 8), "y": torch.tensor([0, 9]), "eps": 0.1}
    with pytest.raises(BadInput, match=words):
        certified_linf(DigitsCNN(), **arguments | change)


# ---- the objective


def naive_loss(model, x, y, eps, kappa):
    """Interval arithmetic by the signs of the weights, and the last layer's differences class by class."""
    first, second, third = model[0], model[3], model[5]
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)

    def ends(layer, function):
        positive, negative = layer.weight.clamp_min(0), layer.weight.clamp_max(0)
        constant = layer.bias.view(1, -1, *[1] * (low.dim() - 2))
        return (
            function(low, positive) + function(high, negative) + constant,
            function(high, positive) + function(low, negative) + constant,
        )

    low, high = ends(first, lambda value, weight: F.conv2d(value, weight, padding=1))
    low, high = low.relu().flatten(1), high.relu().flatten(1)
    low, high = ends(second, F.linear)
    low, high = low.relu(), high.relu()
    losses = []
    for i, (label, logits) in enumerate(zip(y.tolist(), model(x), strict=True)):
        worst = []
        for k in range(len(third.weight)):
            rows = third.weight[k] - third.weight[label]
            corner = torch.where(rows > 0, high[i], low[i])
            worst.append((rows * corner).sum() + third.bias[k] - third.bias[label])
        robust = torch.stack(worst).exp().sum().log()  # the label's own is 0
        losses.append(kappa * (logits.logsumexp(0) - logits[label]) + (1 - kappa) * robust)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("eps", [0.0, 0.07])
def test_the_loss_and_its_gradient_match_the_naive_formula(kappa, eps):
    with seeded(0):
        head = (nn.Flatten(), nn.Linear(5 * 36, 9), nn.ReLU(), nn.Linear(9, 4))
        model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), *head).double()
    x, y = small_batch()
    expected = naive_loss(model, x, y, eps, kappa)
    expected.backward()
    slope = gradient_vector(model)
    model.zero_grad()
    (term,) = IBP(eps=eps, kappa=kappa)(model, x, y)
    term.backward()
    assert abs(float((term - expected).detach())) < 1e-9 * float(expected.detach())
    assert float(slope.norm()) > 0.01
    assert float((gradient_vector(model) - slope).norm()) < 1e-9 * float(slope.norm())


def test_it_learns_through_batch_norm_and_dropout_in_train_mode():
    model, x = network("many-layers")
    statistics = model[0][1].running_mean.clone()
    with torch.random.fork_rng():
        (term,) = IBP(eps=0.1)(model.train(), x, torch.tensor([0, 3]))
    term.backward()
    assert not torch.equal(model[0][1].running_mean, statistics)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_only_eps_is_scaled():
    objective = IBP(eps=0.2, kappa=0.4, box=(-1.0, 1.0))
    assert objective.scaled(0.5) == IBP(eps=0.1, kappa=0.4, box=(-1.0, 1.0))
    assert (objective.terms, objective.norm, IBP(eps=0.2).kappa, IBP(eps=0.2).box) == (1, "Linf", 0.5, BOX)


def test_kappa_falls_while_eps_grows():
    objective = IBP(eps=0.2, kappa=0.25, kappa_start=1.0)
    kappas = {share: objective.scaled(share).kappa for share in (0.0, 0.2, 1.0, 1.5)}
    assert kappas == pytest.approx({0.0: 1.0, 0.2: 0.85, 1.0: 0.25, 1.5: 0.25})
    assert objective.scaled(0.5).scaled(0.5).kappa == objective.scaled(0.5).kappa  # the share is taken once


@pytest.mark.parametrize(
    ("fields", "wrong", "words"),
    [
        ({"eps": -0.1}, "eps", "eps is -0.1"),
        ({"eps": 0.1, "kappa": 1.5}, "kappa", r"kappa is 1.5; it must lie in \[0, 1\]"),
        ({"eps": 0.1, "kappa": float("nan")}, "kappa", "kappa is nan"),
        ({"eps": 0.1, "kappa_start": -1.0}, "kappa_start", "kappa_start is -1.0"),
        ({"eps": 0.1, "box": (1.0, 0.0)}, "box", "box is .1.0, 0.0.; its first value must be below its second"),
        ({"eps": 0.1, "norm": "L2"}, "norm", "norm is 'L2'; interval bounds are for 'Linf'"),
    ],
)
def test_a_bad_value_is_refused_by_name(fields, wrong, words):
    with pytest.raises(BadInput, match=words) as error:
        IBP(**fields)
    assert (error.value.code, error.value.field) == ("bad-value", wrong)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.steps=3", "unknown field 'objective.steps'; did you mean 'objective.eps'"),
        ("objective.norm=L2", "objective.norm is 'L2'"),
        ("objective.kappa=2", "kappa is 2.0"),
        (["objective.kappa_start=1", "eps_ramp=0"], "objective.kappa_start is where kappa begins while eps grows"),
    ],
)
def test_a_recipe_refuses_unknown_fields_and_bad_values(override, words):
    with pytest.raises(BadInput, match=words):
        recipes.load("digits-linf-ibp", [override] if isinstance(override, str) else override)


# ---- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The test digits, and networks trained for 10 epochs at eps 0.04: on the bounds (kappa 0.5) and standard (1)."""
    digits = datasets.load("digits")
    short = ["epochs=10", "threat.eps=0.04", "objective.eps=0.04", "validation.steps=1"]

    def trained_with(kappa):
        recipe = recipes.load("digits-linf-ibp", [*short, f"objective.kappa={kappa}"])
        return fit(recipe, digits, tmp_path_factory.mktemp("ibp") / "run").load_model(digits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.MODELS, "digits-cnn", "studies:DigitsNet")
        return digits.test, {kappa: trained_with(kappa) for kappa in (0.5, 1.0)}


def certified(model, split):
    return certified_linf(model, split.images, split.labels, 0.04)


def test_training_on_the_bounds_raises_certified_accuracy(trained):
    split, models = trained
    figures = {
        kappa: (clean_flags(model, split).double().mean(), certified(model, split).double().mean())
        for kappa, model in models.items()
    }
    assert figures[0.5][0] > 0.9
    assert figures[0.5][1] > 0.5
    assert figures[1.0][0] > 0.9
    assert figures[1.0][1] < 0.1


def test_certified_images_withstand_the_attack(trained):
    split, models = trained
    for model in models.values():
        robust = robust_flags(model, split, pgd(LINF, 0.04, 20), Setting(schema.Threat(norm="Linf", eps=0.04)))
        proven = certified(model, split)
        assert not bool((proven & ~robust).any())
        assert int(proven.sum()) < int(robust.sum())
