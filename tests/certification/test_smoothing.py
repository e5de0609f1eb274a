import math
from statistics import NormalDist

import pytest
import torch
from problems import LinearTwoClass, Wrapped, small_batch, small_net
from scipy.stats import binom
from torch import nn

from atent_ext.certification.smoothing import (
    ABSTAIN,
    Certificate,
    Smoothing,
    certify,
    l2_radius_for_linf,
    lower_bound,
    predict,
)
from atent_ext.core.errors import BadInput

NORMAL = NormalDist()


class Constant(nn.Module):
    """Always class 2; keeps the batches that it was given."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, x):
        self.batches.append(x.clone())
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(x), 3)


def at_distance(distance, shape=(1, 2, 2)):
    """A linear model and the point whose ℓ2 distance from its boundary is `distance`, on the side of class 1."""
    model = LinearTwoClass(shape)
    w = model.w.detach()
    return model, ((distance - model.b.item() / w.norm()) * w / w.norm()).reshape(shape)


# ---- the bound


@pytest.mark.parametrize(
    ("hits", "n", "alpha", "published"),
    [
        (8, 10, 0.025, 0.4439045),  # R's binom.test: the lower ends of its 95 % intervals
        (682, 925, 0.025, 0.7076683),
        (10, 10, 0.05, 0.05**0.1),  # the "rule of three"
        (100_000, 100_000, 0.001, 0.9999309249),
    ],
)
def test_lower_bound_is_clopper_and_pearsons(hits, n, alpha, published):
    assert lower_bound(hits, n, alpha) == pytest.approx(published, abs=1e-7)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(("hits", "n"), [(1, 1), (1, 30), (17, 30), (30, 30), (990, 1000)])
def test_lower_bound_is_where_as_many_hits_have_probability_alpha(hits, n, alpha):
    bound = lower_bound(hits, n, alpha)
    assert binom.sf(hits - 1, n, bound) == pytest.approx(alpha, rel=1e-6)
    assert bound < hits / n


def test_no_hit_bounds_nothing():
    assert lower_bound(0, 10, 0.001) == 0.0


@pytest.mark.parametrize("hits", [-1, 11])
def test_hits_must_fit_the_draws(hits):
    with pytest.raises(BadInput, match=rf"hits is {hits}; it must lie in \[0, n\], and n is 10") as error:
        lower_bound(hits, 10, 0.001)
    assert (error.value.code, error.value.field) == ("bad-value", "hits")


# ---- radii, and the draws that they need


def test_all_draws_alike_give_the_published_radius():
    smoothing = Smoothing(sigma=0.12)
    assert (smoothing.n0, smoothing.n, smoothing.alpha) == (100, 100_000, 0.001)
    assert smoothing.largest / 0.12 == pytest.approx(3.81, abs=0.005)
    assert smoothing.largest == pytest.approx(0.12 * NORMAL.inv_cdf(0.001**1e-5), rel=1e-9)


def test_the_radius_grows_with_the_hits_and_is_0_up_to_a_half():
    smoothing = Smoothing(sigma=0.5, n=200)
    radii = [smoothing.radius(hits) for hits in range(201)]
    bounds = [lower_bound(hits, 200, 0.001) for hits in range(201)]
    assert radii == sorted(radii)
    assert [radius > 0 for radius in radii] == [bound > 0.5 for bound in bounds]
    assert radii[:101] == [0.0] * 101
    assert radii[170] == pytest.approx(0.5 * NORMAL.inv_cdf(bounds[170]), rel=1e-9)
    assert smoothing.largest == radii[200]


def test_the_least_n_for_the_papers_radius():
    smoothing = Smoothing(sigma=0.12)
    assert smoothing.least_n(0.435) == 47_808
    Smoothing(sigma=0.12, n=47_808).require(0.435)
    with pytest.raises(BadInput) as caught:
        Smoothing(sigma=0.12, n=47_807).require(0.435)
    assert str(caught.value).startswith("n is 47807, with which no radius above 0.435 can be certified at sigma 0.12")
    assert str(caught.value).endswith("radius 0.435 needs n >= 47808")
    assert (caught.value.code, caught.value.field) == ("bad-value", "n")


@pytest.mark.parametrize("radius", [0.05, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("alpha", [0.001, 0.1])
def test_the_least_n_is_enough_and_one_less_is_not(radius, alpha):
    n = Smoothing(sigma=0.12, alpha=alpha).least_n(radius)
    Smoothing(sigma=0.12, alpha=alpha, n=n).require(radius)
    if n > 1:
        with pytest.raises(BadInput, match=f"needs n >= {n}$"):
            Smoothing(sigma=0.12, alpha=alpha, n=n - 1).require(radius)


def test_every_n_is_enough_for_nothing():
    smoothing = Smoothing(sigma=0.12, n=1)
    assert smoothing.largest == 0.0
    smoothing.require(0.0)


@pytest.mark.parametrize("radius", [4.6, 5.0, 1e9])
def test_a_radius_of_very_many_sigmas_is_refused(radius):
    with pytest.raises(BadInput, match="no n is enough, choose a larger sigma") as error:
        Smoothing(sigma=0.12).require(radius)
    assert (error.value.code, error.value.field) == ("bad-value", "radius")


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(BadInput) as error:
        Smoothing(sigma=0.12).require(radius)
    assert (error.value.code, error.value.field) == ("bad-value", "radius")


def test_the_l2_ball_around_an_linf_ball():
    radius = l2_radius_for_linf(2 / 255, 3 * 32 * 32)
    assert radius == pytest.approx(0.435, abs=5e-4)  # the papers' own
    assert radius == pytest.approx(float(torch.full((3, 32, 32), 2 / 255, dtype=torch.float64).norm()))


# ---- certificates of a linear classifier: its exact radius is its distance from the boundary, whatever sigma


def radii(distance, smoothing, seeds):
    model, x = at_distance(distance)
    certificates = [certify(model, x, smoothing, seed) for seed in range(seeds)]
    assert {certificate.prediction for certificate in certificates} <= {1, ABSTAIN}
    return torch.tensor([certificate.radius for certificate in certificates], dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.1, 0.25])
def test_the_certificate_is_below_the_exact_radius_as_often_as_it_says(sigma):
    certified = radii(0.2, Smoothing(sigma=sigma, n0=20, n=300, alpha=0.05), 300)
    wrong = int((certified > 0.2).sum())
    # At most 15 of 300 are expected; 2 to 26 are within three deviations of what the discrete bound allows.
    assert 1 < wrong < 15 + 3 * math.sqrt(300 * 0.05 * 0.95)
    assert certified.median() > 0.15


def test_the_certificate_approaches_the_exact_radius_from_below():
    means = []
    for n in (100, 1000, 10_000):
        certified = radii(0.2, Smoothing(sigma=0.2, n0=20, n=n), 20)
        assert (certified < 0.2).all()
        means.append(float(certified.mean()))
        # The bound lies about 3.09 deviations of the share below it; the density turns that into a length.
        gap = 0.2 * 3.09 * math.sqrt(NORMAL.cdf(1) * NORMAL.cdf(-1) / n) / NORMAL.pdf(1)
        assert 0.2 - means[-1] == pytest.approx(gap, rel=0.35)
    assert means == sorted(means)


def test_the_hits_are_as_many_as_the_probability_says():
    model, x = at_distance(0.15)
    certificate = certify(model, x, Smoothing(sigma=0.3, n0=20, n=20_000), seed=3)
    share = NORMAL.cdf(0.5)
    assert certificate.hits / 20_000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000))
    assert certificate.radius == Smoothing(sigma=0.3, n=20_000).radius(certificate.hits)
    assert certificate.prediction == 1


def test_on_the_boundary_it_abstains():
    model, x = at_distance(0.0)
    smoothing = Smoothing(sigma=0.3, n0=20, n=500)
    for seed in range(20):
        certificate = certify(model, x, smoothing, seed)
        assert (certificate.prediction, certificate.radius) == (ABSTAIN, 0.0)
        assert 150 < certificate.hits < 350
        assert predict(model, x, smoothing, seed) == ABSTAIN


@pytest.mark.parametrize(("distance", "expected"), [(0.3, 1), (-0.3, 0)])
def test_predict_gives_the_class_that_is_clear(distance, expected):
    model, x = at_distance(distance)
    smoothing = Smoothing(sigma=0.3, n0=20, n=200)
    assert [predict(model, x, smoothing, seed) for seed in range(5)] == [expected] * 5
    assert [certify(model, x, smoothing, seed).prediction for seed in range(5)] == [expected] * 5


def test_predict_abstains_where_the_two_sided_test_does():
    class Scripted(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def forward(self, x):
            return nn.functional.one_hot((torch.arange(len(x)) >= self.first).long(), 3).double()

    smoothing = Smoothing(sigma=0.3, n=20, alpha=0.05)
    predictions = [predict(Scripted(first), torch.zeros(2), smoothing, 0) for first in range(21)]
    # P(at most 5 of 20) = 0.0207, twice that is below 0.05; with 6 it is 0.115.
    assert predictions == [1] * 6 + [ABSTAIN] * 9 + [0] * 6


def test_the_class_is_chosen_by_the_first_draws_and_counted_in_fresh_ones():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = 0

        def forward(self, x):
            classes = (torch.arange(self.seen, self.seen + len(x)) >= 10).long()  # 0 in the first ten draws, then 1
            self.seen += len(x)
            return nn.functional.one_hot(classes, 2).double()

    certificate = certify(Turning(), torch.zeros(2), Smoothing(sigma=0.3, n0=10, n=40), 0)
    assert certificate == Certificate(ABSTAIN, 0.0, 0)
    model = Constant()
    certify(model, torch.zeros(2), Smoothing(sigma=0.3, n0=10, n=40), 0)
    choosing, counting = model.batches
    assert not any(torch.equal(one, other) for one in choosing for other in counting)


# ---- draws


@pytest.mark.parametrize("batch_size", [1, 7, 10, 1000])
def test_exactly_n0_and_n_images_are_drawn(batch_size):
    model, smoothing = Constant(), Smoothing(sigma=0.3, n0=10, n=37, batch_size=batch_size)
    x = torch.rand(1, 3, 3)
    certificate = certify(model, x, smoothing, seed=0)
    assert certificate == Certificate(2, smoothing.largest, 37)
    sizes = [len(batch) for batch in model.batches]
    assert sum(sizes) == 10 + 37
    assert max(sizes) <= batch_size
    assert all(batch.shape[1:] == x.shape for batch in model.batches)
    model.batches.clear()
    assert predict(model, x, smoothing, seed=0) == 2
    assert sum(len(batch) for batch in model.batches) == 37


def test_the_noise_is_normal_of_deviation_sigma_around_the_image():
    model, x = Constant(), torch.rand(1, 3, 3, dtype=torch.float64)
    certify(model, x, Smoothing(sigma=0.3, n0=1, n=3000), seed=0)
    noise = (torch.cat(model.batches) - x).flatten()
    assert noise.dtype == torch.float64
    assert noise.mean().item() == pytest.approx(0, abs=4 * 0.3 / math.sqrt(len(noise)))
    assert noise.var().item() == pytest.approx(0.09, rel=4 * math.sqrt(2 / len(noise)))


def test_the_seed_decides_whatever_was_certified_before():
    model, x = at_distance(0.2)
    smoothing = Smoothing(sigma=0.3, n0=20, n=200)
    state = torch.get_rng_state()
    one = certify(model, x, smoothing, seed=4)
    certify(model, -x, smoothing, seed=9)
    with torch.random.fork_rng():
        torch.manual_seed(123)
        assert certify(model, x, smoothing, seed=4) == one
    assert len({certify(model, x, smoothing, seed).hits for seed in range(8)}) > 1
    assert predict(model, x, smoothing, 4) == predict(model, x, smoothing, 4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("call", [certify, predict])
def test_the_model_is_left_as_it_was(call):
    model = small_net(norm=True).train()
    model.norm.eval()
    model.out.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append([part.training for part in module.modules()]))
    call(model, torch.rand(1, 6, 6, dtype=torch.float64), Smoothing(sigma=0.3, n0=5, n=5), 0)
    assert modes
    assert not any(any(mode) for mode in modes)
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ---- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0}, "sigma is 0; randomized smoothing needs noise"),
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"n": 0}, "n is 0"),
        ({"n0": 0}, "n0 is 0"),
        ({"n": 10.5}, "n is 10.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"alpha": 0.0}, "alpha is 0.0; it must lie between 0 and 1"),
        ({"alpha": 1.0}, "alpha is 1.0"),
        ({"alpha": math.nan}, "alpha is nan"),
    ],
)
def test_invalid_settings_are_refused(options, words):
    with pytest.raises(BadInput, match=words) as error:
        Smoothing(**({"sigma": 0.12} | options))
    code = "bad-type" if options == {"n": 10.5} else "bad-value"
    assert (error.value.code, error.value.field) == (code, next(iter(options)))


@pytest.mark.parametrize("call", [certify, predict])
def test_a_model_that_returns_no_logits_has_no_certificate(call):
    model = Wrapped(small_net(), lambda net, x: (net(x), x))
    with pytest.raises(BadInput, match=r"returns model\(x\)\[0\]$") as error:
        call(model, small_batch()[0][0], Smoothing(sigma=0.1, n0=2, n=2), 0)
    assert (error.value.code, error.value.field) == ("bad-type", "logits")


@pytest.mark.parametrize("call", [certify, predict])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_whose_outputs_are_not_finite_has_no_certificate(call, value):
    model = small_net().train()
    with torch.no_grad():
        model.out.bias[1] = value
    with pytest.raises(BadInput, match="outputs are not finite under noise") as error:
        call(model, torch.rand(1, 6, 6, dtype=torch.float64), Smoothing(sigma=0.3, n0=5, n=5), 0)
    assert (error.value.code, error.value.field) == ("broken-model", "model")
    assert model.training
