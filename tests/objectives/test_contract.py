"""What every objective promises: its terms add up to its loss, draws follow the generator, the model is left alone."""

import pytest
import torch
import torch.nn.functional as F
from problems import Wrapped, gradient_vector
from problems import chain as network
from problems import chain_batch as batch

from atent_ext.attacks.langevin import input_gradient, last_iterate, walk
from atent_ext.attacks.replay import Tape
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import SharedGenerator
from atent_ext.objectives import (
    ATENT,
    DESGD,
    IBP,
    MART,
    MMA,
    PGDAT,
    TRADES,
    GaussianNoise,
    SmoothAdv,
    SmoothTRADES,
    Standard,
)

COMMON = {"eps": 0.25, "steps": 4, "step_size": 0.08}
NOISY = [GaussianNoise(sigma=0.3), SmoothTRADES(sigma=0.3), SmoothTRADES(sigma=0.3, beta=0.7)]
ADVERSARIAL = [
    objective
    for norm in ("Linf", "L2")
    for objective in (
        *(PGDAT(norm=norm, **COMMON), PGDAT(norm=norm, **COMMON, start="clean")),
        *(TRADES(norm=norm, **COMMON, beta=3.0), MART(norm=norm, **COMMON, beta=5.0)),
        *(ATENT(norm=norm, **COMMON, alpha=0.6, noise=0.02, tolerance=0.0), DESGD(norm=norm, **COMMON, noise=0.02)),
    )
]
OTHERS = [SmoothAdv(norm=norm, **COMMON, sigma=0.1) for norm in ("Linf", "L2")]
OTHERS += [MMA(norm=norm, eps=eps, steps=2, least=0.05) for norm, eps in (("Linf", 0.2), ("L2", 1.0))]
ALL = [Standard(), IBP(eps=0.1), *NOISY, *ADVERSARIAL, *OTHERS]
EACH = pytest.mark.parametrize("objective", ALL, ids=repr)


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


def summed(objective, model, x, y, seed=5):
    """The sum of the terms, and the gradient that a training loop accumulates."""
    model.zero_grad()
    total = 0.0
    for term in objective(model, x, y, generator=generator(seed)):
        assert term.dim() == 0
        term.backward()
        total += float(term.detach())
    return total, gradient_vector(model)


# ---- the loss


def naive(objective, model, x, y):
    """The loss as its formula is printed, with one graph for all of it."""
    if isinstance(objective, GaussianNoise | SmoothTRADES):
        noisy = x + objective.sigma * torch.randn(x.shape, generator=generator(), dtype=x.dtype)
        assert noisy.min() < 0  # the noise is not clamped to the box
        assert noisy.max() > 1
        if not isinstance(objective, SmoothTRADES):
            return F.cross_entropy(model(noisy), y)
        return F.cross_entropy(model(x), y) + objective.beta * divergence(model(noisy), model(x))
    if isinstance(objective, TRADES):
        p = model(x).softmax(1).detach()
        adversary = last_iterate(objective.kernel, model, x, p, kl, generator())
        return F.cross_entropy(model(x), y) + objective.beta * divergence(model(adversary), model(x))
    if isinstance(objective, ATENT):  # Algorithm 2; DESGD weighs all iterates alike
        points = list(walk(objective.kernel, x, input_gradient(model, cross_entropy, y), generator()))[1:]
        losses = [F.cross_entropy(model(point), y) for point in points]
        if objective.average == "uniform":
            return sum(losses) / len(losses)
        average = torch.zeros((), dtype=x.dtype)
        for loss in losses:
            average = (1 - objective.alpha) * average + objective.alpha * loss
        return average
    adversary = last_iterate(objective.kernel, model, x, y, cross_entropy, generator())
    loss = F.cross_entropy(model(adversary), y)
    return loss + mart(objective, model, x, y, adversary) if isinstance(objective, MART) else loss


def kl(logits, p):
    return F.kl_div(F.log_softmax(logits, 1), p, reduction="none").sum(1)


def divergence(logits, clean):
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(clean, 1), reduction="batchmean")


def mart(objective, model, x, y, adversary):
    """What MART's loss has besides the cross-entropy, as its authors' code writes it."""
    p, q = F.softmax(model(x), 1), F.softmax(model(adversary), 1)
    top, label = torch.argsort(q, 1)[:, -2:], y if y.dim() == 1 else y.argmax(1)
    other = torch.where(top[:, -1] == label, top[:, -2], top[:, -1])
    right = p.gather(1, y[:, None]).squeeze(1) if y.dim() == 1 else (p * y).sum(1)
    apart = (p * (p.log() - torch.log(q + 1e-12))).sum(1)
    boost = F.nll_loss(torch.log(1.0001 - q + 1e-12), other)
    return boost + objective.beta * (apart * (1.0000001 - right)).mean()


def smoothed(y, share=0.2):
    """Soft labels (N, 4)."""
    return (1 - share) * F.one_hot(y, 4).double() + share / 4


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("objective", [*NOISY, *ADVERSARIAL], ids=repr)
def test_the_terms_add_up_to_the_loss(objective, soft):
    model, (x, y) = network(), batch()
    y = smoothed(y) if soft else y
    total, gradient = summed(objective, model, x, y)
    model.zero_grad()
    expected = naive(objective, model, x, y)
    expected.backward()
    assert total == pytest.approx(float(expected.detach()), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_vector(model), rtol=0, atol=1e-9 * float(gradient.norm()))
    assert float(gradient.norm()) > 0.01


@EACH
def test_soft_labels_of_one_class_are_that_class(objective):
    model, (x, y) = network(), batch()
    total, gradient = summed(objective, model, x, y)
    soft_total, soft_gradient = summed(objective, model, x, smoothed(y, share=0))
    assert soft_total == pytest.approx(total, rel=1e-9)
    torch.testing.assert_close(soft_gradient, gradient, rtol=1e-9, atol=1e-12)
    assert summed(objective, model, x, smoothed(y))[0] != pytest.approx(total, rel=1e-6)


@EACH
def test_a_replayed_call_sees_the_same_chains_without_their_gradients(objective):
    model, (x, y) = network(), batch()
    shared, passes = SharedGenerator().manual_seed(5), []
    shared.tape, start = Tape(), shared.get_state()
    model[-1].register_forward_pre_hook(lambda *_: passes.append(1))

    def call():
        model.zero_grad()
        passes.clear()
        for term in objective(model, x, y, generator=shared):
            term.backward()
        return gradient_vector(model), len(passes)

    first, cost = call()
    shared.tape.replaying = True
    shared.set_state(start)
    again, cheaper = call()
    torch.testing.assert_close(again, first, rtol=1e-9, atol=1e-12)
    assert not shared.tape.chains
    walks = hasattr(objective, "steps")
    assert cost - cheaper >= objective.steps - objective.terms if walks else cost == cheaper


@EACH
def test_the_generator_decides_every_draw(objective):
    model, (x, y) = network(), batch()
    state = torch.get_rng_state()
    first, again, other = (summed(objective, model, x, y, seed)[1] for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    draws = type(objective) not in (Standard, IBP) and "start='clean'" not in repr(objective)
    assert torch.equal(first, other) is not draws


# ---- what is not touched


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_as_it_was(objective, training):
    model, (x, y) = network().train(training), batch()
    model[1].eval()
    model[-1].bias.requires_grad_(False)
    statistics = {name: value.clone() for name, value in model[1].state_dict().items()}
    modes = [module.training for module in model.modules()]
    terms = 0
    with torch.random.fork_rng():  # dropout draws from the global state
        for term in objective(model, x, y, generator=generator()):
            assert [module.training for module in model.modules()] == modes
            assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
            assert term.requires_grad
            terms += 1
            if terms == 1:
                assert all(p.grad is None for p in model.parameters())
            term.backward()
    assert terms == objective.terms
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all(torch.equal(value, statistics[name]) for name, value in model[1].state_dict().items())


@EACH
def test_the_model_comes_back_as_it_was_after_an_exception(objective):
    model, (x, y) = network().train(), batch()
    calls = []

    def breaks(module, _):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    model[-1].register_forward_pre_hook(breaks)
    with torch.random.fork_rng():
        try:
            for term in objective(model, x, y, generator=generator()):
                term.backward()
        except KeyboardInterrupt:
            pass
    assert len(calls) == 2 or type(objective) in (Standard, GaussianNoise, IBP)  # these have one pass
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# ---- what is refused


@EACH
def test_a_network_that_returns_no_logits_is_told_which_output_to_return(objective):
    model = Wrapped(network(), lambda net, x: {"features": x, "logits": net(x)})
    with pytest.raises(BadInput, match=r"returns a dict .* returns model\(x\)\['logits'\]$") as error:
        list(objective(model, *batch()))
    assert (error.value.code, error.value.field) == ("bad-type", "logits")


@pytest.mark.parametrize("objective", [one for one in ALL if hasattr(one, "eps")], ids=repr)
@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda x, y: (255 * x, y), "bad-value", "images"),
        (lambda x, y: ((x - 0.5) / 0.25, y), "bad-value", "images"),
        (lambda x, y: (x[:0], y[:0]), "bad-shape", "images"),
        (lambda x, y: (x, y[:, None]), "bad-shape", "labels"),
        (lambda x, y: (x, y.double()), "bad-type", "labels"),
    ],
    ids=["0-255", "normalised", "empty", "a column of labels", "float labels"],
)
def test_images_outside_the_box_and_wrong_labels_are_refused(objective, change, code, field):
    with pytest.raises(BadInput) as error:
        next(objective(network(), *change(*batch())))
    assert (error.value.code, error.value.field) == (code, field)
