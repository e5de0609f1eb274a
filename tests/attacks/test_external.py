"""Minimal-norm attacks on a linear model, whose distance to the boundary is known."""

import copy

import pytest
import torch
from problems import LinearTwoClass, attack_spec

from atent_ext.attacks.external import carlini_wagner, deepfool
from atent_ext.attacks.spec import Setting
from atent_ext.core.norms import L2, LINF
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import run
from atent_ext.evaluation.protocol import Protocol

SHAPE = (1, 4, 4)
# foolbox imports from a namespace that SciPy gives up; CW of ART rounds a difference of two equal logits.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def problem(count=24):
    """A linear model that is undecided at the middle of the box, points near that, and their distances by norm."""
    model = LinearTwoClass(SHAPE)
    with torch.no_grad():
        model.b.copy_(-0.5 * model.w.sum())
    x = 0.5 + 0.3 * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1)) - 0.5)
    score = x.double().flatten(1) @ model.w + model.b
    sizes = {"Linf": model.w.abs().sum(), "L2": model.w.norm()}
    distances = {name: (score.abs() / size).detach().float() for name, size in sizes.items()}
    return model.float(), Split(x, (score > 0).long()), distances


@pytest.mark.parametrize(
    ("build", "norm", "steps", "excess", "count"),
    [
        (deepfool, LINF, 50, 0.03, 24),
        (deepfool, L2, 50, 0.03, 24),
        (carlini_wagner, L2, 500, 0.05, 24),
        (carlini_wagner, LINF, 20, 0.2, 8),  # ART takes one image after another
    ],
)
def test_what_they_find_is_little_farther_than_the_boundary(build, norm, steps, excess, count):
    model, split, distances = problem(count)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversaries = build(norm, steps)(model.eval(), split.images, split.labels)
    assert (model(adversaries).argmax(1) != split.labels).all()
    share = norm.size(adversaries - split.images) / distances[norm.name]
    assert (share > 0.999).all()
    assert share.median() < 1 + excess


@pytest.mark.parametrize(("build", "steps"), [(deepfool, 50), (carlini_wagner, 20)])
def test_a_copied_norm_gives_the_same_attack(build, steps):
    model, split, _ = problem(4)
    adversaries = [build(norm, steps)(model.eval(), split.images, split.labels) for norm in (L2, copy.deepcopy(L2))]
    assert torch.equal(*adversaries)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("spec", [("fgsm", 40), ("ifgsm", 10), ("pgd", 40), ("deepfool", 50), ("cw", 20)])
def test_a_success_counts_only_within_eps(norm, spec):
    if spec == ("cw", 20) and norm == "L2":
        spec = ("cw", 300)
    model, split, distances = problem(8 if (spec, norm) == (("cw", 20), "Linf") else 24)
    eps = float(distances[norm].median())
    clear = ((distances[norm] / eps - 1).abs() > 0.1).nonzero().squeeze(1)
    split = Split(split.images[clear], split.labels[clear])
    name, steps = spec
    attack = attack_spec(name) if name == "fgsm" else attack_spec(name, steps=steps)
    protocol = Protocol(name="mine", description="", attacks=[attack])
    (result,) = run.run_protocol(model, split, protocol, Setting(Threat(norm=norm, eps=eps)))
    assert torch.equal(result.flags, distances[norm][clear] > eps)
