import copy
import importlib
import logging
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from problems import LinearTwoClass, small_batch, small_net, tiny_net
from torch import nn

pytest.importorskip("art.attacks", reason="adversarial-robustness-toolbox is not installed")

from art.data_generators import NumpyDataGenerator
from art.defences.preprocessor import FeatureSqueezing
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import EnsembleClassifier, PyTorchClassifier
from art.estimators.classification.scikitlearn import ScikitlearnLogisticRegression, ScikitlearnRandomForestClassifier
from art.exceptions import EstimatorError
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from atent_ext.attacks import langevin
from atent_ext.core import norms
from atent_ext.core.errors import BadInput, MissingExtra, NonFiniteLoss
from atent_ext.core.losses import cross_entropy
from atent_ext.integrations.art import ATENTAttack
from atent_ext.integrations.art_trainer import AdversarialTrainerObjectivePyTorch
from atent_ext.objectives import ATENT, MART, PGDAT, TRADES, Standard

SHORT = {"eps": 0.2, "eps_step": 0.08, "max_iter": 4, "seed": 3, "verbose": False}
COMMON = {"eps": 0.1, "steps": 3, "step_size": 0.05}
OBJECTIVES = [Standard(), *(method(**COMMON) for method in (PGDAT, TRADES, MART, ATENT)), ATENT(norm="L2", **COMMON)]
ANY = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)
NORMS = {np.inf: norms.LINF, 2: norms.L2}
BOTH = pytest.mark.parametrize("norm", [np.inf, 2])


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def wrapped(model, shape=(1, 6, 6), classes=4, clip_values=(0.0, 1.0), lr=0.1, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), shape, classes, optimizer, clip_values=clip_values, device_type="cpu", **options
    )


def arrays(count=7, dtype=torch.float64):
    return tuple(tensor.numpy() for tensor in small_batch(count, dtype=dtype))


def linear_problem(clip_values=None):
    model = LinearTwoClass((5,))
    x = torch.randn(6, 5, generator=generator(1), dtype=torch.float64)
    return model, wrapped(model, (5,), 2, clip_values), x, torch.arange(6) % 2


def digits(count=20, classes=3):
    """Noisy copies of one prototype a class, (N, 1, 8, 8) in [0, 1]."""
    prototypes = torch.rand(classes, 1, 8, 8, generator=generator(8))
    y = torch.arange(count) % classes
    noise = 0.1 * torch.rand(count, 1, 8, 8, generator=generator(9))
    return (0.9 * prototypes[y] + noise).numpy(), y.numpy()


def tiny(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return tiny_net(3)


def frozen_norm_net():
    """In train mode but for a BatchNorm frozen in eval, with a gradient and a parameter that is not trained."""
    model = small_net(norm=True).train()
    model.norm.eval()
    model.norm.running_mean += 0.3
    model.conv.bias.requires_grad_(False)
    model.out.weight.grad = torch.full_like(model.out.weight, 0.5)
    return model


def condition(model):
    """Everything but the weights that a caller may care about."""
    modes = [module.training for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    buffers = [buffer.tolist() for buffer in model.buffers()]
    return modes, gradients, [p.requires_grad for p in model.parameters()], buffers


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found, expected):
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# The attack and the kernel.


@BOTH
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("start", [0, 1])
def test_the_attack_is_the_kernel_with_arts_gradients(norm, targeted, start):
    model, (x, y) = small_net(), small_batch()
    kernel = langevin.atent(NORMS[norm], 0.2, 4, 0.08, noise=0.02, start=None if start else "clean", targeted=targeted)
    expected = langevin.last_iterate(kernel, model, x, y, cross_entropy, generator())
    attack = ATENTAttack(wrapped(model), norm, noise=0.02, targeted=targeted, num_random_init=start, **SHORT)
    assert attack.kernel == kernel
    torch.testing.assert_close(torch.tensor(attack.generate(x.numpy(), y.numpy())), expected, rtol=0, atol=1e-12)


def test_batches_follow_each_other_with_one_source_of_noise():
    model, (x, y) = small_net(), small_batch()
    attack = ATENTAttack(wrapped(model), batch_size=3, **SHORT)
    source = generator()
    parts = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])]
    expected = [langevin.last_iterate(attack.kernel, model, *part, cross_entropy, source) for part in parts]
    assert np.array_equal(attack.generate(x.numpy(), y.numpy()), torch.cat(expected).numpy())


@pytest.mark.parametrize(("norm", "name"), [("inf", "Linf"), (2, "L2")])
@pytest.mark.parametrize("clip_values", [None, (-50, 50)])
def test_the_optimum_of_a_linear_model_is_reached(norm, name, clip_values):
    model, classifier, x, y = linear_problem(clip_values)
    attack = ATENTAttack(classifier, norm, 0.7, 0.07, max_iter=100, noise=0.0, gamma=0.0, seed=0, verbose=False)
    found = torch.tensor(attack.generate(x.numpy(), y.numpy()))
    assert found.dtype == torch.float64
    torch.testing.assert_close(cross_entropy(model(found), y), model.worst_loss(x, y, name, 0.7), rtol=0, atol=1e-4)


@BOTH
def test_a_classifier_of_another_framework_is_led_to_its_optimum(norm):
    x = np.random.default_rng(0).normal(size=(40, 5))
    y = (x[:, 0] - x[:, 3] > 0).astype(int)
    classifier = ScikitlearnLogisticRegression(LogisticRegression().fit(x, y))
    away = (1 - 2 * y[:, None]) * classifier.model.coef_
    steepest = np.sign(away) if norm == np.inf else away / np.linalg.norm(away, axis=1, keepdims=True)
    attack = ATENTAttack(classifier, norm, 0.5, 0.1, max_iter=100, noise=0.0, gamma=0.0, seed=0, verbose=False)
    np.testing.assert_allclose(attack.generate(x, y), x + 0.5 * steepest, rtol=0, atol=1e-4)


LOW, HIGH = np.array([-1.0, -4.0, -4.0, -2.0, -4.0]), np.array([4.0, 0.5, 4.0, 3.0, 2.0])
PER_FEATURE = np.array([0.1, 0.2, 0.3, 0.4, 0.0])
SEPARATE = 0.1 * (1 + np.arange(6.0)[:, None])
MASKS = {"none": None, "of features": np.array([1, 1, 0, 1, 0]), "of all": np.arange(30).reshape(6, 5) % 3 > 0}
MASKS |= {"flipped": MASKS["of features"][::-1], "read-only": np.broadcast_to(np.array([1, 0, 1, 1, 1]), (6, 5))}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    ("norm", "eps"), [(np.inf, 0.3), (np.inf, PER_FEATURE), (np.inf, SEPARATE * PER_FEATURE), (2, 0.4), (2, SEPARATE)]
)
def test_ranges_radii_and_masks_may_differ_between_features(norm, eps, mask):
    model, classifier, x, y = linear_problem((LOW, HIGH))
    x = np.clip(x.numpy(), LOW + 0.4, HIGH)  # the highest value of a feature is reached
    away = (1 - 2 * y[:, None].numpy()) * model.w.detach().numpy() * (1 if mask is None else mask != 0)
    steepest = np.sign(away) if norm == np.inf else away / np.linalg.norm(away, axis=1, keepdims=True)
    expected = np.clip(x + eps * steepest, LOW, HIGH) if norm == np.inf else x + eps * steepest
    if norm == 2:  # no side of the box in the way
        classifier._clip_values = (LOW - 9, HIGH + 9)
    options = {"noise": 0.0, "gamma": 0.0, "num_random_init": 2, "batch_size": 4, "seed": 0, "verbose": False}
    attack = ATENTAttack(classifier, norm, eps, 0.15 * eps, max_iter=60, **options)
    found = attack.generate(x, y.numpy(), mask=mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 if norm == 2 else 1e-6)
    assert mask is None or (found == x)[np.broadcast_to(mask, x.shape) == 0].all()
    noisy = ATENTAttack(classifier, norm, eps, max_iter=3, noise=0.5, seed=0, verbose=False).generate(x, mask=mask)
    assert ((noisy >= classifier.clip_values[0]) & (noisy <= classifier.clip_values[1])).all()
    size = np.abs(noisy - x) if norm == np.inf else np.linalg.norm(noisy - x, axis=1, keepdims=True)
    assert (size <= eps + 1e-6).all()
    assert mask is None or (noisy == x)[np.broadcast_to(mask, x.shape) == 0].all()


def test_arrays_that_do_not_fit_are_refused_by_name():
    _, classifier, x, y = linear_problem((LOW, HIGH))
    for settings, values, field in (
        ({"norm": 2, "eps": PER_FEATURE}, x.clamp(-1, 0.5).numpy(), "eps"),
        ({"eps": np.ones((4, 1))}, x.clamp(-1, 0.5).numpy(), "eps"),
        ({}, x.numpy() + 9, "images"),
    ):
        with pytest.raises(BadInput) as error:
            ATENTAttack(classifier, verbose=False, **settings).generate(values, y.numpy())
        assert error.value.field == field


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_what_comes_back_lies_in_ball_and_box_in_the_dtype_that_went_in(norm, dtype):
    classifier = wrapped(small_net(dtype=torch.float32), clip_values=(0, 10))
    x = (10 * arrays()[0]).astype(dtype)
    settings = SHORT | {"eps": 3.0, "eps_step": 2.0}
    found = ATENTAttack(classifier, norm, noise=0.5, **settings).generate(x, arrays()[1])
    delta = (found - x).reshape(len(x), -1)
    size = np.abs(delta).max(1) if norm == np.inf else np.linalg.norm(delta, axis=1)
    assert found.dtype == (np.float32 if dtype is np.uint8 else dtype)
    assert size.max() <= 3.0 + 1e-5
    assert size.min() > 1.0
    assert found.min() >= 0
    assert found.max() <= 10


def test_the_step_follows_eps_unless_it_is_given():
    attack = ATENTAttack(wrapped(small_net()), eps=0.2, max_iter=50)
    assert attack.kernel.step_size == 0.2
    attack.set_params(eps=0.4)
    assert attack.kernel.step_size == 0.4
    attack.set_params(schedule="constant")
    assert attack.kernel.step_size == pytest.approx(0.02)
    assert "eps=0.4" in repr(attack)


# Labels, targets, restarts.


def test_labels_may_be_class_numbers_a_column_of_them_or_one_hot():
    x, y = arrays()
    attack = ATENTAttack(wrapped(small_net()), **SHORT)
    expected = attack.generate(x, y)
    for labels in (y.astype(np.uint8), y[:, None], np.eye(4)[y], np.eye(4, dtype=np.float32)[y], y.tolist()):
        assert np.array_equal(attack.generate(x, labels), expected)


def test_without_labels_the_predictions_are_taken():
    (x, _), classifier = arrays(), wrapped(small_net())
    attack = ATENTAttack(classifier, **SHORT)
    assert np.array_equal(attack.generate(x), attack.generate(x, classifier.predict(x).argmax(1)))


@BOTH
def test_of_two_classes_aiming_at_one_is_leaving_the_other(norm):
    _, classifier, x, y = linear_problem()
    away = ATENTAttack(classifier, norm, **SHORT).generate(x.numpy(), y.numpy())
    towards = ATENTAttack(classifier, norm, targeted=True, **SHORT).generate(x.numpy(), 1 - y.numpy())
    np.testing.assert_allclose(towards, away, rtol=0, atol=1e-12)


class Cliff(nn.Module):
    """Class 1 above `height`, class 0 below, and no slope anywhere: only a lucky start fools it."""

    def __init__(self, height):
        super().__init__()
        self.height = nn.Parameter(torch.tensor(height, dtype=torch.float64))

    def forward(self, x):
        score = (x.sum(1) > self.height) + 0.0 * x.sum(1)
        return torch.stack([0.5 + 0 * score, score], 1)


@pytest.mark.parametrize("targeted", [False, True])
def test_an_example_keeps_its_first_restart_that_fools(targeted):
    x, y = np.zeros((16, 1)), np.full(16, int(targeted))
    classifier = wrapped(Cliff(0.5), (1,), 2, None)
    settings = {"eps": 1.0, "eps_step": 2.5, "noise": 0.0, "max_iter": 1, "seed": 0, "verbose": False}
    settings["targeted"] = targeted
    first = ATENTAttack(classifier, **settings).generate(x, y)
    few = ATENTAttack(classifier, num_random_init=2, **settings).generate(x, y)
    many = ATENTAttack(classifier, num_random_init=40, **settings).generate(x, y)
    assert 0 < (first > 0.5).sum() < (few > 0.5).sum() < 16
    assert (many > 0.5).all()
    assert np.array_equal(few[first > 0.5], first[first > 0.5])
    assert np.array_equal(many[few > 0.5], few[few > 0.5])
    assert np.array_equal(few[few <= 0.5], first[few <= 0.5])


# Preprocessing. float64 inputs pass through ART's gradients; it rounds mean and std to float32, and predictions.


@BOTH
@pytest.mark.parametrize(("mean", "std", "atol"), [(0.5, 0.25, 1e-12), (0.1307, 0.3081, 1e-6)])
def test_a_normalising_classifier_is_attacked_as_its_model_on_raw_images(norm, mean, std, atol):
    model, (x, y) = small_net(), small_batch()
    attack = ATENTAttack(wrapped(model, preprocessing=(mean, std)), norm, **SHORT)
    expected = langevin.last_iterate(attack.kernel, lambda x: model((x - mean) / std), x, y, cross_entropy, generator())
    np.testing.assert_allclose(attack.generate(x.numpy(), y.numpy()), expected.numpy(), rtol=0, atol=atol)


def test_preprocessing_that_is_not_in_torch_is_attacked_through_arts_own_gradients():
    model, (x, y) = small_net(), small_batch()
    classifier = wrapped(model, preprocessing_defences=FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=8))
    attack = ATENTAttack(classifier, **SHORT)

    def gradient(moving):  # ART differentiates the rounding as if it were the identity
        rounded = ((255 * moving).round() / 255).requires_grad_()
        return torch.autograd.grad(cross_entropy(model(rounded), y).sum(), rounded)[0]

    *_, expected = langevin.walk(attack.kernel, x, gradient, generator())
    np.testing.assert_allclose(attack.generate(x.numpy(), y.numpy()), expected.numpy(), rtol=0, atol=1e-12)
    with pytest.raises(BadInput, match="gradients cannot flow"):
        AdversarialTrainerObjectivePyTorch(classifier, Standard())


# The model comes back as it was.


def test_the_models_of_an_ensemble_come_back_as_they_were():
    models = [frozen_norm_net(), frozen_norm_net()]
    before = [condition(model) for model in models]
    ensemble = EnsembleClassifier([wrapped(model) for model in models], clip_values=(0.0, 1.0), channels_first=True)
    ATENTAttack(ensemble, **SHORT).generate(*arrays())
    assert [condition(model) for model in models] == before


def test_numpys_state_rules_the_noise_where_there_is_no_seed():
    x, y = arrays()
    classifier, state = wrapped(small_net()), torch.get_rng_state()
    free = ATENTAttack(classifier, **SHORT | {"seed": None})
    found = []
    for seed in (1, 1, 2):
        np.random.seed(seed)  # noqa: NPY002
        found.append(free.generate(x, y))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_what_is_no_seed_is_refused(seed):
    classifier = wrapped(small_net())
    for build in (
        lambda: ATENTAttack(classifier, **SHORT | {"seed": seed}),
        lambda: AdversarialTrainerObjectivePyTorch(wrapped(tiny(), (1, 8, 8), 3), PGDAT(**COMMON), seed=seed),
    ):
        with pytest.raises(BadInput) as refused:
            build()
        assert (refused.value.code, refused.value.field) == ("bad-value", "seed")


def test_no_images_are_no_problem_and_nothing_is_printed_unless_asked(capsys):
    x, y = arrays()
    classifier = wrapped(small_net())
    assert ATENTAttack(classifier, **SHORT).generate(x[:0]).shape == (0, 1, 6, 6)
    ATENTAttack(classifier, **SHORT).generate(x, y)
    assert capsys.readouterr().err == ""
    ATENTAttack(classifier, **SHORT | {"verbose": True}).generate(x, y)
    assert "ATENT - Batches" in capsys.readouterr().err


# What is refused.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("norm", 1),
        ("norm", "L7"),
        ("norm", None),
        ("eps", -0.1),
        ("eps", np.ones(7)),
        ("eps_step", float("nan")),
        ("max_iter", 0),
        ("noise", -1.0),
        ("gamma", -1.0),
        ("targeted", 1),
        ("num_random_init", -1),
        ("num_random_init", 1.5),
        ("batch_size", 0),
        ("verbose", "yes"),
        ("verbose", -1),
    ],
)
def test_parameters_that_make_no_sense_are_refused_by_name(name, value):
    attack = ATENTAttack(wrapped(small_net()))
    with pytest.raises(BadInput, match=f"^{name} is "):
        ATENTAttack(wrapped(small_net()), **{name: value})
    with pytest.raises(BadInput, match=f"^{name} is "):
        attack.set_params(**{name: value})


X, Y = arrays()


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (X, np.eye(5)[Y], {}, "integer class numbers"),
        (X, Y, {"minimal": True}, "generate does not know minimal"),
        (X, Y, {"mask": np.ones((2, 5))}, r"mask is an array of shape \(2, 5\)"),
        (X, Y, {"mask": np.array(["yes"])}, "mask is an array of <U3"),
        (X[:, 0, 0, 0], Y, {}, "images are"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, y, options, message):
    with pytest.raises(BadInput, match=message):
        ATENTAttack(wrapped(small_net()), **SHORT).generate(x, y, **options)


def test_options_of_arts_other_attacks_are_ignored_as_by_its_gradient_attacks():
    attack = ATENTAttack(wrapped(small_net()), **SHORT)
    plain = attack.generate(X, Y)
    np.testing.assert_array_equal(attack.generate(X, Y, x_init=X[:3], x_adv_init=X, resume=True), plain)


def test_images_outside_the_clip_values_are_told_of_them():
    with pytest.raises(BadInput, match="or give the classifier other clip_values"):
        ATENTAttack(wrapped(small_net()), **SHORT).generate(2 * X - 1, Y)


def test_a_targeted_attack_needs_targets():
    with pytest.raises(BadInput, match="target classes"):
        ATENTAttack(wrapped(small_net()), targeted=True, **SHORT).generate(X)


def test_estimators_that_do_not_fit_are_refused():
    forest = ScikitlearnRandomForestClassifier(RandomForestClassifier(2).fit(np.eye(4), np.arange(4) % 2))
    with pytest.raises(EstimatorError):
        ATENTAttack(forest)
    low = np.zeros(5)
    assert ATENTAttack(wrapped(LinearTwoClass((5,)), (5,), 2, (low, low + 2))).kernel.box == (0.0, 2.0)


@pytest.mark.parametrize("present", [None, ModuleType("art")], ids=["nothing", "another package of that name"])
def test_without_art_the_extra_is_named(monkeypatch, present):
    for name in [name for name in sys.modules if name.partition(".")[0] == "art"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "art", present)
    monkeypatch.delitem(sys.modules, "atent_ext.integrations.art")
    with pytest.raises(MissingExtra, match=r"atent-ext\[art\]"):
        importlib.import_module("atent_ext.integrations.art")


# Beside ART's own classes.


def test_arts_trades_trainer_takes_the_attack():
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3)
    before = weights(classifier.model)
    attack = ATENTAttack(classifier, **SHORT | {"seed": None})
    AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0).fit(x, y, nb_epochs=1, batch_size=10)
    assert not torch.equal(before["1.weight"], classifier.model.state_dict()["1.weight"])


def test_the_trainer_is_called_as_arts_are():
    x, y = digits()
    for make in (
        lambda classifier: AdversarialTrainerMadryPGD(classifier, eps=0.1, eps_step=0.05, max_iter=2),
        lambda classifier: AdversarialTrainerObjectivePyTorch(classifier, ATENT(**COMMON)),
    ):
        trainer = make(wrapped(tiny(), (1, 8, 8), 3))
        before = weights(trainer.get_classifier().model)
        trainer.fit(x, np.eye(3)[y], validation_data=(x, y), batch_size=8, nb_epochs=1)
        assert trainer.classifier is trainer.get_classifier()
        assert not torch.equal(before["1.weight"], trainer.classifier.model.state_dict()["1.weight"])


# The trainer.


def train_by_hand(objective, model, x, y, epochs=1, batch_size=8, seed=5):
    """The loop that a user would write."""
    optimizer, source = torch.optim.SGD(model.parameters(), 0.1), generator(seed)
    x, y = torch.tensor(x), torch.tensor(y)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=source).split(batch_size):
            optimizer.zero_grad()
            for term in objective(model, x[index], y[index], index, generator=source):
                term.backward()
            optimizer.step()
    return model.state_dict()


@ANY
def test_an_epoch_is_a_hand_written_loop_bit_for_bit(objective):
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3)
    torch.manual_seed(0)  # dropout
    expected = train_by_hand(objective, tiny(), x, y)
    torch.manual_seed(0)
    AdversarialTrainerObjectivePyTorch(classifier, objective, 5, verbose=False).fit(x, y, batch_size=8, nb_epochs=1)
    assert_same(classifier.model.state_dict(), expected)


class Normalising(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model((x - torch.tensor(0.1307)) / torch.tensor(0.3081))


@pytest.mark.parametrize("objective", [TRADES(**COMMON), ATENT(**COMMON)], ids=["TRADES", "ATENT"])
def test_preprocessing_is_trained_through_and_the_objective_sees_raw_inputs(objective):
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3, preprocessing=(0.1307, 0.3081))
    torch.manual_seed(0)
    expected = train_by_hand(objective, Normalising(tiny()), x, y, epochs=2)
    torch.manual_seed(0)
    AdversarialTrainerObjectivePyTorch(classifier, objective, 5, verbose=False).fit(x, y, batch_size=8, nb_epochs=2)
    assert_same({f"model.{name}": value for name, value in classifier.model.state_dict().items()}, expected)


@ANY
def test_every_objective_lowers_its_loss(objective):
    x, y = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)

    def loss():
        total = 0.0
        for term in objective(model, torch.tensor(x), torch.tensor(y), generator=generator()):
            term.backward()
            total += float(term.detach())
        return total

    before = loss()
    trainer = AdversarialTrainerObjectivePyTorch(wrapped(model, (1, 8, 8), 3), objective, 0, verbose=False)
    trainer.fit(x, y, nb_epochs=30)
    assert loss() < 0.7 * before


def test_two_fits_of_one_epoch_are_one_fit_of_two():
    x, y = digits()
    found = []
    for epochs in ([1, 1], [2]):
        classifier = wrapped(tiny(), (1, 8, 8), 3)
        trainer = AdversarialTrainerObjectivePyTorch(classifier, PGDAT(**COMMON), 5, verbose=False)
        torch.manual_seed(0)
        for nb_epochs in epochs:
            trainer.fit(x, y, batch_size=8, nb_epochs=nb_epochs)
        found.append(weights(classifier.model))
    assert_same(*found)


def test_a_data_generator_is_trained_on_in_its_own_order():
    x, y = digits()
    classifier, model, source = wrapped(tiny(), (1, 8, 8), 3), tiny(), generator(5)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for part in (slice(0, 8), slice(8, 16), slice(16, 20)):
        optimizer.zero_grad()
        for term in PGDAT(**COMMON)(model, torch.tensor(x[part]), torch.tensor(y[part]), generator=source):
            term.backward()
        optimizer.step()
    torch.manual_seed(0)
    batches = NumpyDataGenerator(x, np.eye(3)[y], batch_size=8, shuffle=False, drop_remainder=False)
    AdversarialTrainerObjectivePyTorch(classifier, PGDAT(**COMMON), 5, verbose=False).fit_generator(batches, 1)
    assert_same(classifier.model.state_dict(), model.state_dict())
    batches._size = None
    with pytest.raises(BadInput, match="size is None"):
        AdversarialTrainerObjectivePyTorch(classifier, Standard()).fit_generator(batches)


@ANY
def test_batch_norm_frozen_in_eval_is_not_trained_and_nothing_is_left_behind(objective):
    model, (x, y) = frozen_norm_net(), arrays()
    before, old = condition(model), weights(model)
    trainer = AdversarialTrainerObjectivePyTorch(wrapped(model), objective, 0, verbose=False)
    trainer.fit(x, y, validation_data=(x, y), batch_size=4, nb_epochs=2)
    assert condition(model) == before
    assert not torch.equal(old["out.weight"], model.out.weight)
    assert torch.equal(old["conv.bias"], model.conv.bias)
    assert trainer.predict(x).shape == (7, 4)
    assert condition(model) == before


def test_a_model_that_predict_left_in_eval_mode_is_trained_in_train_mode_and_put_back():
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3)
    torch.manual_seed(0)
    expected = train_by_hand(Standard(), tiny(), x, y)
    classifier.predict(x)
    torch.manual_seed(0)
    AdversarialTrainerObjectivePyTorch(classifier, Standard(), 5, verbose=False).fit(x, y, batch_size=8, nb_epochs=1)
    assert_same(classifier.model.state_dict(), expected)
    assert not any(module.training for module in classifier.model.modules())


def test_the_log_tells_loss_and_validation_accuracy(caplog):
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3, lr=0.0)
    right = float(np.mean(copy.deepcopy(classifier.model).eval()(torch.tensor(x)).argmax(1).numpy() == y))
    trainer = AdversarialTrainerObjectivePyTorch(classifier, PGDAT(**COMMON), 0, verbose=False)
    # Without steps and with batches as large as the set BatchNorm alone moves; its old statistics are kept here.
    classifier.model[2].eval()
    with caplog.at_level(logging.INFO, "atent_ext.integrations.art_trainer"):
        trainer.fit(x, y, validation_data=(x, np.eye(3)[y]), nb_epochs=2)
    assert [record.args[1] for record in caplog.records] == [1, 2]
    assert all(record.args[2]["accuracy"] == right for record in caplog.records)


def test_a_scheduler_steps_after_each_epoch_and_the_bar_is_shown_only_if_asked(capsys):
    x, y = digits()
    classifier = wrapped(tiny(), (1, 8, 8), 3)
    scheduler = torch.optim.lr_scheduler.StepLR(classifier.optimizer, 1, gamma=0.5)
    AdversarialTrainerObjectivePyTorch(classifier, Standard(), verbose=False).fit(
        x, y, nb_epochs=2, scheduler=scheduler
    )
    assert classifier.optimizer.param_groups[0]["lr"] == 0.025
    assert capsys.readouterr().err == ""
    AdversarialTrainerObjectivePyTorch(classifier, Standard()).fit(x, y, nb_epochs=1)
    assert "Adversarial Training Standard - Epochs" in capsys.readouterr().err


def test_numpys_state_rules_a_trainer_without_a_seed():
    x, y = digits()
    found = []
    for seed in (1, 1, 2):
        classifier = wrapped(tiny(), (1, 8, 8), 3)
        np.random.seed(seed)  # noqa: NPY002
        trainer = AdversarialTrainerObjectivePyTorch(classifier, PGDAT(**COMMON), verbose=False)
        torch.manual_seed(0)
        trainer.fit(x, y, batch_size=8, nb_epochs=1)
        found.append(weights(classifier.model)["1.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_classifiers_that_cannot_be_trained_are_refused():
    plain = PyTorchClassifier(small_net(), nn.CrossEntropyLoss(), (1, 6, 6), 4)
    with pytest.raises(BadInput, match="optimizer is None"):
        AdversarialTrainerObjectivePyTorch(plain, Standard())
    logistic = ScikitlearnLogisticRegression(LogisticRegression().fit(np.eye(4), np.arange(4) % 2))
    with pytest.raises(BadInput, match="ScikitlearnLogisticRegression"):
        AdversarialTrainerObjectivePyTorch(logistic, Standard())
    with pytest.raises(BadInput, match="make them the same"):
        AdversarialTrainerObjectivePyTorch(wrapped(small_net(), clip_values=(-1, 1)), PGDAT(**COMMON))


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (255 * X, Y, {}, "divide them by 255"),
        (X, Y + 4, {}, "labels span"),
        (X, Y, {"nb_epoch": 3}, "fit does not know nb_epoch"),
        (X, Y, {"nb_epochs": 0}, "nb_epochs is 0"),
        (X, Y, {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_training_data_and_options_that_do_not_fit_are_refused(x, y, options, message):
    trainer = AdversarialTrainerObjectivePyTorch(wrapped(small_net()), PGDAT(**COMMON), verbose=False)
    with pytest.raises(BadInput, match=message):
        trainer.fit(x, y, **options)


@pytest.mark.parametrize(("built", "given", "shown"), [(True, 0, False), (False, 2, True), (True, None, True)])
def test_fit_takes_the_verbosity_of_arts_classifiers(built, given, shown, capsys):
    trainer = AdversarialTrainerObjectivePyTorch(wrapped(small_net()), Standard(), verbose=built)
    trainer.fit(X, Y, nb_epochs=1, verbose=given)
    assert ("Epochs" in capsys.readouterr().err) == shown
    with pytest.raises(BadInput, match="verbose is 'no'") as error:
        trainer.fit(X, Y, verbose="no")
    assert (error.value.code, error.value.field) == ("bad-type", "verbose")


def test_training_mode_false_trains_in_eval_mode():
    model, modes = small_net().train(), []
    model.drop.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    trainer = AdversarialTrainerObjectivePyTorch(wrapped(model), Standard(), verbose=False)
    trainer.fit(X, Y, nb_epochs=1, training_mode=False)
    assert modes == [False]
    assert model.drop.training
    trainer.fit(X, Y, nb_epochs=1)
    assert modes == [False, True]


def test_a_loss_that_is_not_finite_ends_training_before_the_step():
    model = frozen_norm_net()
    with torch.no_grad():
        model.out.bias[0] = float("inf")
    old, before = weights(model), condition(model)
    with pytest.raises(NonFiniteLoss, match="before this step"):
        AdversarialTrainerObjectivePyTorch(wrapped(model), Standard(), verbose=False).fit(X, Y)
    assert_same(model.state_dict(), old)
    assert condition(model) == before


def test_a_last_batch_of_one_can_be_left_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x, y = np.random.default_rng(0).random((9, 4), np.float32), np.arange(9) % 3
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (4,), 3, torch.optim.SGD(model.parameters(), 0.1))
    trainer = AdversarialTrainerObjectivePyTorch(classifier, Standard(), seed=0, verbose=False)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        trainer.fit(x, y, batch_size=4, nb_epochs=1)
    trainer.fit(x, y, batch_size=4, nb_epochs=1, drop_last=True)
    assert model[1].num_batches_tracked == 3 + 2  # the batch that failed was counted, too
    with pytest.raises(BadInput, match="x holds 0 examples"):
        trainer.fit(x[:0], y[:0])
