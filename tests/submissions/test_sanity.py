import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import Wrapped
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.submissions import masking, sanity


class AlwaysOn(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class BatchNormOn(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(True)


class Counting(nn.Module):
    """The logits grow with every call."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x):
        self.calls += 1
        return self.network(x) * self.calls


class OwnNoise(nn.Module):
    """Noise of a source that no global seed reaches."""

    def __init__(self, network):
        super().__init__()
        self.network, self.draw = network, np.random.default_rng(0)

    def forward(self, x):
        return self.network(x + 0.1 * torch.from_numpy(self.draw.normal(size=x.shape)).float())


class Uncopyable(Counting):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def plain(digits):
    return masking.surrogate(digits.train, 10, seed=0)[1]


@pytest.fixture
def look(digits):
    shown = digits.test.take(32)
    return lambda network, **options: sanity.check(network, shown.images, shown.labels, **options)


def failed(found):
    return {one.name for one in found if one.passed is False}


def said(found, name):
    return next(one.said for one in found if one.name == name)


def passed(found, name):
    return next(one.passed for one in found if one.name == name)


def numpy_noise(network, x):
    return network(x + 0.1 * torch.from_numpy(np.random.default_rng().normal(size=x.shape)).float())


def on_grid(x):
    """Whether an image has the digits' 16 levels, as noise does not leave it."""
    return (16 * x == (16 * x).round()).flatten(1).all(1)


def no_gradient(network, x):
    with torch.no_grad():
        return network(x)


def wrong_sign(network, x):
    """The logits of the network, whose gradient points downhill."""
    return network(2 * x.detach() - x)


UNSOUND = {
    "probabilities": (lambda net, x: net(x).softmax(1), {"logits"}),
    "dropout left on": (lambda net, x: net(F.dropout(x, 0.3, training=True)), {"determinism"}),
    "noise": (lambda net, x: net(x + 0.1 * torch.randn_like(x)), {"determinism"}),
    "noise of NumPy": (lambda net, x: net(x + 0.1 * torch.tensor(np.random.normal())), {"determinism"}),  # noqa: NPY002
    "noise without a seed": (numpy_noise, {"determinism"}),
    "constant": (lambda net, x: torch.ones(len(x), 10) + 0 * x.sum(), {"sensitivity", "nonzero gradient"}),
    "detached": (lambda net, x: net(x.detach()), {"finite gradient"}),
    "no gradient": (no_gradient, {"finite gradient"}),
    "rounding": (lambda net, x: net((16 * x).round() / 16), {"nonzero gradient"}),
    "large logits": (lambda net, x: 1e5 * net(x), {"softmax"}),
    "gradient of the wrong sign": (wrong_sign, {"uphill gradient"}),
    "gradient of NaN": (lambda net, x: net(x) + (0 * x).sum().sqrt(), {"finite gradient"}),
    "batch statistics": (lambda net, x: net(x - x.mean((0, 2, 3), keepdim=True)), {"single images"}),
    "only batches": (lambda net, x: net(x) if len(x) > 1 else net(x)[0, :, None, None, None], {"single images"}),
    "NaN": (lambda net, x: net(x) * torch.nan, {"finite logits"}),
    "infinite under noise": (lambda net, x: net(x) / on_grid(x)[:, None], {"finite logits"}),
    "too few classes": (lambda net, x: net(x)[:, :5], {"shape"}),
    "one logit": (lambda net, x: net(x)[:, :1], {"shape"}),
    "another shape": (lambda net, x: net(x)[None], {"shape"}),
    "class numbers": (lambda net, x: net(x).argmax(1), {"shape"}),
    "a dictionary": (lambda net, x: {"logits": net(x)}, {"shape"}),
    "another size": (lambda net, x: net(F.pad(x, [1] * 4)), {"shape"}),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_each_unsound_network_fails_its_own_checks(look, plain, kind):
    answer, expected = UNSOUND[kind]
    assert failed(look(Wrapped(plain, answer))) == expected


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sound_network_passes_every_check(look, plain, seed):
    found = look(plain, seed=seed)
    assert tuple(one.name for one in found) == sanity.NAMES
    assert [one for one in found if one.passed is not True] == []
    assert sanity.fatal(found) == ()
    assert not sanity.is_random(found, False)


def test_a_sound_network_with_batchnorm_and_dropout_passes(look):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 10)
    )
    assert failed(look(network.train())) == set()


def test_log_probabilities_are_logits_and_named(look, plain):
    found = look(Wrapped(plain, lambda net, x: net(x).log_softmax(1)))
    assert failed(found) == set()
    assert said(found, "logits").startswith("log-probabilities")
    assert said(look(plain), "logits").startswith("logits from")


def test_a_small_scale_of_the_logits_is_no_fault(look, plain):
    assert failed(look(Wrapped(plain, lambda net, x: 1e-6 * net(x)))) == set()


# ---- train mode


def test_dropout_that_refuses_eval_mode_is_named(look, plain):
    found = look(nn.Sequential(AlwaysOn(0.3), plain))
    assert failed(found) == {"evaluation mode", "determinism"}
    assert "0 (AlwaysOn)" in said(found, "evaluation mode")
    assert "drawn in 0 (AlwaysOn)" in said(found, "determinism")
    assert passed(found, "single images") is None


def test_batchnorm_that_refuses_eval_mode_is_named(look, plain):
    found = look(nn.Sequential(BatchNormOn(1), plain))
    assert failed(found) == {"evaluation mode", "no state", "single images"}
    assert "0 (BatchNormOn)" in said(found, "evaluation mode")
    assert "calls change 0.running_mean" in said(found, "no state")
    assert said(found, "single images").startswith("8 of 8 images")


def test_batchnorm_without_running_statistics_depends_on_the_batch(look, plain):
    assert failed(look(nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), plain))) == {"single images"}


def test_batchnorm_that_cannot_take_one_image_says_so(look):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(64, track_running_stats=False)
    found = look(nn.Sequential(nn.Flatten(), norm, nn.Linear(64, 10)))
    assert "single images" in failed(found)
    assert "cannot take an image alone" in said(found, "single images")
    assert sanity.fatal(found) == ()


# ---- state and randomness


def test_a_state_between_calls_is_found(look, plain):
    found = look(Counting(plain))
    assert failed(found) == {"determinism", "no state"}
    assert said(found, "no state").startswith("after another batch 32 of 32")


def test_noise_that_follows_no_seed_is_random(look, plain):
    found = look(OwnNoise(plain))
    assert failed(found) == {"determinism", "no state"}
    assert sanity.is_random(found, False)


def test_noise_without_a_seed_leaves_the_state_open(look, plain):
    assert passed(look(Wrapped(plain, numpy_noise)), "no state") is None


def test_declared_randomness_is_no_fault(look, plain):
    network = Wrapped(plain, UNSOUND["noise"][0])
    assert sanity.is_random(look(network), False)
    found = look(network, declared_random=True)
    assert failed(found) == set()
    assert sanity.is_random(found, True)


def test_randomness_that_is_not_there_is_a_fault(look, plain):
    found = look(plain, declared_random=True)
    assert failed(found) == {"determinism"}
    assert not sanity.is_random(found, True)


# ---- what is said


def test_a_cut_gradient_is_told_from_a_flat_network(look, plain):
    cut = said(look(Wrapped(plain, UNSOUND["rounding"][0])), "nonzero gradient")
    flat = said(look(Wrapped(plain, UNSOUND["constant"][0])), "nonzero gradient")
    assert "zero for 32 of 32 images; of these, 32 get other logits" in cut
    assert "zero for 32 of 32 images; of these, 0 get other logits" in flat


def test_visible_noise_has_to_change_most_images(look, plain):
    def bright_inside(network, x):
        bright = x[:, :, 3:5, 3:5].mean((1, 2, 3)) > 0.5
        return F.one_hot(bright.long(), 10) + 0 * x.sum()

    found = look(Wrapped(plain, bright_inside))
    assert "sensitivity" in failed(found)
    words = said(found, "sensitivity").split()
    changed, _, others = (int(word) for word in words if word.isdigit())
    assert 0 < changed < 16
    assert others > 0


def test_the_figure_of_a_saturated_softmax(look, plain):
    found = said(look(Wrapped(plain, UNSOUND["large logits"][0])), "softmax")
    count = int(found.partition("vanishes for ")[2].partition(" of 32")[0])
    assert count > 16


def test_what_is_fatal_keeps_the_others_from_being_looked_at(look, plain):
    found = look(Wrapped(plain, UNSOUND["NaN"][0]))
    assert [one.name for one in sanity.fatal(found)] == ["finite logits"]
    assert passed(found, "shape") is True
    assert {one.passed for one in found if one.name not in ("shape", "finite logits")} == {None}
    assert said(found, "softmax") == "not looked at: finite logits failed"
    assert "NaN or infinite for 64 of 64 images" in said(found, "finite logits")


def test_a_network_that_fails_on_the_way_is_told(look, plain):
    class Tired(Counting):
        def forward(self, x):
            if self.calls == 1:
                raise KeyError("enough")
            return super().forward(x)

    found = look(Tired(plain))
    assert said(found, "shape") == "it fails on the way: KeyError: 'enough'"
    assert [one.name for one in sanity.fatal(found)] == ["shape"]


# ---- manners


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("kind", [Counting, Uncopyable])
def test_the_network_comes_back_as_found(look, plain, kind):
    network = kind(nn.Sequential(BatchNormOn(1), plain)).train()
    network.network[0].weight.grad = torch.ones(1)
    torch.manual_seed(3)
    before = [value.clone() for value in network.state_dict().values()]
    modes = [module.training for module in network.modules()]
    needed = [parameter.requires_grad for parameter in network.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    look(network)
    assert same(network.state_dict().values(), before)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == needed
    assert network.network[0].weight.grad.tolist() == [1.0]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


def test_the_seed_decides(look, plain):
    network = Wrapped(plain, UNSOUND["noise"][0])
    assert look(network, seed=5) == look(network, seed=5)
    assert said(look(network, seed=5), "determinism") != said(look(network, seed=6), "determinism")


def test_images_that_are_none_are_refused(digits, plain):
    shown = digits.test.take(4)
    with pytest.raises(BadInput, match="1 images to check"):
        sanity.check(plain, shown.images[:1], shown.labels[:1])
    with pytest.raises(BadInput, match="divide them by 255"):
        sanity.check(plain, 255 * shown.images, shown.labels)
    with pytest.raises(BadInput, match="one class number per image"):
        sanity.check(plain, shown.images, shown.labels[:3])
