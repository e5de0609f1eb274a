"""One rule for every seed: a whole number from 0 to 2^64 - 1 works, all else is refused by name."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from problems import attack_spec, tiny_net
from torch import nn

import atent_ext
from atent_ext.attacks import accuracy, autoattack, gamma, langevin
from atent_ext.attacks.spec import Setting
from atent_ext.certification import smoothing
from atent_ext.core import model_state, processes, seeds
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2, LINF
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation import certificates, chunks, comparison, in_memory, planning, run, scoring
from atent_ext.evaluation import drawn as in_order
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject
from atent_ext.experiments import drawing, quickstart
from atent_ext.figures import density, gallery, landscape, plane, plots, probabilities
from atent_ext.submissions import masking, probing, sanity
from atent_ext.training import recipes
from atent_ext.training.batches import Batches
from atent_ext.training.loop import fit

ROOT = Path(__file__).resolve().parent.parent
LINF_THREAT, L2_THREAT = Threat(norm="Linf", eps=0.1), Threat(norm="L2", eps=0.5)
SMOOTHING = smoothing.Smoothing(sigma=0.5, n0=2, n=4)
CLEAN = Protocol(name="short", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=1)))

DIGITS = datasets.load("digits")
FEW = DIGITS.test.take(6)
POINTS = datasets.Split(torch.linspace(-1, 1, 40).reshape(20, 2), torch.arange(20) % 2)
with model_state.seeded(0):
    NETWORK = tiny_net().eval()
SUBJECT = Subject(NETWORK, FEW, LINF_THREAT, About(name="tiny", model="tiny", weights_sha256="1f", data="digits"))
REPORT = scoring.score(SUBJECT, CLEAN, chunk=3)


@pytest.fixture
def place(tmp_path):
    return tmp_path


def drawn(seed):
    with model_state.seeded(seed):
        return torch.rand(3)


def trained(seed):
    """One step of a network on the plane."""
    setting = plane.Setting(updates=1)
    return plane.train(next(iter(setting.objectives.values())), POINTS, setting, seed)


USES = {
    "attacks.accuracy.robust_flags": lambda seed, _: accuracy.robust_flags(
        NETWORK, FEW, langevin.pgd(LINF, 0.1, 1), Setting(LINF_THREAT, seed)
    ),
    "attacks.autoattack.run": lambda seed, _: autoattack.run(
        NETWORK, FEW.images, FEW.labels, norm="Linf", eps=0.01, seed=seed, attacks=["apgd-ce"]
    ),
    "attacks.gamma.distance": lambda seed, _: gamma.distance(
        NETWORK, FEW.images, FEW.labels, langevin.atent(L2, 1.0, 1), seed
    ),
    "attacks.gamma.calibrate_gamma": lambda seed, _: gamma.calibrate_gamma(
        NETWORK, FEW.images, FEW.labels, eps=0.5, steps=5, step_size=0.3, start="clean", seed=seed
    ),
    "certification.smoothing.certify": lambda seed, _: smoothing.certify(NETWORK, FEW.images[0], SMOOTHING, seed),
    "certification.smoothing.certify_all": lambda seed, _: smoothing.certify_all(NETWORK, FEW, SMOOTHING, seed=seed),
    "certification.smoothing.predict": lambda seed, _: smoothing.predict(NETWORK, FEW.images[0], SMOOTHING, seed),
    "core.model_state.seeded": lambda seed, _: drawn(seed),
    "core.seeds.everywhere": lambda seed, _: seeds.everywhere(seed),
    "core.seeds.generator": lambda seed, _: seeds.generator(seed),
    "data.datasets.hold_out": lambda seed, _: datasets.hold_out(DIGITS.train, 20, seed),
    "evaluation.comparison.compare": lambda seed, _: comparison.compare(REPORT, REPORT, until_decided=True, seed=seed),
    "evaluation.certificates.certify": lambda seed, folder: certificates.certify(
        SUBJECT, SMOOTHING, folder / "c.json", 2, seed, lambda count: None
    ),
    "evaluation.in_memory.evaluate": lambda seed, _: in_memory.evaluate(
        NETWORK, FEW.images, FEW.labels, norm="Linf", eps=0.1, protocol=CLEAN, seed=seed, chunk=3
    ),
    "evaluation.chunks.cut": lambda seed, _: chunks.cut(6, 2, seed),
    "evaluation.run.run_protocol": lambda seed, _: run.run_protocol(NETWORK, FEW, CLEAN, Setting(LINF_THREAT, seed)),
    "evaluation.scoring.score": lambda seed, _: scoring.score(SUBJECT, CLEAN, seed=seed, chunk=3),
    "experiments.drawing.draw": lambda seed, folder: drawing.draw(
        "plane", [], folder / "d.png", n=10, updates=1, seed=seed
    ),
    "figures.density.samples": lambda seed, _: density.samples(density.Setting(chains=3), seed),
    "figures.gallery.draw": lambda seed, folder: gallery.draw(
        NETWORK, FEW.take(1), LINF_THREAT, DIGITS.classes, "one", folder / "g.png", seed
    ),
    "evaluation.drawn.first": lambda seed, _: in_order.first(FEW, 3, seed),
    "evaluation.drawn.order": lambda seed, _: in_order.order(5, seed),
    "evaluation.planning.estimate": lambda seed, _: planning.estimate(SUBJECT, CLEAN, seed=seed),
    "evaluation.scoring.planned": lambda seed, _: scoring.planned(SUBJECT, CLEAN, 3, seed, 3, None, processes.state()),
    "figures.landscape.around": lambda seed, _: landscape.around(
        "tiny", NETWORK, FEW, 0, LINF_THREAT, steps=1, seed=seed
    ),
    "figures.landscape.directions": lambda seed, _: landscape.directions(NETWORK, FEW, 0, L2_THREAT, 1, seed),
    "figures.plane.embed": lambda seed, _: plane.embed(plane.two_classes("digits", 10), seed=seed),
    "figures.plane.study": lambda seed, _: plane.study(
        plane.two_classes("digits", 10), plane.Setting(updates=1, steps=1), seed
    ),
    "figures.plane.train": lambda seed, _: trained(seed),
    "figures.plots.accuracy_curve": lambda seed, _: plots.accuracy_curve(
        "tiny", NETWORK, FEW, LINF_THREAT, [0.0, 0.1], 1, seed
    ),
    "figures.plots.portrait": lambda seed, _: plots.portrait(NETWORK, FEW, 0, LINF_THREAT, 1, seed),
    "figures.probabilities.attacked": lambda seed, _: probabilities.attacked(
        "tiny", NETWORK, FEW, 0, LINF_THREAT, 1, seed
    ),
    "submissions.masking.signs": lambda seed, _: masking.signs(
        NETWORK, FEW, LINF_THREAT, train=DIGITS.train.take(20), classes=10, seed=seed
    ),
    "submissions.masking.surrogate": lambda seed, _: masking.surrogate(DIGITS.train.take(20), 10, seed),
    "submissions.sanity.check": lambda seed, _: sanity.check(NETWORK, FEW.images, FEW.labels, seed),
    "training.batches.Batches.epoch": lambda seed, _: list(Batches(FEW, 3).epoch(seed)),
}
"""A short call of each, with a seed."""

ELSEWHERE = {
    "core.validate.seed": "the rule itself",
    "evaluation.places.default_path": "a name",
    "evaluation.scoring.require_same": "compares the seed with that of a report",
    "experiments.quickstart.quickstart": "trains and scores by the functions above; refused below",
    "experiments.rows.measure": "scores by `evaluate` and `certify_all`",
    "experiments.study.recipe_of": "a recipe, whose seed is refused below",
    "figures.density.report": "writes the seed down",
    "submissions.diagnosis.diagnose": "checks by `sanity.check` first",
    "submissions.verification.verify": "checks by `sanity.check` first",
}


def functions_with_a_seed():
    """The public functions of the package that take a seed, the command line's and integrations' left out."""
    for module in pkgutil.walk_packages(atent_ext.__path__, "atent_ext."):
        if module.name.startswith(("atent_ext.cli", "atent_ext.integrations", "atent_ext.__main__")):
            continue
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            ours = function.__module__ == module.name and not name.startswith("_")
            if ours and "seed" in inspect.signature(function).parameters:
                yield f"{module.name.removeprefix('atent_ext.')}.{name}"


def test_every_function_that_takes_a_seed_is_tested_here():
    assert set(functions_with_a_seed()) - USES.keys() - ELSEWHERE.keys() == set()


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("seed", [-1, 2**64, -(2**70)], ids=str)
def test_what_is_no_seed_is_refused(name, seed, place):
    with pytest.raises(BadInput) as refused:
        USES[name](seed, place)
    assert (refused.value.code, refused.value.field) == ("bad-value", "seed")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", USES)
def test_the_largest_seed_works(name, place):
    with torch.random.fork_rng():
        USES[name](2**64 - 1, place)


def test_a_seed_is_a_whole_number():
    for value in (1.0, True, "1", None):
        with pytest.raises(BadInput) as refused:
            seeds.generator(value)
        assert (refused.value.code, refused.value.field) == ("bad-type", "seed")
    with pytest.raises(BadInput) as refused:
        quickstart.quickstart(Path("nowhere"), seed=-1)
    assert str(refused.value) == "seed is -1; it must be a whole number from 0 to 2^64 - 1"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_recipe_has_a_seed(seed):
    with pytest.raises(BadInput, match=f"seed is {seed}"):
        recipes.load("digits-linf-sgd", [f"seed={seed}"])


def test_a_run_is_trained_with_any_seed(place):
    short = ["epochs=1", "examples=64", "validation.count=20", "validation.steps=1", f"seed={2**63 - 1}"]
    folder = fit(recipes.load("digits-linf-sgd", short), DIGITS, place / "run")
    assert folder.recipe().seed == 2**63 - 1


# ---- seeds that follow from a seed


def test_a_number_that_is_a_seed_stays_what_it_is():
    for number in (0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1):
        assert seeds.derived(number) == number
    for number in (0, 1, 2**31, 2**32 - 1):
        assert seeds.derived(number, 32) == number


@pytest.mark.parametrize("bits", [32, 64])
def test_numbers_that_follow_each_other_give_seeds_that_differ(bits):
    for start in (0, 2**bits - 50, 1_000_003 * (2**63 - 1)):
        derived = [seeds.derived(start + k, bits) for k in range(100)]
        assert len(set(derived)) == 100
        assert all(0 <= seed < 2**bits for seed in derived)


def test_each_image_is_certified_with_a_seed_of_its_own(monkeypatch):
    def given(seed):
        used = []
        monkeypatch.setattr(smoothing, "certify", lambda model, x, how, own: used.append(own))
        smoothing.certify_all(NETWORK, FEW, SMOOTHING, seed=seed)
        return used

    assert given(0) == [0, 1, 2, 3, 4, 5]
    assert given(7) == [7_000_021 + k for k in range(6)]
    assert given(18 * 10**12) == [18 * 10**12 * 1_000_003 + k for k in range(6)]
    assert len(set(given(10**14))) == len(set(given(2**64 - 1))) == 6


def test_each_chunk_has_a_seed_of_its_own():
    assert [chunk.seed for chunk in chunks.cut(6, 2, 2**63 - 1)] == [2**63 - 1, 2**63, 2**63 + 1]
    assert len({chunk.seed for chunk in chunks.cut(6, 2, 2**64 - 2)}) == 3


def test_another_draw_of_a_network_has_another_seed():
    images = torch.ones(2, 1, 3, 3)
    probe = probing.Probe(nn.Dropout(), images, torch.zeros(2).long(), 2**64 - 1)
    answers = [probe.answer(probe.network, images, other) for other in (0, 0, 1)]
    assert torch.equal(*answers[:2])
    assert not torch.equal(*answers[1:])


def test_generators_are_seeded_in_one_place():
    """Where else torch is seeded, it is with a constant, with what was checked or with what torch itself drew."""
    known = {
        "cli/doctor.py": 1,
        "core/seeds.py": 2,
        "training/entropy_sgd.py": 1,
        "training/loop.py": 1,
    }
    folder = ROOT / "atent_ext"
    counts = {
        path.relative_to(folder).as_posix(): len(re.findall(r"manual_seed\(", path.read_text(encoding="utf-8")))
        for path in folder.rglob("*.py")
    }
    assert {name: count for name, count in counts.items() if count} == known
