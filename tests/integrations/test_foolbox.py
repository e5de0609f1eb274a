import importlib
import sys

import eagerpy as ep
import numpy
import pytest
import torch
from problems import LinearTwoClass, small_batch, small_net
from torch import nn

from atent_ext.attacks.langevin import atent, last_iterate
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF
from atent_ext.integrations.foolbox import L2ATENTAttack, LinfATENTAttack

# Importing it warns of SciPy's namespaces; `atent_ext.integrations.foolbox` has done so quietly.
foolbox = importlib.import_module("foolbox")
Misclassification, TargetedMisclassification = foolbox.Misclassification, foolbox.TargetedMisclassification

BOTH = pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])
EPS = 0.2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def directly(kind, model, x, target, eps=EPS, source=None, **changes):
    """The kernel with the settings of `short`."""
    settings = {"gamma": 0.05 if kind is L2ATENTAttack else 0.0, "noise": 1e-3} | changes
    kernel = atent(kind.norm, eps, 3, 0.4 * eps, **settings)
    return last_iterate(kernel, model, x, target, cross_entropy, source or generator())


def short(kind, **changes):
    return kind(**{"steps": 3, "rel_stepsize": 0.4, "generator": generator()} | changes)


def problem(bounds=(0, 1)):
    model, (x, y) = small_net(), small_batch()
    return model, foolbox.PyTorchModel(model, bounds=bounds, device="cpu"), x, y


def linear_problem(count=40):
    """Far enough from the box that the optimum in the ball is the closed form; some images are near the boundary."""
    x = 0.4 + 0.2 * torch.rand(count, 1, 3, 3, generator=generator(1), dtype=torch.float64)
    model = LinearTwoClass((1, 3, 3)).eval()
    with torch.no_grad():
        model.b -= model(x)[:, 1].median()
    return model, foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, model(x).argmax(1)


# The chain.


@BOTH
@pytest.mark.parametrize("random_start", [True, False])
def test_it_is_the_kernel_called_directly(kind, random_start):
    model, fmodel, x, y = problem()
    raw, clipped, success = short(kind, random_start=random_start)(fmodel, x, y, epsilons=EPS)
    expected = directly(kind, model, x, y, start=None if random_start else "clean")
    assert torch.equal(raw, expected)
    torch.testing.assert_close(clipped, expected, rtol=0, atol=1e-12)
    assert torch.equal(success, model(clipped).argmax(1) != y)


@BOTH
def test_run_takes_and_returns_torch_and_eagerpy_tensors(kind):
    model, fmodel, x, y = problem()
    expected = directly(kind, model, x, y)
    native = short(kind).run(fmodel, x, y, epsilon=EPS)
    assert torch.equal(native, expected)
    wrapped = short(kind).run(fmodel, ep.astensor(x), Misclassification(ep.astensor(y)), epsilon=EPS)
    assert isinstance(wrapped, ep.PyTorchTensor)
    assert torch.equal(wrapped.raw, expected)
    with torch.no_grad():
        assert torch.equal(short(kind).run(fmodel, x, Misclassification(y.int()), epsilon=EPS), expected)


@BOTH
def test_changed_attributes_take_effect(kind):
    model, fmodel, x, y = problem()
    attack = kind()
    attack.steps, attack.abs_stepsize, attack.noise, attack.gamma = 3, 0.4 * EPS, 0.3, 0.1
    attack.random_start, attack.generator = False, generator()
    expected = directly(kind, model, x, y, noise=0.3, gamma=0.1, start="clean")
    assert torch.equal(attack.run(fmodel, x, y, epsilon=EPS), expected)
    attack.noise = -1.0
    with pytest.raises(BadInput, match=r"^noise is -1\.0"):
        attack.run(fmodel, x, y, epsilon=EPS)


def test_an_absolute_step_size_takes_precedence():
    for kind in (LinfATENTAttack, L2ATENTAttack):
        assert kind(rel_stepsize=0.5).kernel(0.2).step_size == 0.1
        assert kind(rel_stepsize=0.5, abs_stepsize=0.03).kernel(0.2).step_size == 0.03
    assert LinfATENTAttack().kernel(0.3).step_size == 0.3
    assert LinfATENTAttack.paper().kernel(0.3).step_size == pytest.approx(0.01)
    assert L2ATENTAttack.paper().kernel(2.0).step_size == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (LinfATENTAttack, foolbox.attacks.LinfProjectedGradientDescentAttack),
        (L2ATENTAttack, foolbox.attacks.L2ProjectedGradientDescentAttack),
    ],
)
def test_without_noise_and_pull_it_is_foolboxs_pgd(kind, theirs):
    _, fmodel, x, y = problem()
    settings = {"steps": 3, "rel_stepsize": 0.3, "random_start": False}  # three steps stay inside the ball
    expected = theirs(**settings).run(fmodel, x, y, epsilon=EPS)
    found = kind(noise=0.0, gamma=0.0, **settings).run(fmodel, x, y, epsilon=EPS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


# What it finds.


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [(LinfATENTAttack, "Linf", {"steps": 60}), (L2ATENTAttack, "L2", {"steps": 100})],
)
def test_with_the_default_step_the_closed_form_is_reached(kind, name, settings):
    model, fmodel, x, y = linear_problem()
    adversary = kind(noise=0.0, generator=generator(), **settings).run(fmodel, x, y, epsilon=0.1)
    reached = cross_entropy(model(adversary), y)
    torch.testing.assert_close(reached, model.worst_loss(x, y, name, 0.1), rtol=0, atol=1e-5)


def test_each_epsilon_has_the_flags_of_the_closed_form():
    model, fmodel, x, y = linear_problem()
    epsilons = numpy.linspace(0, 0.04, 5)
    raw, clipped, success = LinfATENTAttack(noise=0.0, random_start=False)(fmodel, x, y, epsilons=epsilons)
    dual, score = model.w.abs().sum(), model(x)[:, 1].abs()
    assert torch.equal(success, torch.stack([eps * dual > score for eps in epsilons]))
    assert success.sum(1)[0] == 0
    assert (success.sum(1).diff() > 0).all()
    assert torch.equal(raw[0], x)
    for eps, adversary, flags in zip(epsilons, clipped, success, strict=True):
        assert LINF.size(adversary - x).max() <= eps + 1e-12
        assert torch.equal(model(adversary).argmax(1) != y, flags)


@BOTH
def test_several_epsilons_are_runs_one_after_the_other(kind):
    model, fmodel, x, y = problem()
    shared = generator()
    expected = [directly(kind, model, x, y, eps, shared) for eps in (0.1, 0.4)]
    found, _, success = short(kind)(fmodel, x, y, epsilons=[0.1, 0.4])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert success.shape == (2, len(x))


@BOTH
def test_targeted_descends_to_the_target(kind):
    model, fmodel, x, y = problem()
    target = (y + 1) % 4
    raw, clipped, success = short(kind)(fmodel, x, TargetedMisclassification(target), epsilons=EPS)
    assert torch.equal(raw, directly(kind, model, x, target, targeted=True))
    assert torch.equal(success, model(clipped).argmax(1) == target)
    assert (cross_entropy(model(raw), target) < cross_entropy(model(x), target)).all()


def test_targeted_reaches_the_closed_form():
    model, fmodel, x, _ = linear_problem()
    ones = TargetedMisclassification(torch.ones(len(x), dtype=torch.long))
    adversary = LinfATENTAttack(noise=0.0, steps=60).run(fmodel, x, ones, epsilon=0.1)
    torch.testing.assert_close(adversary, x + 0.1 * model.w.detach().sign().reshape(1, 1, 3, 3).expand_as(x))


@BOTH
def test_repeat_keeps_the_first_success_of_each_run(kind):
    _, fmodel, x, y = problem()
    y = fmodel(x).argmax(1)
    settings = {"steps": 1, "noise": 1.5}  # little more than random points, so that runs differ
    eps = 0.35 if kind.norm == LINF else 2.0
    _, found, success = short(kind, generator=generator(2), **settings).repeat(4)(fmodel, x, y, epsilons=[eps])
    attack = short(kind, generator=generator(2), **settings)
    runs = [attack(fmodel, x, y, epsilons=eps)[1:] for _ in range(4)]
    flags = torch.stack([flags for _, flags in runs])
    assert torch.equal(success[0], flags.any(0))
    assert flags[0].sum() < flags.any(0).sum()
    first = flags.int().argmax(0)
    assert torch.equal(found[0], torch.stack([runs[run][0][i] for i, run in enumerate(first)]))


# Bounds and preprocessing.


@pytest.mark.parametrize("bounds", [(-1, 2), (0, 255)])
@pytest.mark.parametrize(("kind", "norm"), [(LinfATENTAttack, LINF), (L2ATENTAttack, L2)])
def test_it_stays_in_ball_and_bounds(kind, norm, bounds):
    low, high = bounds
    model, fmodel, x, y = problem(bounds)
    x = low + (high - low) * x
    eps = 0.3 * (high - low)
    adversary = short(kind, noise=5.0).run(fmodel, x, y, epsilon=eps)
    assert norm.size(adversary - x).max() <= eps + 1e-9
    assert norm.size(adversary - x).min() > 0.1 * eps
    assert low <= adversary.min() <= adversary.max() <= high
    assert torch.equal(adversary, directly(kind, model, x, y, eps, noise=5.0, box=bounds))


@BOTH
@pytest.mark.parametrize("bounds", [(0, 1), (0, 255)])
def test_the_models_own_preprocessing_is_respected(kind, bounds):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5)).double().eval()
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in ([0.49, 0.48, 0.44], [0.24, 0.23, 0.26]))
    preprocessing = {"mean": mean, "std": std, "axis": -3}
    fmodel = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu", preprocessing=preprocessing)
    fmodel = fmodel.transform_bounds(bounds)
    x = bounds[1] * torch.rand(6, 3, 6, 6, generator=generator(), dtype=torch.float64)
    y = torch.arange(6) % 5

    def raw(images):
        return net((images / bounds[1] - mean[:, None, None]) / std[:, None, None])

    eps = 0.1 * bounds[1]
    found = short(kind).run(fmodel, x, y, epsilon=eps)
    expected = directly(kind, raw, x, y, eps, box=bounds)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_foolboxs_wrappers_of_a_pytorch_model_will_do():
    model, fmodel, x, y = problem()
    averaged = foolbox.models.ExpectationOverTransformationWrapper(fmodel, n_steps=2)
    found = short(LinfATENTAttack).run(averaged, x, y, epsilon=EPS)
    torch.testing.assert_close(found, directly(LinfATENTAttack, model, x, y))


# What it does not touch.


# foolbox's contract, and what it refuses.


@BOTH
def test_they_are_foolboxs_attacks(kind):
    attack = kind()
    assert isinstance(attack, foolbox.attacks.base.FixedEpsilonAttack)
    assert attack.distance is (foolbox.distances.l2 if kind is L2ATENTAttack else foolbox.distances.linf)
    assert repr(attack).startswith(f"{kind.__name__}(rel_stepsize=")
    with pytest.raises(TypeError):
        kind(40)
    _, fmodel, x, y = problem()
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        attack(fmodel, x, y, epsilons=EPS, mask=None)


@BOTH
def test_another_backend_is_named(kind):
    _, fmodel, x, y = problem()
    with pytest.raises(BadInput, match="inputs are NumPyTensor; ATENT runs on PyTorch"):
        kind().run(fmodel, x.numpy(), y.numpy(), epsilon=EPS)
    other = foolbox.NumPyModel(lambda images: images.reshape(len(images), -1)[:, :4], bounds=(0, 1))
    for model in (other, foolbox.models.ThresholdingWrapper(other, 0.5), other.transform_bounds((0, 2))):
        with pytest.raises(BadInput, match="model is a NumPyModel; ATENT runs on PyTorch"):
            kind()(model, x, y, epsilons=EPS)


@BOTH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y.numpy()), "labels are ndarray"),
        (lambda x, y: (x, Misclassification(y) & Misclassification(y)), "^criterion is .*; known: Misclassification"),
    ],
)
def test_inputs_and_criteria_that_make_no_sense(kind, change, words):
    _, fmodel, x, y = problem()
    inputs, criterion = change(x, y)
    with pytest.raises(BadInput, match=words):
        kind().run(fmodel, inputs, criterion, epsilon=EPS)


@BOTH
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"rel_stepsize": -0.1}, r"^rel_stepsize is -0\.1"),
        ({"gamma": float("inf")}, "^gamma is inf"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(kind, argument, words):
    with pytest.raises(BadInput, match=words):
        kind(**argument)


def test_without_foolbox_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.delitem(sys.modules, LinfATENTAttack.__module__)
    with pytest.raises(MissingExtra, match=r"pip install 'atent-ext\[foolbox\]'"):
        importlib.import_module(LinfATENTAttack.__module__)
