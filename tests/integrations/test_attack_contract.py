"""What every attack of ours promises, from whatever package it is called: advertorch, torchattacks, Foolbox or ART."""

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from problems import Wrapped, small_batch, small_net
from torch import nn

from atent_ext.attacks import advertorch_style
from atent_ext.attacks.langevin import atent, last_iterate
from atent_ext.attacks.uphill import GradientVanished
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF, Norm
from atent_ext.integrations import art as our_art
from atent_ext.integrations import foolbox as our_foolbox
from atent_ext.integrations import torchattacks as our_torchattacks

# Importing it warns of SciPy's namespaces; `atent_ext.integrations.foolbox` has done so quietly.
foolbox = importlib.import_module("foolbox")

EPS, STEP, STEPS, NOISE = 0.2, 0.08, 3, 1e-3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def in_advertorch(kind, model, *, eps=EPS, step=STEP, steps=STEPS, noise=NOISE, seed=0, start=None):
    settings = {"eps": eps, "eps_iter": step, "nb_iter": steps, "noise": noise, "start": start}
    return kind(model, generator=generator(seed), **settings).perturb


def in_torchattacks(kind, model, *, eps=EPS, step=STEP, steps=STEPS, noise=NOISE, seed=0, start=None):
    settings = {"eps": eps, "alpha": step, "steps": steps, "noise": noise, "random_start": start is None}
    return kind(model, generator=generator(seed), **settings)


def in_foolbox(kind, model, *, eps=EPS, step=STEP, steps=STEPS, noise=NOISE, seed=0, start=None):
    settings = {"abs_stepsize": step, "steps": steps, "noise": noise, "random_start": start is None}
    attack = kind(generator=generator(seed), **settings)
    return lambda x, y: attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilon=eps)


def in_art(norm, model, *, eps=EPS, step=STEP, steps=STEPS, noise=NOISE, seed=0, start=None):
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 6, 6), 4, clip_values=(0.0, 1.0), device_type="cpu"
    )
    settings = {"eps": eps, "eps_step": step, "max_iter": steps, "noise": noise, "num_random_init": int(start is None)}
    attack = our_art.ATENTAttack(classifier, norm, seed=seed, verbose=False, **settings)
    return lambda x, y: torch.as_tensor(attack.generate(x.detach().numpy(), y.numpy()))


@dataclass(frozen=True)
class Adapter:
    """`build(model, eps=, step=, steps=, noise=, seed=, start=)` gives a function of images and labels.

    names: what the package calls those of its arguments that have another name there.
    """

    norm: Norm
    build: Callable[..., Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
    names: Mapping[str, str]


_NAMES = {
    "advertorch": {"step": "eps_iter", "steps": "nb_iter"},
    "torchattacks": {"step": "alpha"},
    "foolbox": {"eps": "epsilon", "step": "abs_stepsize"},
    "art": {"step": "eps_step", "steps": "max_iter"},
}
ADAPTERS = {
    f"{package} {norm.name}": Adapter(norm, partial(build, kind), _NAMES[package])
    for package, build, kinds in (
        ("advertorch", in_advertorch, (advertorch_style.LinfATENTAttack, advertorch_style.L2ATENTAttack)),
        ("torchattacks", in_torchattacks, (our_torchattacks.ATENT, our_torchattacks.ATENTL2)),
        ("foolbox", in_foolbox, (our_foolbox.LinfATENTAttack, our_foolbox.L2ATENTAttack)),
        ("art", in_art, (np.inf, 2)),
    )
    for norm, kind in zip((LINF, L2), kinds, strict=True)
}
EACH = pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)


# ---- the adversaries


@EACH
@pytest.mark.parametrize("start", [None, "clean"])
def test_they_are_those_of_the_kernel_called_directly(adapter, start):
    model, (x, y) = small_net(), small_batch()
    found = adapter.build(model, start=start)(x, y)
    expected = {
        first: last_iterate(
            atent(adapter.norm, EPS, STEPS, STEP, noise=NOISE, start=first), model, x, y, cross_entropy, generator()
        )
        for first in (None, "clean")
    }
    torch.testing.assert_close(found, expected.pop(start), rtol=0, atol=1e-12)
    assert (found - expected.popitem()[1]).abs().max() > 1e-3


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_lie_in_ball_and_box_under_any_noise(adapter, dtype):
    model, (x, y) = small_net(dtype=dtype), small_batch(dtype=dtype)
    found = adapter.build(model, noise=5.0)(x, y)
    assert found.dtype is dtype
    assert adapter.norm.size(found - x).max() <= EPS + 1e-6
    assert adapter.norm.size(found - x).min() > 0.05
    assert 0 <= found.min() < 0.01
    assert 0.99 < found.max() <= 1


@EACH
def test_at_eps_0_they_are_the_images(adapter):
    model, (x, y) = small_net(), small_batch()
    assert torch.equal(adapter.build(model, eps=0.0)(x, y), x)


@EACH
def test_the_seed_decides(adapter):
    model, (x, y) = small_net(), small_batch()
    state = torch.get_rng_state()
    first, again, other = (adapter.build(model, seed=seed)(x, y) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@EACH
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_they_are_found_where_gradients_are_off(adapter, context):
    model, (x, y) = small_net(), small_batch()
    expected = adapter.build(model)(x, y)
    with context():
        assert torch.equal(adapter.build(model)(x.clone(), y.clone()), expected)
        assert not torch.is_grad_enabled()


PAPERS = {
    "torchattacks": lambda model: (
        (our_torchattacks.ATENT.paper(model).kernel, 0.01),
        (our_torchattacks.ATENTL2.paper(model).kernel, 0.125),
    ),
    "foolbox": lambda model: (
        (our_foolbox.LinfATENTAttack.paper().kernel(0.3), 0.01),
        (our_foolbox.L2ATENTAttack.paper().kernel(2.0), 0.125),
    ),
    "art": lambda model: tuple(
        (our_art.ATENTAttack.paper(PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 6, 6), 4), norm).kernel, step)
        for norm, step in ((np.inf, 0.01), (2, 0.125))
    ),
}


@pytest.mark.parametrize("package", PAPERS)
def test_paper_is_the_printed_algorithm(package):
    (linf, step), (l2, other) = PAPERS[package](small_net())
    assert (linf.step_size, l2.step_size) == pytest.approx((step, other))
    assert (linf.steps, linf.noise, linf.gamma, linf.project, linf.schedule) == (40, 1e-3, 0.0, "last", "constant")
    assert (l2.steps, l2.noise, l2.gamma, l2.project, l2.schedule) == (40, 1e-3, 0.05, "every", "constant")


@pytest.mark.parametrize("package", ["torchattacks", "foolbox", "art"])
def test_by_default_a_chain_is_annealed_and_says_where_the_gradient_vanished(package):
    model, (x, y) = Wrapped(small_net(), lambda network, x: network((8 * x).round() / 8)), small_batch()
    attacks = {
        "torchattacks": lambda: our_torchattacks.ATENT(model, eps=EPS, generator=generator())(x, y),
        "foolbox": lambda: our_foolbox.LinfATENTAttack(steps=10, generator=generator()).run(
            foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu"), x, y, epsilon=EPS
        ),
        "art": lambda: torch.as_tensor(
            our_art.ATENTAttack(
                PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 6, 6), 4, clip_values=(0, 1), device_type="cpu"),
                eps=EPS,
                max_iter=10,
                seed=0,
                verbose=False,
            ).generate(x.numpy(), y.numpy())
        ),
    }
    with pytest.warns(GradientVanished, match="for 7 of 7 images"):
        found = attacks[package]()
    assert LINF.size(found - x).max() <= EPS + 1e-6


# ---- what is not touched


def lively_net(training):
    """A frozen BatchNorm in eval mode, one parameter that is not trained, one that has a gradient; dropout is on."""
    model = small_net(norm=True).train(training)
    model.norm.eval()
    model.norm.running_mean += 0.3
    model.drop.train()
    model.conv.bias.requires_grad_(False)
    model.out.bias.grad = torch.ones_like(model.out.bias)
    return model


def trace_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "values": [value.tolist() for value in model.state_dict().values()],
    }


@EACH
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_comes_back_as_found(adapter, broken, training):
    if training and adapter.build.func is in_foolbox:
        pytest.skip("Foolbox warns of a model in training mode")
    model, (x, y) = lively_net(training), small_batch()
    before = trace_of(model)

    def fail(module, inputs):
        if broken and model.passes == 2:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(fail)
    attack = adapter.build(model)
    if broken:
        with pytest.raises(KeyboardInterrupt):
            attack(x, y)
    else:
        attack(x, y)
    assert trace_of(model) == before


# Foolbox's models are functions of which the attack does not know the parameters.
@pytest.mark.parametrize("adapter", [pytest.param(a, id=name) for name, a in ADAPTERS.items() if "foolbox" not in name])
def test_no_gradient_is_recorded_for_the_parameters(adapter):
    model, (x, y) = small_net(), small_batch()
    seen = []
    model.register_forward_pre_hook(lambda module, _: seen.append([p.requires_grad for p in model.parameters()]))
    adapter.build(model)(x, y)
    assert seen[-STEPS:] == [[False] * 4] * STEPS


@EACH
def test_images_and_labels_are_left_alone(adapter):
    model, (x, y) = small_net(), small_batch()
    copies = x.clone(), y.clone()
    x.requires_grad_()
    assert not adapter.build(model)(x, y).requires_grad
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x.detach(), copies[0])
    assert torch.equal(y, copies[1])


# ---- what is refused


@EACH
@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda x, y: (x * 255, y), "bad-value", "images"),
        (lambda x, y: ((x - 0.45) / 0.2, y), "bad-value", "images"),
        (lambda x, y: (x.where(x < 0.9, torch.nan), y), "bad-value", "images"),
        (lambda x, y: (x, y[:3]), "bad-shape", "labels"),
        (lambda x, y: (x, y.double()), "bad-type", "labels"),
        (lambda x, y: (x, y + 3), "bad-value", "labels"),
        (lambda x, y: (x, y - 1), "bad-value", "labels"),
    ],
    ids=["0-255", "normalised", "NaN", "too few labels", "float labels", "label 6 of 4 classes", "label -1"],
)
def test_images_and_labels_that_make_no_sense_are_refused(adapter, change, code, field):
    with pytest.raises(BadInput) as error:
        adapter.build(small_net())(*change(*small_batch()))
    assert (error.value.code, error.value.field) == (code, field)


@EACH
@pytest.mark.parametrize(
    ("argument", "value"), [("eps", -0.1), ("eps", float("nan")), ("step", -0.1), ("steps", 0), ("noise", -1.0)]
)
def test_arguments_that_make_no_sense_are_refused(adapter, argument, value):
    with pytest.raises(BadInput) as error:
        adapter.build(small_net(), **{argument: value})(*small_batch())
    assert (error.value.code, error.value.field) == ("bad-value", adapter.names.get(argument, argument))


@EACH
@pytest.mark.parametrize(
    ("answer", "code", "remedy"),
    [
        (lambda net, x: (x, net(x)), "bad-type", r"a tuple .* returns model\(x\)\[1\]$"),
        (lambda net, x: {"aux": net(x), "logits": net(x)}, "bad-type", r"a dict .* returns model\(x\)\['logits'\]$"),
        (
            lambda net, x: SimpleNamespace(logits=net(x)),
            "bad-type",
            r"a SimpleNamespace .* returns model\(x\)\.logits$",
        ),
        (lambda net, x: net(x)[:, 0], "bad-shape", r"logits \(\d, classes\) are needed$"),
    ],
    ids=["tuple", "dict", "object", "one number"],
)
def test_a_network_that_returns_no_logits_is_told_which_output_to_return(adapter, answer, code, remedy):
    attack = adapter.build(Wrapped(small_net(), answer).eval())
    with pytest.raises(BadInput, match=remedy) as error:
        attack(*small_batch())
    assert (error.value.code, error.value.field) == (code, "logits")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@EACH
def test_a_frozen_torchscript_network_which_has_no_mode_is_attacked_like_any_other(adapter):
    if adapter.build.func is in_foolbox:
        pytest.skip("Foolbox's own model class asks for the mode")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double().eval()
    frozen, (x, y) = torch.jit.freeze(torch.jit.script(plain)), small_batch()
    assert not hasattr(frozen, "training")
    assert torch.equal(adapter.build(frozen)(x, y), adapter.build(plain)(x, y))
    assert not hasattr(frozen, "training") or adapter.build.func is in_art  # ART puts a mode there


# ---- no error prints a tensor


@EACH
@pytest.mark.parametrize("value", [torch.full((40, 1, 6, 6), -1.0), np.full((40, 3), -1.0)], ids=["tensor", "array"])
def test_no_refusal_prints_a_tensor(adapter, value):
    names = ["eps", "step", "steps", "noise", "seed"]
    for name in names if adapter.build.func is in_art else names[:-1]:
        with pytest.raises(BadInput) as error:
            adapter.build(small_net(), **{name: value})(*small_batch())
        assert error.value.field == adapter.names.get(name, name)
        assert len(str(error.value)) < 200
        assert re.search(r"a float\d+ (tensor|array) of shape \(40, ", str(error.value))


class Broken(nn.Module):
    """Finite logits whose gradient is infinite times zero."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        logits = self.net(x)
        return logits + ((logits - logits.detach()) ** 2).sqrt()


@EACH
def test_a_gradient_that_is_not_finite_does_not_look_like_an_adversary(adapter):
    with pytest.raises(BadInput, match="input gradient is not finite for 7 of 7 images") as error:
        adapter.build(Broken().eval())(*small_batch())
    assert (error.value.code, error.value.field) == ("broken-model", "model")
