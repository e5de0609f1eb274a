import json
import math
import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from problems import visible
from scripts import started
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from atent_ext.attacks.accuracy import clean_flags, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.core import registry
from atent_ext.core.errors import BadInput, NonFiniteLoss
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.models import weights as network_weights
from atent_ext.objectives import ATENT, PGDAT
from atent_ext.storage import files
from atent_ext.training import loop, recipes

METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
STEPS = 4
"""Optimizer steps in an epoch: 160 of the 200 images in batches of 40."""


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps the mixed precision of the process's first run."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def tiny_net(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:tiny_net")


@pytest.fixture(scope="module")
def tiny():
    """200 training digits, and a test split that breaks whatever touches it."""
    digits = datasets.load("digits")
    broken = Split(torch.full_like(digits.test.images, math.nan), torch.full_like(digits.test.labels, -1))
    return DataSet(digits.name, digits.classes, digits.train.take(200), broken)


def recipe(method="sgd", *overrides):
    common = ["model.name=tiny-net", "epochs=3", "batch_size=40", "validation.count=40", "validation.steps=2"]
    return recipes.load(
        f"digits-linf-{method}", [*common, *(["objective.steps=3"] if method != "sgd" else []), *overrides]
    )


class Watch(loop.Silent):
    """Records all calls. after_step: step of the whole run -> action; after_epoch: an action on its metrics."""

    def __init__(self, after_step=None, after_epoch=None):
        self.after_step, self.after_epoch = after_step or {}, after_epoch or (lambda metrics: None)
        self.starts, self.losses, self.epochs = [], [], []

    def begin(self, name, epochs, steps, done):
        self.starts.append((name, epochs, steps, done))

    def step(self, loss):
        self.losses.append(loss)
        self.after_step.get(len(self.losses), lambda: None)()

    def epoch(self, metrics):
        self.epochs.append(metrics)
        self.after_epoch(metrics)


def interrupt():
    raise KeyboardInterrupt


def stop_after(steps):
    return Watch({steps: interrupt})


def weights(folder):
    return folder.weights.read_bytes()


def metrics(folder):
    """The metrics of each epoch without their times; each line must be standard JSON."""
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl")) for line in lines]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in parsed]


def flat(value, name=""):
    """All leaves of nested containers, by path; tensors as bytes."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), name)
    return {name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}


def state(folder):
    """The whole training state, without times."""
    leaves = flat(files.load_state(folder.state))
    return {name: value for name, value in leaves.items() if not name.endswith("/seconds")}


def same(run, other):
    assert weights(run) == weights(other)
    assert metrics(run) == metrics(other)
    assert state(run) == state(other)


def refusal(code, field, call, *arguments, kind=BadInput, **options):
    """The message of the error that a call raises with this code and field."""
    with pytest.raises(kind) as error:
        call(*arguments, **options)
    assert (error.value.code, error.value.field) == (code, field)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- resume


CASES = {
    "sgd": ("sgd",),
    "pgd-at": ("pgd-at",),
    "trades": ("trades",),
    "mart": ("mart",),
    "atent": ("atent",),
    "atent in ℓ2": ("atent", "objective.norm=L2", "threat.norm=L2", "threat.eps=0.15"),
    "ema": ("pgd-at", "ema=0.9"),
    "adam": ("sgd", "optimizer.name=adam", "optimizer.lr=1e-3"),
    "constant": ("sgd", "schedule.name=constant"),
    "multi-step": ("sgd", "schedule={name: multi-step, milestones: [1, 2]}"),
    "crop-flip": ("sgd", "augment=crop-flip"),
    "bf16": ("atent", "mixed_precision=bf16", "ema=0.9"),
    "last batch smaller": ("sgd", "batch_size=48"),
    "mma": ("pgd-at", "objective={name: mma, eps: 0.15, steps: 2, least: 0.03}"),
    "entropy-sgd": ("sgd", "optimizer={name: entropy-sgd, lr: 0.5, arguments: {steps: 2, noise: 0.01}}"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path, tiny, case):
    chosen = recipe(*CASES[case])
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", reporter=stop_after(STEPS + 2))
    assert len(metrics(loop.RunFolder(tmp_path / "cut"))) == 1
    resumed = loop.fit(chosen, tiny, tmp_path / "cut", resume=True)
    same(whole, resumed)
    assert [line["epoch"] for line in metrics(resumed)] == [1, 2, 3]


def test_the_checkpoint_holds_the_state_of_the_objective(tmp_path, tiny):
    folder = loop.fit(recipe(*CASES["mma"]), tiny, tmp_path)
    lengths = files.load_state(folder.state)["objective"]["lengths"]
    assert lengths.shape == (160,)
    assert len(lengths.unique()) > 20
    assert 0 < lengths.min() <= lengths.max() <= 1.05 * 0.15 + 1e-6
    plain = loop.fit(recipe(), tiny, tmp_path / "plain")
    assert "objective" not in files.load_state(plain.state)


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 1, 2 * STEPS + 3])
def test_a_run_may_stop_anywhere_and_more_than_once(tmp_path, tiny, steps):
    chosen = recipe("atent")
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    for resume in (False, True):  # the second stop comes at the same step after the resume, if as many are left
        reporter = stop_after(min(steps, STEPS - 1))
        with pytest.raises(KeyboardInterrupt):
            loop.fit(chosen, tiny, tmp_path / "cut", resume=resume, reporter=reporter)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", resume=True, reporter=stop_after(steps))
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


@pytest.mark.parametrize("broken", ["save_weights", "save_state", "write"])
def test_a_run_may_stop_between_the_files_of_a_checkpoint(tmp_path, tiny, monkeypatch, broken):
    chosen, calls = recipe("pgd-at", "validation.select=last"), Counter()
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    owner = network_weights if broken == "save_weights" else files
    real = getattr(owner, broken)

    def failing(content, path):
        calls[path.name] += 1
        if calls[path.name] == 2:
            raise KeyboardInterrupt
        real(content, path)

    def failing_write(path, content):
        calls[path.name] += 1
        if path.name == "metrics.jsonl" and calls[path.name] == 2:
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(owner, broken, failing_write if broken == "write" else failing)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(chosen, tiny, tmp_path / "cut")
    assert len(metrics(loop.RunFolder(tmp_path / "cut"))) == 1
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


def test_a_finished_run_is_resumed_to_itself(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    watch = Watch()
    loop.fit(recipe(), tiny, tmp_path, resume=True, reporter=watch)
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before
    assert (watch.starts, watch.losses) == ([(recipe().name, 3, STEPS, 3)], [])
    (tmp_path / "metrics.jsonl").unlink()  # as after a kill between the last state and its metrics
    loop.fit(recipe(), tiny, tmp_path, resume=True)
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before
    assert folder.recipe() == recipe()


def test_a_run_killed_in_its_second_epoch_is_resumed_bit_for_bit(tmp_path):
    settings = ("epochs=3", "objective.steps=2", "validation.count=100", "validation.steps=2")
    chosen, digits = recipes.load("digits-linf-atent", settings), datasets.load("digits")
    whole, cut = loop.fit(chosen, digits, tmp_path / "whole"), loop.RunFolder(tmp_path / "cut")
    options = [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # else sums are rounded otherwise
    command = ("train", "digits-linf-atent", *options, "--out", cut.path)
    killed = started(signal.SIGKILL, {"step": 30}, *command, env=environment)  # an epoch has 21 steps
    _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err
    assert len(metrics(cut)) == 1
    same(whole, loop.fit(chosen, digits, cut.path, resume=True))


# ---- the folder


def test_another_recipe_is_not_resumed(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = weights(folder)
    message = refusal("other-content", "epochs", loop.fit, recipe("sgd", "epochs=4"), tiny, tmp_path, resume=True)
    assert message.startswith(f"{tmp_path} was trained with epochs = 3, not 4; go on with")
    message = refusal("other-content", "name", loop.fit, recipe("pgd-at"), tiny, tmp_path, resume=True)
    assert "was trained with name = 'digits-linf-sgd', not 'digits-linf-pgd-at'" in message
    assert weights(folder) == before


def test_a_run_is_not_resumed_on_other_images(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = weights(folder)
    other = DataSet(tiny.name, tiny.classes, Split(1 - tiny.train.images, tiny.train.labels), tiny.test)
    message = refusal("other-content", "data", loop.fit, recipe(), other, tmp_path, resume=True)
    assert message == f"{tmp_path} was trained on other images; name those, or give --overwrite"
    assert weights(folder) == before


def test_a_folder_that_holds_a_run_is_refused(tmp_path, tiny):
    loop.fit(recipe(), tiny, tmp_path)
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    message = refusal("exists", "out", loop.fit, recipe(), tiny, tmp_path)
    assert message.endswith("already holds a run; give --resume to go on or --overwrite to start anew")
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before


def test_overwrite_starts_anew(tmp_path, tiny):
    loop.fit(recipe("atent"), tiny, tmp_path / "run")
    (tmp_path / "run" / "eval-quick.json").write_text("of the old run")
    (tmp_path / "run" / "notes.txt").write_text("somebody's")
    watch = Watch()
    again = loop.fit(recipe("sgd", "seed=1"), tiny, tmp_path / "run", overwrite=True, reporter=watch)
    assert watch.starts == [("digits-linf-sgd", 3, STEPS, 0)]
    assert not (tmp_path / "run" / "eval-quick.json").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "somebody's"
    same(loop.fit(recipe("sgd", "seed=1"), tiny, tmp_path / "new"), again)


def test_what_lies_in_the_folder(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, str(tmp_path / "deep" / "run"))
    names = sorted(path.name for path in visible(folder.path))
    assert names == ["metrics.jsonl", "recipe.yaml", "state.pt", "weights.safetensors"]
    assert folder.recipe() == recipe()


@pytest.mark.parametrize(
    ("broken", "code", "field", "part"),
    [
        (b"hello world", "unreadable", "path", "cannot be read as tensors"),
        ({"history": []}, "other-content", "resume", "KeyError: 'model'"),
        ({"model": {"1.weight": torch.ones(1)}}, "other-content", "resume", "RuntimeError"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, tiny, broken, code, field, part):
    folder = loop.fit(recipe(), tiny, tmp_path)
    if isinstance(broken, bytes):
        folder.state.write_bytes(broken)
    else:
        files.save_state(broken, folder.state)
    message = refusal(code, field, loop.fit, recipe(), tiny, tmp_path, resume=True)
    assert message.startswith(str(folder.state))
    assert part in message
    assert message.endswith("--overwrite starts the run anew")


# ---- weights to start from


def first_weights(chosen, tiny, out, **options):
    """The weights before the first step of a run."""
    recorded = []

    def note(optimizer, *_):
        recorded.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])

    handle = register_optimizer_step_pre_hook(note)
    try:
        loop.fit(chosen, tiny, out, **options)
    finally:
        handle.remove()
    return recorded[0]


@pytest.mark.parametrize("source", ["plain", "plain/weights.safetensors"])
def test_training_starts_from_the_weights_of_another_run(tmp_path, tiny, source):
    plain = loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "plain")
    chosen = recipe("pgd-at", "epochs=1", f"init_from={tmp_path / source}")
    started = first_weights(chosen, tiny, tmp_path / "tuned")
    expected = [p.detach() for p in plain.load_model(tiny).parameters()]
    assert all(torch.equal(p, q) for p, q in zip(started, expected, strict=True))
    assert loop.RunFolder(tmp_path / "tuned").recipe() == chosen
    fresh = first_weights(recipe("pgd-at", "epochs=1"), tiny, tmp_path / "fresh")
    assert not torch.equal(fresh[0], started[0])


def test_a_fine_tuned_run_is_resumed_without_its_initial_weights(tmp_path, tiny):
    plain = loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "plain")
    chosen = recipe("pgd-at", "ema=0.9", f"init_from={plain.path}")
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", reporter=stop_after(STEPS + 2))
    plain.weights.unlink()
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("nowhere", "missing", "there is no weights file {}"),
        ("nowhere.pt", "missing", "there is no weights file {}"),
        ("empty", "missing", "there is no weights file {}/weights.safetensors"),
        ("other.pt", "bad-shape", "{} does not fit Sequential: missing, unknown or of another shape: "),
    ],
)
def test_weights_that_are_missing_or_do_not_fit_are_refused_before_anything_is_written(
    tmp_path, tiny, name, code, part
):
    (tmp_path / "empty").mkdir()
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    chosen = recipe("sgd", f"init_from={tmp_path / name}")
    message = refusal(code, "path", loop.fit, chosen, tiny, tmp_path / "run")
    assert message.startswith(part.format(tmp_path / name))
    assert not (tmp_path / "run").exists()


# ---- a loss that is not finite


@pytest.fixture
def breaking(monkeypatch):
    """Make the loss of plain training NaN at its n-th call."""

    def at(call, value=math.nan):
        calls = []

        def loss(logits, y):
            calls.append(1)
            return cross_entropy(logits, y) * (value if len(calls) == call else 1)

        monkeypatch.setattr("atent_ext.objectives.standard.cross_entropy", loss)

    return at


def not_finite(*arguments, **options):
    return refusal("non-finite-loss", "optimizer.lr", loop.fit, *arguments, kind=NonFiniteLoss, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_epoch(tmp_path, tiny, monkeypatch, breaking, value):
    chosen = recipe("sgd", "ema=0.5")
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    kept = {}
    watch = Watch(after_epoch=lambda _: kept.update((p.name, p.read_bytes()) for p in visible(tmp_path / "cut")))
    random_state = torch.random.get_rng_state()
    breaking(STEPS + 3, value)
    message = not_finite(chosen, tiny, tmp_path / "cut", reporter=watch)
    assert message.startswith(
        f"the loss is {value} at epoch 2, step 3; the checkpoint of epoch 1 is kept in {tmp_path}"
    )
    assert message.endswith("; start anew with --overwrite and a smaller optimizer.lr")
    assert {path.name: path.read_bytes() for path in visible(tmp_path / "cut")} == kept
    assert torch.equal(torch.random.get_rng_state(), random_state)
    monkeypatch.setattr("atent_ext.objectives.standard.cross_entropy", cross_entropy)
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


def test_a_step_that_is_far_too_large(tmp_path, tiny):
    chosen = recipe("sgd", "optimizer.lr=1e30", "schedule.name=constant", "model.name=digits-cnn")
    message = not_finite(chosen, tiny, tmp_path)
    head, _, remedy = message.rpartition("; ")
    assert head == "the loss is nan at epoch 1, step 2; no epoch was finished"
    assert remedy == "start anew with --overwrite and a smaller optimizer.lr"
    assert [path.name for path in visible(tmp_path)] == ["recipe.yaml"]


def test_a_loss_that_breaks_inside_a_step_of_entropy_sgd_stops_training(tmp_path, tiny, breaking):
    chosen = recipe(*CASES["entropy-sgd"])
    breaking(2 * STEPS + 4)  # two passes a step: in the second epoch, the second pass of its second step
    message = not_finite(chosen, tiny, tmp_path)
    assert message.startswith(f"the loss is nan at epoch 2, step 2; the checkpoint of epoch 1 is kept in {tmp_path}")


@pytest.mark.parametrize("epoch", [1, 2])
def test_weights_that_break_in_the_last_step_of_an_epoch_are_not_kept(tmp_path, tiny, epoch):
    # No loss has been computed from them: without a check of the outputs the broken state would replace the good one.
    def breaks(optimizer, *_):
        steps.append(1)
        if len(steps) == epoch * STEPS:
            optimizer.param_groups[0]["params"][0].data.fill_(math.inf)

    steps, kept = [], {}
    watch = Watch(after_epoch=lambda _: kept.update((p.name, p.read_bytes()) for p in visible(tmp_path)))
    handle = register_optimizer_step_post_hook(breaks)
    try:
        message = not_finite(recipe(), tiny, tmp_path, reporter=watch)
    finally:
        handle.remove()
    assert message.startswith(f"the network's outputs are not finite after epoch {epoch}, step {STEPS}; ")
    assert ("no epoch was finished" if epoch == 1 else f"the checkpoint of epoch 1 is kept in {tmp_path}") in message
    assert {p.name: p.read_bytes() for p in visible(tmp_path) if p.name != "recipe.yaml" or kept} == kept


# ---- which epoch is kept


def held_out(chosen, tiny):
    return datasets.hold_out(tiny.train, chosen.validation.count, chosen.seed)[1]


@pytest.mark.parametrize("ema", ["null", "0.7"])
def test_the_metrics_are_accuracies_on_held_out_training_images(tmp_path, tiny, ema):
    chosen = recipe("pgd-at", "validation.select=last", f"ema={ema}", "optimizer.lr=0.3", "seed=3")
    accuracies = []

    def measure(_):
        folder = loop.RunFolder(tmp_path)
        model, split = folder.load_model(tiny), held_out(chosen, tiny)
        kernel = pgd(LINF, 0.15, 2, 2.5 * 0.15 / 2)
        robust = robust_flags(model, split, kernel, Setting(chosen.threat, seed=3))
        accuracies.append((float(clean_flags(model, split).double().mean()), float(robust.double().mean())))

    folder = loop.fit(chosen, tiny, tmp_path, reporter=Watch(after_epoch=measure))
    assert [(line["clean"], line["robust"]) for line in metrics(folder)] == accuracies
    assert len(set(accuracies)) > 1
    assert accuracies[-1][0] > 0.4  # it learns


@pytest.mark.parametrize(
    ("select", "accuracies", "selected"),
    [
        ("robust", [0.2, 0.6, 0.4, 0.6, 0.7], [True, True, False, False, True]),
        ("robust", [0.0, 0.0, 0.0], [True, False, False]),
        ("last", [0.6, 0.4, 0.2], [True, True, True]),
    ],
)
def test_the_epoch_of_best_robust_accuracy_is_kept(tmp_path, tiny, monkeypatch, select, accuracies, selected):
    chosen = recipe("sgd", f"epochs={len(accuracies)}", f"validation.select={select}")
    script, kept, models = iter(accuracies), [], []
    monkeypatch.setattr(loop, "robust_flags", lambda *_: torch.arange(40) < 40 * next(script))

    def note(_):
        kept.append(weights(loop.RunFolder(tmp_path)))
        models.append(files.load_state(tmp_path / "state.pt")["model"])

    folder = loop.fit(chosen, tiny, tmp_path, reporter=Watch(after_epoch=note))
    assert [line["robust"] for line in metrics(folder)] == accuracies
    assert [line["selected"] for line in metrics(folder)] == selected
    best = max(epoch for epoch, chosen in enumerate(selected) if chosen)
    assert flat(safetensors.torch.load_file(folder.weights)) == flat(models[best])
    assert [kept[k] != kept[k - 1] for k in range(1, len(kept))] == selected[1:]


def test_standard_training_keeps_the_epoch_of_best_clean_accuracy(tmp_path, tiny):
    folder = loop.fit(recipe("sgd", "epochs=6", "optimizer.lr=0.5"), tiny, tmp_path)
    clean = [line["clean"] for line in metrics(folder)]
    assert [line["selected"] for line in metrics(folder)] == [
        all(accuracy > before for before in clean[:epoch]) for epoch, accuracy in enumerate(clean)
    ]
    kept = clean_flags(folder.load_model(tiny), held_out(recipe(), tiny))
    assert float(kept.double().mean()) == max(clean)


# ---- the calls of the objective, and its terms


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of PGD-AT."""
    recorded, call = [], PGDAT.__call__

    def spy(self, model, x, y, index=None, *, generator=None):
        recorded.append({"x": x, "y": y, "index": index, "seed": generator.initial_seed(), "training": model.training})
        return call(self, model, x, y, index, generator=generator)

    monkeypatch.setattr(PGDAT, "__call__", spy)
    return recorded


def epochs_of(calls):
    return [calls[start : start + STEPS] for start in range(0, len(calls), STEPS)]


def test_every_image_that_is_not_held_out_is_trained_on_once_an_epoch(tmp_path, tiny, calls):
    chosen = recipe("pgd-at", "epochs=2")
    loop.fit(chosen, tiny, tmp_path)
    rest, _ = datasets.hold_out(tiny.train, 40, chosen.seed)
    for epoch in epochs_of(calls):
        x, y, index = (torch.cat([call[name] for call in epoch]) for name in ("x", "y", "index"))
        assert sorted(index.tolist()) == list(range(160))
        assert torch.equal(x, rest.images[index])
        assert torch.equal(y, rest.labels[index])
    assert not torch.equal(calls[0]["index"], calls[STEPS]["index"])  # in another order
    assert all(call["training"] for call in calls)


def test_a_share_of_the_images_is_the_first_of_those_not_held_out(tmp_path, tiny, calls):
    loop.fit(recipe("pgd-at", "examples=80", "epochs=2"), tiny, tmp_path / "run")
    rest, _ = datasets.hold_out(tiny.train, 40, 0)
    assert len(calls) == 4  # 2 epochs of 80 images in batches of 40
    x, index = (torch.cat([call[name] for call in calls[:2]]) for name in ("x", "index"))
    assert sorted(index.tolist()) == list(range(80))
    assert torch.equal(x, rest.images[index])


def test_a_share_larger_than_the_data_is_refused(tmp_path, tiny):
    message = refusal("bad-value", "n", loop.fit, recipe("sgd", "examples=161"), tiny, tmp_path / "run")
    assert message.startswith("n is 161, but there are only 160 examples")


def test_augmented_images_are_cropped_anew_each_epoch(tmp_path, tiny, calls):
    loop.fit(recipe("pgd-at", "epochs=2", "augment=crop-flip"), tiny, tmp_path)
    rest, _ = datasets.hold_out(tiny.train, 40, 0)
    first, second = (
        {int(i): x for call in epoch for i, x in zip(call["index"], call["x"], strict=True)}
        for epoch in epochs_of(calls)
    )
    assert first.keys() == second.keys() == set(range(160))
    assert sum(torch.equal(first[i], rest.images[i]) for i in first) < 10
    assert sum(torch.equal(first[i], second[i]) for i in first) < 10


def test_each_epoch_draws_other_noise(tmp_path, tiny, calls):
    loop.fit(recipe("pgd-at"), tiny, tmp_path / "one")
    loop.fit(recipe("pgd-at", "seed=1"), tiny, tmp_path / "other")
    seeds = [{call["seed"] for call in epoch} for epoch in epochs_of(calls)]
    assert [len(seed) for seed in seeds] == [1] * 6
    assert len(set.union(*seeds)) == 6


def test_the_loss_is_the_sum_of_the_terms(tmp_path, tiny, monkeypatch):
    seen, call = [], ATENT.__call__

    def spy(self, *arguments, **options):
        for term in call(self, *arguments, **options):
            seen.append(float(term.detach()))
            yield term

    monkeypatch.setattr(ATENT, "__call__", spy)
    watch = Watch()
    loop.fit(recipe("atent", "objective.alpha=0.5"), tiny, tmp_path, reporter=watch)
    sums = [sum(seen[start : start + 3]) for start in range(0, len(seen), 3)]
    assert watch.losses == pytest.approx(sums)
    assert min(seen) > 0


# ---- schedules, ramp, average


@pytest.fixture
def steps_taken():
    """Each optimizer step: the optimizer, its learning rate, the weights after the step."""
    taken = []

    def before(optimizer, *_):
        taken.append({"optimizer": optimizer, "lr": optimizer.param_groups[0]["lr"]})

    def after(optimizer, *_):
        taken[-1]["weights"] = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    yield taken
    for handle in handles:
        handle.remove()


def test_milestones_divide_the_learning_rate_by_10(tmp_path, tiny, steps_taken):
    schedule = "schedule={name: multi-step, milestones: [1, 3]}"
    folder = loop.fit(recipe("sgd", "epochs=4", schedule), tiny, tmp_path)
    rates = [0.1] * STEPS + [0.01] * 2 * STEPS + [0.001] * STEPS
    assert [step["lr"] for step in steps_taken] == pytest.approx(rates, rel=1e-12)
    assert [line["lr"] for line in metrics(folder)] == pytest.approx([0.1, 0.01, 0.01, 0.001], rel=1e-12)


def test_a_constant_learning_rate_ignores_milestones(tmp_path, tiny, steps_taken):
    loop.fit(recipe("sgd", "schedule={name: constant, milestones: [1]}"), tiny, tmp_path)
    assert [step["lr"] for step in steps_taken] == [0.1] * 3 * STEPS


def one_cycle(step, steps, peak, share):
    """Smith's cycle with cosine arcs: from peak / 25 up to the peak, then down to peak / 250,000."""
    top = share * steps - 1
    low, high, part = (peak / 25, peak, step / top) if step <= top else (peak / 25e4, peak, 0.0)
    if step > top:
        part = 1 - (step - top) / (steps - 1 - top)
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_one_cycle(tmp_path, tiny, steps_taken, share):
    chosen = recipe("sgd", "epochs=4", f"schedule={{name: one-cycle, warmup: {share}}}")
    loop.fit(chosen, tiny, tmp_path)
    total = 4 * STEPS
    expected = [one_cycle(step, total, 0.1, share) for step in range(total)]
    assert [step["lr"] for step in steps_taken] == pytest.approx(expected, rel=1e-6)
    assert [line["lr"] for line in metrics(loop.RunFolder(tmp_path))] == [
        step["lr"] for step in steps_taken[STEPS - 1 :: STEPS]
    ]


def test_a_warmup_of_exactly_one_step_is_refused(tmp_path, tiny):
    chosen = recipe("sgd", "epochs=1", "schedule={name: one-cycle, warmup: 0.25}")  # torch would divide by zero
    message = refusal("bad-value", "schedule.warmup", loop.fit, chosen, tiny, tmp_path / "run")
    assert message == "schedule.warmup is 0.25, exactly one of 4 steps; choose another share"
    assert not (tmp_path / "run").exists()


def test_the_optimizer_is_the_recipes(tmp_path, tiny, steps_taken):
    loop.fit(recipe("sgd", "epochs=1", "optimizer.weight_decay=0.02"), tiny, tmp_path / "sgd")
    sgd = steps_taken[-1]["optimizer"]
    adam_recipe = recipe("sgd", "epochs=1", "optimizer={name: adam, lr: 0.002, weight_decay: 0.01}")
    loop.fit(adam_recipe, tiny, tmp_path / "adam")
    adam = steps_taken[-1]["optimizer"]
    assert type(sgd) is torch.optim.SGD
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["weight_decay"]) == (0.9, 0.02)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["weight_decay"] == 0.01
    assert max(step["lr"] for step in steps_taken[STEPS:]) <= 0.002


@pytest.mark.parametrize(("share", "length"), [(0.5, 6), (1.0, 12), (0.3, 3.6), (0.0, 0)])
def test_eps_and_step_size_grow_linearly(tmp_path, tiny, monkeypatch, share, length):
    seen, adversary = [], PGDAT.adversary

    def spy(self, *arguments):
        seen.append((self.eps, self.step_size, self.steps))
        return adversary(self, *arguments)

    monkeypatch.setattr(PGDAT, "adversary", spy)
    loop.fit(recipe("pgd-at", f"eps_ramp={share}"), tiny, tmp_path)
    factors = [min(1.0, (step + 1) / length) if length else 1.0 for step in range(3 * STEPS)]
    assert [eps for eps, _, _ in seen] == pytest.approx([0.15 * factor for factor in factors])
    assert [size for _, size, _ in seen] == pytest.approx([0.0375 * factor for factor in factors])
    assert seen[-1] == (0.15, 0.0375, 3)


def test_the_average_of_the_weights_matches_a_manual_one(tmp_path, tiny, steps_taken):
    chosen = recipe("sgd", "ema=0.8", "epochs=2", "validation.select=last")
    folder = loop.fit(chosen, tiny, tmp_path)
    average = steps_taken[0]["weights"]  # the first weights are where the average starts
    for step in steps_taken[1:]:
        average = [0.8 * old + 0.2 * new for old, new in zip(average, step["weights"], strict=True)]
    kept = [p.detach() for p in folder.load_model(tiny).parameters()]
    last = steps_taken[-1]["weights"]
    assert all(torch.allclose(actual, expected, atol=1e-6) for actual, expected in zip(kept, average, strict=True))
    assert max(float((actual - end).abs().max()) for actual, end in zip(kept, last, strict=True)) > 0.01


def test_the_average_includes_the_batchnorm_statistics(tmp_path, tiny):
    chosen = recipe("sgd", "ema=0.8", "epochs=2", "validation.select=last")
    name = "2.running_mean"
    loop.fit(chosen, tiny, tmp_path)
    live = files.load_state(tmp_path / "state.pt")["model"][name]
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")[name]
    assert kept.abs().sum() > 0
    assert not torch.equal(kept, live)


def test_in_mixed_precision_the_average_itself_is_validated(tmp_path, tiny):
    # Accelerate wraps forward(); a copy that still called the live network would be validated with its weights.
    chosen = recipe("sgd", "mixed_precision=bf16", "ema=0.97", "validation.select=last", "optimizer.lr=0.3")
    folder = loop.fit(chosen, tiny, tmp_path)
    split, model = held_out(chosen, tiny), folder.load_model(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        averaged = float(clean_flags(model, split).double().mean())
        model.load_state_dict(files.load_state(folder.state)["model"])
        live = float(clean_flags(model, split).double().mean())
    assert metrics(folder)[-1]["clean"] == averaged
    assert averaged != live


def test_bf16_changes_the_numbers_a_little(tmp_path, tiny):
    full = loop.fit(recipe("atent"), tiny, tmp_path / "full")
    AcceleratorState._reset_state()
    half = loop.fit(recipe("atent", "mixed_precision=bf16"), tiny, tmp_path / "half")
    full_loss, half_loss = (metrics(folder)[0]["loss"] for folder in (full, half))
    assert full_loss != half_loss
    assert full_loss == pytest.approx(half_loss, rel=0.02)
    assert {tensor.dtype for tensor in safetensors.torch.load_file(half.weights).values()} == {
        torch.float32,
        torch.int64,
    }


def test_another_precision_in_the_same_process_is_refused(tmp_path, tiny):
    loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "one")
    chosen = recipe("sgd", "mixed_precision=bf16")
    message = refusal("unsupported", "mixed_precision", loop.fit, chosen, tiny, tmp_path / "two")
    assert message.startswith("mixed_precision is 'bf16', which cannot be had here: ")
    assert not (tmp_path / "two").exists()


# ---- metrics, reporter, seeds, random state, bad input


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_finite_numbers_for_each_epoch(tmp_path, tiny, method):
    watch = Watch()
    folder = loop.fit(recipe(method), tiny, tmp_path, reporter=watch)
    assert watch.starts == [(f"digits-linf-{method}", 3, STEPS, 0)]
    assert len(watch.losses) == 3 * STEPS
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert lines == watch.epochs
    for epoch, line in enumerate(lines):
        assert list(line) == ["epoch", "loss", "clean", "robust", "lr", "selected", "seconds"]
        assert line["epoch"] == epoch + 1
        assert all(math.isfinite(value) for value in line.values())
        assert 0 <= line["robust"] <= line["clean"] <= 1
        assert line["loss"] == pytest.approx(sum(watch.losses[epoch * STEPS : (epoch + 1) * STEPS]) / STEPS)
        assert line["seconds"] >= 0


def test_the_seed_decides(tmp_path, tiny):
    first, again, other = (
        loop.fit(recipe("atent", f"seed={seed}"), tiny, tmp_path / name)
        for name, seed in (("first", 5), ("again", 5), ("other", 6))
    )
    same(first, again)
    assert weights(first) != weights(other)


def test_the_callers_random_state_has_no_effect_and_is_restored(tmp_path, tiny):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 -- the global state is what is tested
        random.seed(seed)
        before = flat([torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()])  # noqa: NPY002
        folder = loop.fit(recipe("mart", "augment=crop-flip"), tiny, tmp_path / str(seed))
        after = flat([torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()])  # noqa: NPY002
        assert before == after
        states.append(state(folder))
    assert states[0] == states[1]


def test_order_dropout_and_noise_of_each_epoch_have_different_seeds(tmp_path, tiny, monkeypatch):
    seeds, seed_of = {}, loop._seed
    monkeypatch.setattr(loop, "_seed", lambda *numbers: seeds.setdefault(numbers, seed_of(*numbers)))
    for seed in range(2):
        loop.fit(recipe("sgd", f"seed={seed}"), tiny, tmp_path / str(seed))
    assert len(seeds) == len(set(seeds.values())) == 2 * 3 * 3
    processes = {
        (*start, process, end): seed_of(*start, process, end)
        for *start, _, end in (numbers for numbers in seeds if len(numbers) == 4)
        for process in range(1, 4)
    }
    assert len(processes) == 36
    assert len({*seeds.values(), *processes.values()}) == 18 + 36
    assert all(0 <= seed < 2**63 for seed in seeds.values())


def test_the_test_split_is_never_touched(tmp_path, tiny):
    # The test split of `tiny` holds NaN and labels of -1; with a valid one the run is the same.
    valid = DataSet(tiny.name, tiny.classes, tiny.train, tiny.train.take(50))
    same(loop.fit(recipe("pgd-at"), tiny, tmp_path / "a"), loop.fit(recipe("pgd-at"), valid, tmp_path / "b"))


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        (lambda x, y: (255 * x, y), "bad-value", "images"),
        (lambda x, y: (2 * x - 1, y), "bad-value", "images"),
        (lambda x, y: (x / 0, y), "bad-value", "images"),
        (lambda x, y: ((255 * x).byte(), y), "bad-type", "images"),
        (lambda x, y: (x, y + 1), "bad-value", "labels"),
        (lambda x, y: (x, y[:-1]), "bad-shape", "labels"),
        (lambda x, y: (x[:45], y[:45]), "bad-value", "count"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(tmp_path, tiny, change, code, field):
    images, labels = change(tiny.train.images, tiny.train.labels)
    wrong = DataSet(tiny.name, tiny.classes, Split(images, labels), tiny.test)
    refusal(code, field, loop.fit, recipe(), wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_silent_reporter_prints_nothing(tmp_path, tiny, capsys):
    loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path)
    assert capsys.readouterr() == ("", "")


# ---- the speed of the network


def layouts(seen):
    """A hook that appends whether the activations of a convolution are in channels-last format."""
    return lambda module, inputs, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))


def convolving(*overrides):
    return recipe("pgd-at", "model.name=digits-cnn", "epochs=1", *overrides)


@pytest.mark.parametrize(("setting", "channels_last"), [("channels-last", True), ("plain", False)])
def test_the_network_is_trained_with_the_recipes_speed(tiny, tmp_path, monkeypatch, setting, channels_last):
    seen = []
    build = loop.build_model

    def hooked(*arguments):
        model = build(*arguments)
        model[2].register_forward_hook(layouts(seen))
        return model

    monkeypatch.setattr(loop, "build_model", hooked)
    folder = loop.fit(convolving(f"speed={setting}"), tiny, tmp_path / "run")
    assert seen[-1] is channels_last
    assert folder.recipe().speed == setting
    stored = safetensors.torch.load_file(folder.weights)
    assert all(tensor.is_contiguous() for tensor in stored.values())


def test_the_choice_of_auto_is_kept_and_resumed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.speed, "measure", lambda runs: {name: len(name) for name in runs})
    folder = loop.fit(convolving("speed=auto"), tiny, tmp_path / "run")
    assert folder.recipe().speed == "plain"  # the shorter name
    before = weights(folder)
    monkeypatch.setattr(loop.speed, "measure", lambda runs: {name: -len(name) for name in runs})
    longer = loop.fit(convolving("speed=auto"), tiny, tmp_path / "run", resume=True)
    assert longer.recipe().speed == "plain"
    assert weights(longer) == before


def test_a_speed_that_cannot_be_used_falls_back_with_a_warning(tiny, tmp_path, monkeypatch, caplog):
    problem = loop.speed._problem
    monkeypatch.setattr(
        loop.speed, "_problem", lambda m, x, name: "no compiler" if name == "compile" else problem(m, x, name)
    )
    fast = loop.fit(convolving("speed=compile"), tiny, tmp_path / "compile")
    assert [record.getMessage() for record in caplog.records] == ["compile not used: no compiler"]
    plain = loop.fit(convolving(), tiny, tmp_path / "channels-last")
    assert weights(fast) == weights(plain)
    caplog.clear()
    loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "linear")  # it has no convolutions
    assert not caplog.records
