import pytest
import torch
from problems import Wrapped
from reports import report, result
from torch import nn

import atent_ext
from atent_ext.attacks.accuracy import clean_flags, flags_under
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.restarts import adversaries
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.submissions import masking
from atent_ext.submissions.cards import Sign
from atent_ext.submissions.masking import surrogate

ONE_STEP, ZERO, LOSSES, TRANSFER, ENDLESS = (
    "one step beats many",
    "zero gradients",
    "other losses beat cross-entropy",
    "transfer beats white box",
    "accuracy does not go to zero with eps",
)
THREATS = {"Linf": Threat(norm="Linf", eps=0.15), "L2": Threat(norm="L2", eps=0.8)}


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def plain(digits):
    return surrogate(digits.train, 10, seed=1)[1]


@pytest.fixture(scope="module")
def robust():
    """Adversarially trained at ℓ∞ eps 0.15."""
    return atent_ext.load("quickstart-digits-linf-pgd-at")


@pytest.fixture(scope="module")
def helper(digits):
    return surrogate(digits.train, 10, seed=0)


@pytest.fixture(autouse=True)
def trained_once(helper, monkeypatch):
    """The surrogate of `look`'s seed, trained once for all tests."""

    def cached(train, classes, seed, device="cpu"):
        assert (len(train), classes, seed) == (1437, 10, 0)
        return helper

    monkeypatch.setattr(masking, "surrogate", cached)


@pytest.fixture
def without_curve(monkeypatch):
    """For a test of another sign."""
    monkeypatch.setattr(masking, "_curve", lambda target: ({}, Sign(name=ENDLESS, found=None, evidence="")))


def look(network, digits, threat=THREATS["Linf"], n=100, **options):
    return masking.signs(network, digits.test.take(n), threat, train=digits.train, classes=10, **options)


def found(signs):
    return {sign.name for sign in signs if sign.found}


def evidence(signs, name):
    return next(sign.evidence for sign in signs if sign.name == name)


def flat_off_the_grid(network, x):
    """A gradient only where all values are k/16, as in a digit: true for the first step, and zero from then on."""
    on_grid = (16 * x == (16 * x).round()).flatten(1).all(1)[:, None, None, None]
    return network(torch.where(on_grid, x, x.detach()))


def rounded(network, x):
    return network((16 * x).round() / 16)


@pytest.fixture(scope="module")
def shattered(plain, digits):
    """The signs of a network whose gradient is gone after one step."""
    return look(Wrapped(plain, flat_off_the_grid), digits)[0]


# ---- no false alarms


@pytest.mark.parametrize("norm", THREATS)
def test_a_plain_network_shows_no_sign(plain, digits, norm):
    signs, curve = look(plain, digits, THREATS[norm])
    assert [sign.name for sign in signs] == [ONE_STEP, ZERO, LOSSES, TRANSFER, ENDLESS]
    assert found(signs) == set()
    assert curve["accuracy"]["PGD-40"][-1] == 0


def test_an_adversarially_trained_network_shows_no_sign(robust, digits):
    signs, curve = look(robust, digits, n=200)
    assert found(signs) == set()
    at_eps = curve["accuracy"]["PGD-40"][curve["eps"].index(0.15)]
    assert at_eps > 0.4  # there is something to be masked


def test_large_but_honest_logits_show_no_sign(plain, digits):
    assert found(look(Wrapped(plain, lambda net, x: 3 * net(x)), digits)[0]) == set()


def test_a_network_that_draws_shows_no_sign(plain, digits):
    noisy = Wrapped(plain, lambda net, x: net(nn.functional.dropout(x, 0.2, training=True)))
    signs, _ = look(noisy, digits, n=200, random=True)
    assert found(signs) == set()


def test_what_draws_is_wrong_by_chance_under_one_of_many_attacks(digits):
    class Guess(nn.Module):
        """Class 0 for 60 % of the images, whatever they show."""

        def forward(self, x):
            wrong = (torch.rand(len(x)) < 0.4).to(x)
            return nn.functional.one_hot(wrong.long(), 10) + 0 * x.sum()

    split = datasets.Split(digits.test.images[:100], torch.zeros(100, dtype=torch.long))
    signs, curve = masking.signs(Guess(), split, THREATS["Linf"], train=digits.train, classes=10, random=True)
    assert curve["accuracy"]["PGD-40"][-1] > 0.3
    assert ENDLESS not in found(signs)


# ---- each sign is found


def test_a_saturated_softmax(plain, digits):
    signs, _ = look(Wrapped(plain, lambda net, x: 1e5 * net(x)), digits)
    assert {ZERO, LOSSES} <= found(signs)
    flags = clean_flags(plain, digits.test.take(100))
    assert f"of {len(flags)} images" in evidence(signs, ZERO)


def test_other_losses_have_to_beat_chance_and_a_few_points(plain, digits, monkeypatch, without_curve):
    network = Wrapped(plain, lambda net, x: 1e5 * net(x))
    assert LOSSES not in found(look(network, digits, n=6)[0])  # 6 of 6 have p = 2 / 2^6
    monkeypatch.setattr(masking, "_BETTER", 1.0)
    assert LOSSES not in found(look(network, digits)[0])


def test_the_margin_sees_what_one_scale_for_all_does_not(plain, digits, without_curve):
    threshold = digits.test.images[:100].mean((1, 2, 3)).quantile(0.6)

    def partly_saturated(network, x):
        bright = x.detach().mean((1, 2, 3)) > threshold
        return network(x) * torch.where(bright, 1e5, 1.0)[:, None]

    signs, _ = look(Wrapped(plain, partly_saturated), digits, Threat(norm="Linf", eps=0.1))
    assert LOSSES in found(signs)
    assert "PGD-40 on the margin alone breaks" in evidence(signs, LOSSES)


def test_a_rounded_input(plain, digits):
    signs, _ = look(Wrapped(plain, rounded), digits)
    assert {ZERO, TRANSFER, ENDLESS} <= found(signs)
    assert "for 100 of 100 images" in evidence(signs, ZERO)


def test_a_gradient_that_is_gone_after_one_step(shattered):
    assert ONE_STEP in found(shattered)
    assert ZERO not in found(shattered)


def test_evidence_counts_images_that_one_attack_alone_breaks(plain, digits, shattered):
    network, threat, split = Wrapped(plain, flat_off_the_grid), THREATS["Linf"], digits.test.take(100)

    def fgsm(model, x, y):
        leaf = x.clone().requires_grad_()
        cross_entropy(model(leaf), y).sum().backward()
        return (x + threat.eps * leaf.grad.sign()).clamp(0, 1)

    def many(model, x, y):
        generator = torch.Generator().manual_seed(0)
        kernel = pgd(LINF, threat.eps, masking.STEPS)
        return adversaries(kernel, model, x, y, cross_entropy, generator, keep="success")

    one, several = (flags_under(attack, network, split, LINF, threat.eps, 250) for attack in (fgsm, many))
    alone = int((several & ~one).sum()), int((one & ~several).sum())
    assert alone[0] > 20
    assert f"FGSM alone breaks {alone[0]} and PGD-40, every iterate, alone {alone[1]};" in evidence(shattered, ONE_STEP)


# ---- comparisons in closed form


def broken(*numbers):
    flags = torch.zeros(20, dtype=torch.bool)
    flags[list(numbers)] = True
    return flags


@pytest.mark.parametrize(
    ("weaker", "stronger", "first", "second", "p"),
    [
        (broken(*range(7)), broken(), 7, 0, 2**-7),
        (broken(*range(6)), broken(), 6, 0, 2**-6),
        (broken(0, 1, 2), broken(0, 3), 2, 1, 0.5),
        (broken(0, 1), broken(0, 1), 0, 0, 1.0),
        (broken(), broken(1, 2), 0, 2, 1.0),
    ],
)
def test_mcnemars_test_is_exact(weaker, stronger, first, second, p):
    assert masking._alone(weaker, stronger) == pytest.approx((first, second, p))


def autoattack(before, after, n=500):
    counts = {"clean": n, "apgd-ce": before + 9, "apgd-t": before + 1, "fab-t": before, "square": after}
    return report(result("clean", 1.0, n), result("AutoAttack", after / n, n, robust_after=counts))


@pytest.mark.parametrize(("broke", "expected"), [(0, False), (1, False), (4, False), (5, True), (60, True)])
def test_square_beats_white_box_beyond_chance(broke, expected):
    # With a mean of 500 x 0.2 % = 1, Poisson: P(>= 4) is 0.019, P(>= 5) is 0.0037.
    sign = masking.black_box(autoattack(200, 200 - broke))
    assert sign.found is expected
    assert f"of 500 images AutoAttack's gradient attacks left 200, and Square broke {broke} of these" in sign.evidence


@pytest.mark.parametrize("counts", [{}, {"clean": 5, "apgd-ce": 4}])
def test_without_square_its_sign_is_not_looked_for(counts):
    sign = masking.black_box(report(result("clean", n=5), result("AutoAttack", n=5, robust_after=counts)))
    assert sign.found is None
    assert sign.evidence == "there is no Square in AutoAttack's counts"


def test_a_cascade_is_not_autoattack():
    counts = {"clean": 5, "atent": 4, "malt": 3, "square": 3}
    cascade = result("cascade", n=5, robust_after=counts)
    assert masking.black_box(report(result("clean", n=5), cascade)).found is None
    both = (cascade, result("AutoAttack", n=5, robust_after=counts | {"malt": 4}))
    assert "left 4, and Square broke 1" in masking.black_box(report(result("clean", n=5), *both)).evidence


def test_radii_end_where_every_ball_holds_gray():
    assert masking.radii(Threat(norm="Linf", eps=0.3), (1, 8, 8)) == pytest.approx([0, 0.15, 0.3, 0.45, 0.5])
    assert masking.radii(Threat(norm="Linf", eps=0.1), (1, 8, 8)) == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.5])
    assert masking.radii(Threat(norm="L2", eps=1), (1, 8, 8)) == pytest.approx([0, 0.5, 1, 1.5, 2, 4])
    assert masking.radii(Threat(norm="Linf", eps=0), (1, 8, 8)) == [0, 0.5]
    assert masking.radii(Threat(norm="Linf", eps=0.8), (1, 8, 8)) == pytest.approx([0, 0.4, 0.8])


def test_the_curve_starts_at_clean_accuracy(robust, digits):
    _, curve = look(robust, digits, n=60)
    clean = clean_flags(robust, digits.test.take(50)).double().mean()
    assert curve["n"] == 50
    assert curve["eps"] == masking.radii(THREATS["Linf"], (1, 8, 8))
    by_pgd, by_noise = curve["accuracy"]["PGD-40"], curve["accuracy"]["random noise"]
    assert by_pgd[0] == by_noise[0] == float(clean)
    assert len(by_pgd) == len(by_noise) == len(curve["eps"])
    assert all(under <= noise for under, noise in zip(by_pgd, by_noise, strict=True))


# ---- the surrogate, and manners


def test_the_surrogate_learns_and_follows_its_seed(digits, helper, plain):
    name, network = surrogate(digits.train, 10, seed=0)
    assert name == "digits-cnn"
    assert float(clean_flags(network, digits.test).double().mean()) > 0.8
    assert all(map(torch.equal, network.parameters(), helper[1].parameters()))  # of the same seed
    assert not all(map(torch.equal, network.parameters(), plain.parameters()))


@pytest.mark.parametrize(("shape", "name"), [((1, 28, 28), "small-cnn"), ((3, 32, 32), "resnet-20")])
def test_the_surrogate_takes_images_of_that_size(shape, name):
    images = torch.rand(14, *shape, generator=torch.Generator().manual_seed(0))
    chosen, network = surrogate(datasets.Split(images, torch.arange(14) % 7), 7, seed=0)
    assert chosen == name
    assert network(images[:2]).shape == (2, 7)


def test_the_network_and_the_random_state_come_back_as_found(plain, digits):
    network = Wrapped(plain, lambda net, x: net(x)).train()
    modes = [module.training for module in network.modules()]
    needed = [parameter.requires_grad for parameter in network.parameters()]
    torch.manual_seed(4)
    state = torch.get_rng_state()
    first = look(network, digits, n=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == needed
    assert all(parameter.grad is None for parameter in network.parameters())
    assert look(network, digits, n=20) == first


def test_it_says_what_it_is_doing(plain, digits):
    heard = []
    look(plain, digits, n=10, busy=heard.append)
    assert any(TRANSFER in text for text in heard)
    assert heard[-1].endswith("growing eps")
