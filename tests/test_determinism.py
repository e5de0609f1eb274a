"""The same seed gives the same bytes, whatever the global random state; docs/promises.md says what else is promised."""

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from problems import Wrapped, attack_spec, small_batch, small_net
from pydantic import BaseModel

from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.certification.smoothing import Smoothing
from atent_ext.core import registry
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.evaluation import certificates, scoring
from atent_ext.evaluation.protocol import Protocol
from atent_ext.experiments import drawing
from atent_ext.figures import density
from atent_ext.models import weights
from atent_ext.storage import files
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.loop import fit
from atent_ext.training.run_folder import RunFolder, build_model

ROOT = Path(__file__).resolve().parent.parent
SETTING = (
    "model.name=tiny-net",
    "epochs=2",
    "batch_size=40",
    "validation={count: 40, steps: 2}",
    "augment=crop-flip",
    "eps_ramp=0.5",
)
SHORT = "objective.steps=3"
METHODS = {
    "digits-linf-sgd": (),
    "digits-linf-pgd-at": (SHORT,),
    "digits-linf-trades": (SHORT, "ema=0.9"),
    "digits-linf-mart": (SHORT,),
    "digits-linf-atent": (SHORT, "objective.noise=0.03"),
    "digits-linf-mma": (SHORT,),
    "digits-l2-desgd": (SHORT, "objective.noise=0.03"),
    "digits-l2-smooth-adv": (SHORT,),
    "digits-l2-entropy-sgd": ("optimizer.arguments={steps: 2, noise: 0.01}",),
}
PROTOCOL = Protocol(
    name="both",
    description="",
    attacks=tuple(attack_spec(name, steps=4, restarts=2, keep="success") for name in ("pgd", "atent")),
)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def _tiny_net(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")


@pytest.fixture(scope="module")
def digits():
    whole = datasets.load("digits")
    return DataSet(whole.name, whole.classes, whole.train.take(120), whole.test.take(30))


def twice(call):
    """What a call with an argument of its own returns under two global random states."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- a library may draw from it
        random.seed(seed)
        results.append(call(str(seed)))
    return results


def timeless(value):
    """Nested data without what a clock said, tensors as their bytes: what `==` compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    if isinstance(value, BaseModel):
        return timeless(value.model_dump())
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name != "seconds"}
    return [timeless(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", METHODS)
def test_training_writes_the_same_weights_state_and_metrics(tmp_path, digits, name):
    def trained(place, seed=3):
        chosen = recipes.load(name, [*SETTING, *METHODS[name], f"seed={seed}"])
        folder = fit(chosen, digits, tmp_path / place)
        return folder.weights.read_bytes(), timeless(files.load_state(folder.state))

    first, again = twice(trained)
    other = trained("other", seed=4)
    assert first == again
    assert first[0] != other[0]
    assert first[1]["optimizer"] != other[1]["optimizer"]


@pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])
@pytest.mark.parametrize("options", [{}, {"restarts": 3, "keep": "success"}, {"batch_size": 2, "speed": "plain"}])
def test_an_attack_with_a_generator_finds_the_same_adversaries(kind, options):
    model, (x, y) = small_net(), small_batch()

    def attacked(seed):
        generator = torch.Generator().manual_seed(seed)
        attack = kind(model, eps=0.2, nb_iter=4, eps_iter=0.08, noise=0.01, generator=generator, **options)
        return attack.perturb(x, y).numpy().tobytes(), attack.sample(x, y, 2).numpy().tobytes()

    first, again = twice(lambda place: attacked(5))
    assert first == again
    assert all(mine != other for mine, other in zip(first, attacked(6), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of fresh weights: an evaluation asks for no good ones."""
    folder, chosen = RunFolder(tmp_path_factory.mktemp("run")), recipes.load("digits-linf-pgd-at")
    images = datasets.load("digits")
    torch.manual_seed(3)
    model = build_model(chosen, images)
    torch.nn.init.normal_(list(model.parameters())[-2], std=0.1)
    with folder.claimed(chosen, resume=False, overwrite=False):
        weights.save_weights(model, folder.weights)
        epoch = {"epoch": 1, "loss": 1.0, "clean": 0.5, "robust": 0.2, "lr": 0.1, "selected": True, "seconds": 1.0}
        folder.write_metrics([epoch])
    return folder.path


def test_an_evaluation_gives_the_same_report(run):
    def scored(place):
        return timeless(scoring.score(run_folder.from_run(run), PROTOCOL, n=30, seed=4, chunk=20))

    first, again = twice(scored)
    assert first == again
    assert [result["n"] for result in first["results"]] == [30, 30, 30]


def test_an_evaluation_of_a_network_that_draws_repeats_and_moves_no_state(run):
    subject = run_folder.from_run(run)
    noisy = replace(subject, model=Wrapped(subject.model, lambda network, x: network(x) + torch.randn(len(x), 10)))
    plan = PROTOCOL.model_copy(update={"attacks": (attack_spec("clean"), *PROTOCOL.attacks)})  # the others break all

    def scored(place, seed=4):
        before = torch.get_rng_state()
        report = timeless(scoring.score(noisy, plan, n=30, seed=seed, chunk=20))
        assert torch.equal(before, torch.get_rng_state())
        return report["results"]

    first, again = twice(scored)
    assert first == again
    assert [result["flags"] for result in first] != [result["flags"] for result in scored("other", seed=5)]


def test_certification_writes_the_same_bytes(tmp_path, run):
    smoothing = Smoothing(sigma=0.25, n0=10, n=50)

    def certified(place, seed=4):
        out = tmp_path / f"{place}.json"
        certificates.certify(run_folder.from_run(run), smoothing, out, images=5, seed=seed, progress=lambda done: None)
        return out.read_bytes()

    first, again = twice(certified)
    assert first == again
    assert first != certified("other", seed=5)


@pytest.mark.parametrize("kind", drawing.KINDS)
def test_a_figure_and_its_numbers_are_the_same_bytes(tmp_path, monkeypatch, run, kind):
    short = density.Setting(chains=40, steps=3)
    monkeypatch.setattr(density, "Setting", lambda: short)
    runs = [] if kind in ("plane", "density") else [run]

    def drawn(place):
        written = drawing.draw(kind, runs, tmp_path / place / "figure.png", n=20, seed=4, index=2, updates=4)
        return [(path.name, path.read_bytes()) for path in written]

    first, again = twice(drawn)
    assert [name for name, _ in first][:2] == ["figure.png", "figure.svg"]
    assert first == again


def test_every_promise_names_a_test_that_is_there():
    named = re.findall(
        r"`((?:\w+/)*test_\w+)::(test_\w+)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    )
    assert len(named) >= 25
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (file, name)
