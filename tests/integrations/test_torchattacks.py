import importlib
import sys

import numpy
import pytest
import torch
import torchattacks
from problems import LinearTwoClass, OnlyBuffers, small_batch, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from atent_ext.attacks.langevin import atent, last_iterate
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF
from atent_ext.integrations.torchattacks import ATENT, ATENTL2

BOTH = pytest.mark.parametrize("kind", [ATENT, ATENTL2])
SHORT = {"eps": 0.2, "alpha": 0.08, "steps": 3}
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel(kind, **changes):
    settings = {"gamma": 0.05 if kind is ATENTL2 else 0.0, "noise": 1e-3} | changes
    return atent(kind.norm, SHORT["eps"], SHORT["steps"], SHORT["alpha"], **settings)


def directly(kind, model, x, target, seed=0, **changes):
    return last_iterate(kernel(kind, **changes), model, x, target, cross_entropy, generator(seed))


def linear_problem(count=40):
    """Far enough from the box that the optimum in the ball is the closed form; some images are near the boundary."""
    x = 0.4 + 0.2 * torch.rand(count, 1, 3, 3, generator=generator(1), dtype=torch.float64)
    model = LinearTwoClass((1, 3, 3))
    with torch.no_grad():
        model.b -= model(x)[:, 1].median()
    return model, x, torch.arange(count) % 2


def color_problem(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten()]
        net = nn.Sequential(*hidden, nn.Linear(4 * 16, 5)).to(dtype).eval()
    x = torch.rand(6, 3, 6, 6, generator=generator(), dtype=torch.float64).to(dtype)
    return net, x, torch.arange(6) % 5


class Normalised(nn.Module):
    def __init__(self, net, dtype=torch.float64):
        super().__init__()
        self.net = net
        self.mean, self.std = (torch.tensor(v, dtype=dtype).reshape(3, 1, 1) for v in (MEAN, STD))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def lively_net():
    """Train mode but for a frozen BatchNorm; one parameter is frozen, one has a gradient."""
    model = small_net(norm=True).train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    model.out.bias.grad = torch.ones_like(model.out.bias)
    return model


def trace_of(model):
    return {
        "modes": [module.training for module in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()],
        "values": [value.tolist() for value in model.state_dict().values()],
    }


# torchattacks' contract.


@BOTH
def test_its_harness(kind):
    """Each attack is built from the model alone and run in its default mode, then with random targets."""
    model, x, _ = linear_problem()
    y = model(x).argmax(1)
    robust = model.worst_loss(x, y, "Linf", 8 / 255) < torch.tensor(2.0).log() if kind is ATENT else torch.zeros(40) > 0
    assert robust.sum() < len(x) / 2
    with torch.no_grad():
        attack = kind(model)
        assert isinstance(attack, torchattacks.attack.Attack)
        assert torch.equal(model(attack(x, y)).argmax(1) == y, robust)
        assert "targeted" in attack.supported_mode
        attack.set_mode_targeted_random(quiet=True)
        assert torch.equal(model(attack(x, y)).argmax(1) == y, robust)


def test_arguments_are_those_of_its_pgd():
    for ours, theirs in ((ATENT, torchattacks.PGD), (ATENTL2, torchattacks.PGDL2)):
        model = small_net()
        attack, pgd = ours(model), theirs(model)
        names = ("eps", "steps", "random_start", "supported_mode", "device", "attack_mode")
        assert [getattr(attack, name) for name in names] == [getattr(pgd, name) for name in names]
        assert repr(attack).startswith(f"{ours.__name__}(")


@BOTH
def test_without_noise_and_pull_it_is_pgd(kind):
    model, (x, y) = small_net(), small_batch()
    settings = SHORT | {"alpha": 0.05, "random_start": False}  # three steps stay inside the ball
    theirs = (torchattacks.PGDL2 if kind is ATENTL2 else torchattacks.PGD)(model, **settings)
    attack = kind(model, noise=0.0, **settings)
    attack.gamma = 0.0
    torch.testing.assert_close(attack(x, y), theirs(x, y), rtol=0, atol=1e-6)


@BOTH
def test_without_a_generator_torchs_global_one_is_used(kind):
    model, (x, y) = small_net(), small_batch()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = kind(model, **SHORT)(x, y)
    assert torch.equal(found, directly(kind, model, x, y, seed=3))


@BOTH
def test_changed_attributes_take_effect(kind):
    model, (x, y) = small_net(), small_batch()
    attack = kind(model)
    attack.eps, attack.alpha, attack.steps = SHORT.values()
    attack.noise, attack.gamma, attack.random_start, attack.generator = 0.3, 0.1, False, generator()
    assert torch.equal(attack(x, y), directly(kind, model, x, y, noise=0.3, gamma=0.1, start="clean"))
    attack.eps = -1.0
    with pytest.raises(BadInput, match=r"^eps is -1\.0"):
        attack(x, y)


@BOTH
def test_every_targeted_mode_descends_to_its_target(kind):
    model, (x, y) = small_net(), small_batch()
    attack = kind(model, **SHORT)

    def aims_at(target):
        attack.generator = generator()
        return torch.equal(attack(x, y), directly(kind, model, x, target, targeted=True))

    others = model(x).scatter(1, y[:, None], torch.inf)
    attack.set_mode_targeted_least_likely(quiet=True)
    assert aims_at(others.argmin(1))
    attack.set_mode_targeted_least_likely(2, quiet=True)
    assert aims_at(others.argsort(1)[:, 1])
    attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % 4, quiet=True)
    assert aims_at((y + 1) % 4)
    attack.set_mode_targeted_by_label(quiet=True)
    assert aims_at(y)
    attack.set_mode_targeted_random(quiet=True)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        target = attack.get_random_target_label(x, y)
        torch.manual_seed(5)
        assert aims_at(target)
    assert (target != y).all()
    attack.set_mode_default()
    attack.generator = generator()
    assert torch.equal(attack(x, y), directly(kind, model, x, y))


# What it finds.


def test_linf_reaches_the_closed_form():
    model, x, y = linear_problem()
    adversary = ATENT(model, eps=0.1, alpha=0.05, noise=0.0)(x, y)
    sign = (1 - 2 * y)[:, None, None, None] * model.w.detach().sign().reshape(1, 1, 3, 3)
    torch.testing.assert_close(adversary, x + 0.1 * sign)
    torch.testing.assert_close(cross_entropy(model(adversary), y), model.worst_loss(x, y, "Linf", 0.1))


def test_l2_reaches_the_closed_form():
    model, x, y = linear_problem()
    adversary = ATENTL2(model, eps=0.3, alpha=0.06, steps=100, noise=0.0)(x, y)
    reached = cross_entropy(model(adversary), y)
    torch.testing.assert_close(reached, model.worst_loss(x, y, "L2", 0.3), rtol=0, atol=1e-5)


def test_adversaries_of_one_model_hurt_another_as_computed():
    """On linear models the transferred shift of the score is eps sign(w) . w'."""
    source, x, y = linear_problem()
    target = LinearTwoClass((1, 3, 3))
    with torch.no_grad():
        target.w += 0.5 * LinearTwoClass((1, 3, 3), seed=9).w
        target.b -= target(x)[:, 1].median()
    y = target(x).argmax(1)
    adversary = ATENT(source, eps=0.1, alpha=0.05, noise=0.0)(x, y)
    shift = (1 - 2 * y) * 0.1 * (source.w.sign() @ target.w)
    torch.testing.assert_close(target(adversary)[:, 1], target(x)[:, 1] + shift)
    robust = (target(x)[:, 1] + shift > 0).long() == y
    assert torch.equal(target(adversary).argmax(1) == y, robust)
    assert robust.sum() < len(x) / 2


# Normalisation.


@BOTH
@pytest.mark.parametrize("targeted", [False, True])
def test_the_normalised_pipeline_is_the_raw_one(kind, targeted):
    net, x, y = color_problem()
    raw, normalised = Normalised(net), kind(net, generator=generator(), **SHORT)
    plain = kind(raw, generator=generator(), **SHORT)
    normalised.set_normalization_used(MEAN, STD)
    if targeted:
        for attack in (plain, normalised):
            attack.set_mode_targeted_least_likely(quiet=True)
    expected = plain(x, y)
    found = normalised((x - raw.mean) / raw.std, y)
    assert found.dtype is torch.float64
    torch.testing.assert_close(found * raw.std + raw.mean, expected, rtol=0, atol=1e-6)
    assert kind.norm.size(expected - x).min() > 0.1


@BOTH
@pytest.mark.parametrize("form", [list, numpy.array])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_type_whatever_that_of_the_mean(kind, form, dtype):
    net, x, y = color_problem(dtype)
    attack = kind(net, generator=generator(), **SHORT)
    attack.set_normalization_used(form(MEAN), form(STD))
    raw = Normalised(net, dtype)
    found = attack((x - raw.mean) / raw.std, y)
    assert found.dtype is dtype
    assert kind.norm.size(found * raw.std + raw.mean - x).max() <= 0.2 + 1e-5


def test_after_an_error_inputs_still_count_as_normalised():
    net, x, y = color_problem()
    attack = ATENT(net, generator=generator(), **SHORT)
    attack.set_normalization_used(MEAN, STD)
    with pytest.raises(BadInput, match="labels have shape"):
        attack(attack.normalize(x), y[:2])
    assert attack._normalization_applied is True


# What it does not touch.


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_the_model_comes_back_as_found(kind, training):
    model, (x, y) = lively_net(), small_batch()
    before = trace_of(model)
    attack = kind(model, **SHORT)
    attack.set_mode_targeted_random(quiet=True)
    attack.set_model_training_mode(model_training=training, dropout_training=training)
    attack(x, y)
    assert trace_of(model) == before


@pytest.mark.parametrize(
    ("asked", "seen"),
    [
        ({}, (False, False, False)),
        ({"model_training": True}, (True, False, False)),
        ({"model_training": True, "batchnorm_training": True}, (True, True, False)),
        ({"model_training": True, "dropout_training": True}, (True, False, True)),
    ],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_set_model_training_mode_acts_during_the_attack(asked, seen, targeted):
    """Also with random targets, whose prediction in eval mode makes torchattacks' own attacks forget it."""
    model, (x, y) = lively_net(), small_batch()
    modes = []
    model.register_forward_pre_hook(
        lambda module, inputs: modes.append((model.training, model.norm.training, model.drop.training))
    )
    attack = ATENT(model, **SHORT)
    attack.set_model_training_mode(**asked)
    if targeted:
        attack.set_mode_targeted_random(quiet=True)
    attack(x, y)
    assert modes == [(False, False, False)] * targeted + [seen] * SHORT["steps"]


# torchattacks' wrappers and files.


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("kind", [ATENT, ATENTL2])
def test_multiattack_with_pgd(kind, ours_first):
    model, x, _ = linear_problem()
    y = model(x).argmax(1)
    quiet = {"eps": 0.03, "steps": 4, "alpha": 0.015, "random_start": False}
    pair = [kind(model, noise=0.0, **quiet), torchattacks.PGD(model, **quiet | {"eps": 0.02})]
    pair = pair if ours_first else pair[::-1]
    first, second = (attack(x, y) for attack in pair)
    fooled = [(model(adversary).argmax(1) != y)[:, None, None, None] for adversary in (first, second)]
    expected = torch.where(fooled[0], first, torch.where(fooled[1], second, x))
    assert torch.equal(torchattacks.MultiAttack(pair)(x, y), expected)
    assert 0 < (expected != x).flatten(1).any(1).sum() < len(x)


def test_multiattack_hands_its_normalisation_on():
    net, x, y = color_problem()
    raw = Normalised(net)
    pair = [ATENT(net, generator=generator(), **SHORT), torchattacks.PGD(net, steps=2)]
    multi = torchattacks.MultiAttack(pair)
    multi.set_normalization_used(MEAN, STD)
    found = multi((x - raw.mean) / raw.std, y) * raw.std + raw.mean
    assert LINF.size(found - x).max() <= 0.2 + 1e-6
    assert pair[0]._normalization_applied is True


def test_save_and_load_round_trip(tmp_path, capsys):
    model, (x, y) = lively_net(), small_batch()
    before = trace_of(model)
    attack = ATENT(model, generator=generator(), **SHORT)
    data = DataLoader(TensorDataset(x, y), batch_size=4)
    path = tmp_path / "adversaries.pt"
    accuracy, *_ = attack.save(data, path, return_verbose=True, save_predictions=True, save_clean_inputs=True)
    assert trace_of(model) == before
    model.eval()
    loader = attack.load(path, batch_size=len(x), load_predictions=True, load_clean_inputs=True)
    adversaries, labels, predictions, clean = next(iter(loader))
    shared = generator()
    halves = (slice(0, 4), slice(4, None))
    expected = torch.cat([last_iterate(kernel(ATENT), model, x[h], y[h], cross_entropy, shared) for h in halves])
    assert torch.equal(adversaries, expected)
    assert torch.equal(labels, y)
    assert torch.equal(clean, x)
    assert torch.equal(predictions, model(expected).argmax(1))
    assert accuracy == pytest.approx(100 * (predictions == y).double().mean().item())
    assert "Robust accuracy" in capsys.readouterr().out


def test_saved_images_are_raw_where_normalisation_is_used(tmp_path):
    net, x, y = color_problem(torch.float32)
    raw = Normalised(net, torch.float32)
    attack = ATENT(net, **SHORT)
    attack.set_normalization_used(MEAN, STD)
    path = tmp_path / "adversaries.pt"
    attack.save(DataLoader(TensorDataset((x - raw.mean) / raw.std, y), batch_size=6), path, verbose=False)
    saved = next(iter(attack.load(path)))[0]
    assert LINF.size(saved - x).max() == pytest.approx(0.2, abs=1e-5)
    again = next(iter(attack.load(path, normalize={"mean": MEAN, "std": STD})))[0]
    torch.testing.assert_close(again, (saved - raw.mean) / raw.std)


# What it refuses.


@BOTH
def test_labels_are_needed(kind):
    with pytest.raises(BadInput, match="labels are NoneType"):
        kind(small_net())(small_batch()[0])


def test_without_torchattacks_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    monkeypatch.delitem(sys.modules, ATENT.__module__)
    with pytest.raises(MissingExtra, match=r"pip install 'atent-ext\[torchattacks\]'"):
        importlib.import_module(ATENT.__module__)


@BOTH
def test_images_go_to_the_buffers_of_a_network_without_parameters(kind):
    assert kind(OnlyBuffers("meta"), **SHORT).device == torch.device("meta")
    assert kind(nn.Flatten(), **SHORT).device is None
