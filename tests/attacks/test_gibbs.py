"""Draws from the Gibbs law against numerical integration in two dimensions; mixing diagnostics against arviz."""

import math

import pytest
import torch
from problems import LinearTwoClass, attack_spec, small_batch, small_net
from torch import nn

from atent_ext.attacks import gibbs, mixing
from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.attacks.moves import reflect
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF
from atent_ext.evaluation.in_memory import evaluate
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import Report

NORMS = {"Linf": LINF, "L2": L2}
EPS, CENTER = 0.4, (0.3, 0.55)  # the box [0, 1] cuts the ball


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def curved(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        net[0].weight *= 4
        net[2].weight *= 3
    return net


def by_integration(model, name, label, temperature, gamma=0.0, points=400):
    """The share of adversarial mass on a grid over the intersection of ball and box."""
    axes = [torch.linspace(c - EPS, c + EPS, points, dtype=torch.float64) for c in CENTER]
    grid = torch.cartesian_prod(*axes)
    delta = grid - torch.tensor(CENTER, dtype=torch.float64)
    inside = ((grid >= 0) & (grid <= 1)).all(1) & (NORMS[name].size(delta) <= EPS)
    logits = model(grid).detach()
    loss = cross_entropy(logits, torch.full((len(grid),), label)) - gamma / 2 * (delta**2).sum(1)
    weight = torch.where(inside, ((loss - loss.max()) / temperature).exp(), 0.0)
    return float(weight[logits.argmax(1) != label].sum() / weight.sum())


@pytest.mark.parametrize("name", ["Linf", "L2"])
@pytest.mark.parametrize(("seed", "temperature", "gamma"), [(0, 5.0, 0.0), (1, 1.0, 0.0), (5, 0.5, 3.0)])
def test_the_share_of_adversarial_mass_is_that_of_numerical_integration(name, seed, temperature, gamma):
    model = curved(seed)
    x = torch.tensor(CENTER, dtype=torch.float64).expand(500, 2)  # many chains: their mean is all but the law's
    label = int(model(x[:1]).argmax())
    chain = gibbs.kernel(NORMS[name], EPS, 900, temperature, x.shape[1:], gamma=gamma)
    draws = gibbs.draw(chain, model, x, torch.full((500,), label), thin=3, keep_points=False, generator=generator())
    expected = by_integration(model, name, label, temperature, gamma)
    assert 0.02 < expected < 0.98
    assert float(draws.share.mean()) == pytest.approx(expected, abs=0.02)
    covered = (draws.interval[:, 0] <= expected) & (expected <= draws.interval[:, 1])
    assert covered.double().mean() > 0.85  # of 95 % intervals


def test_a_flat_loss_gives_the_uniform_law_in_the_ball():
    model = LinearTwoClass((2,))
    nn.init.zeros_(model.w)
    x = torch.full((200, 2), 0.5, dtype=torch.float64)
    chain = gibbs.kernel(LINF, 0.2, 600, 1.0, x.shape[1:])
    draws = gibbs.draw(chain, model, x, torch.ones(200, dtype=torch.long), thin=5, generator=generator())
    points = draws.points.flatten(0, 2) - 0.5
    assert points.abs().max() <= 0.2
    torch.testing.assert_close(points.var(0), torch.full((2,), 0.2**2 / 3).double(), rtol=0.05, atol=0)
    assert torch.equal(draws.share, torch.zeros(200, dtype=torch.float64))  # the label is predicted everywhere
    assert draws.points.shape == (4, 60, 200, 2)


def test_a_step_is_mirrored_at_ball_and_box():
    x = torch.tensor([[0.5, 0.5], [0.1, 0.5]])
    moved = torch.tensor([[0.75, 0.45], [-0.05, 0.5]])
    torch.testing.assert_close(
        reflect(x, moved, LINF, 0.2, (0.0, 1.0)), torch.tensor([[0.65, 0.45], [0.05, 0.5]]), rtol=0, atol=1e-6
    )
    radial = reflect(x[:1], torch.tensor([[0.8, 0.9]]), L2, 0.4, (0.0, 1.0))  # at 0.5 of 0.4, back to 0.3
    torch.testing.assert_close(radial, torch.tensor([[0.68, 0.74]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])
def test_an_attack_draws_and_samples(kind):
    model = curved(1)
    x, y = torch.full((3, 2), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    attack = kind(model, eps=0.3, nb_iter=20, generator=generator())
    samples = attack.sample(x, y, 6, temperature=0.5)
    assert samples.shape == (6, 3, 2)
    assert kind.norm.size((samples - x).flatten(0, 1)).max() <= 0.3 + 1e-12
    draws = attack.draws(x, y, 40, temperature=0.5, thin=2)
    assert draws.losses.shape == draws.adversarial.shape == (4, 10, 3)
    assert torch.equal(draws.worst, draws.points.flatten(0, 1)[draws.losses.flatten(0, 1).argmax(0), torch.arange(3)])
    with pytest.raises(BadInput) as error:
        attack.sample(x, y, 6, temperature=0.0)
    assert (error.value.code, error.value.field) == ("bad-value", "temperature")


def test_draws_with_a_radius_of_each_example_and_a_box_of_each_feature():
    x, y = torch.full((3, 2), 0.5, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    eps, low = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([0.45, 0.0], dtype=torch.float64)
    attack = LinfATENTAttack(curved(1), eps=eps, nb_iter=8, clip_min=low, clip_max=1.0, generator=generator())
    points = attack.draws(x, y, 16, temperature=0.5, thin=1).points.flatten(0, 1)
    assert bool(((points - x).abs().amax(2) <= eps + 1e-9).all())
    assert points[..., 0].min() >= 0.45 - 1e-9


def test_too_few_draws_are_refused():
    chain = gibbs.kernel(LINF, 0.2, 5, 1.0, torch.Size([2]))
    with pytest.raises(BadInput) as error:
        gibbs.draw(chain, curved(0), torch.zeros(1, 2).double(), torch.zeros(1, dtype=torch.long), burn_in=2)
    assert (error.value.code, error.value.field) == ("bad-value", "steps")


def test_the_protocol_entropy_gives_every_image_its_share(tmp_path):
    x, _ = small_batch(5, dtype=torch.float32)
    model = small_net(dtype=torch.float32)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # wrong everywhere: all of its mass is adversarial
    plan = Protocol(
        name="own", description="", attacks=[attack_spec("entropy", burn_in=10, steps=40, thin=2, temperature=3.0)]
    )
    out = tmp_path / "report.json"
    report = evaluate(model, x, y, norm="Linf", eps=0.01, protocol=plan, chunk=3, out=out)
    result = Report.load(out).results[0]
    assert result == report.results[0]
    assert (result.n, result.correct, result.flags[0]) == (5, 4, "0")
    assert result.per_image["share"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert max(result.per_image["share_low"][1:]) == 0.0
    assert 0.0 < min(result.per_image["share_high"][1:]) < 1.0
    assert {len(figures) for figures in result.per_image.values()} == {5}
    assert any("have mixed" in note.text for note in result.notes)


# ---- mixing


def autoregressive(rho, chains=4, draws=500, problems=300, seed=0):
    noise = torch.randn(chains, draws, problems, generator=generator(seed), dtype=torch.float64)
    values = [noise[:, 0]]
    for k in range(1, draws):
        values.append(rho * values[-1] + math.sqrt(1 - rho**2) * noise[:, k])
    return torch.stack(values, 1)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_effective_size_of_an_autoregressive_chain_is_its_closed_form(rho):
    sizes = mixing.effective_size(autoregressive(rho))
    assert float(sizes.mean()) == pytest.approx(4 * 500 * (1 - rho) / (1 + rho), rel=0.1)


def test_rhat_is_one_for_mixed_chains_and_the_closed_form_for_shifted_ones():
    values = autoregressive(0.0, problems=200)
    assert mixing.split_rhat(values).mean() == pytest.approx(1.0, abs=0.005)
    shifted = values + torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)[:, None, None]
    between = 8 / 7  # variance of the means of the eight half chains
    assert mixing.split_rhat(shifted).mean() == pytest.approx(math.sqrt(1 + between), rel=0.01)


def test_constant_values_have_mixed():
    values = torch.ones(4, 10, 2)
    assert mixing.split_rhat(values).tolist() == [1.0, 1.0]
    assert mixing.effective_size(values).tolist() == [40.0, 40.0]
    with pytest.raises(BadInput) as error:
        mixing.split_rhat(values[:, :3])
    assert (error.value.code, error.value.field) == ("bad-shape", "draws")
