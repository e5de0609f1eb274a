"""The training loop: losses that are not finite, the epoch that is kept, what the objective is given, seeds."""

import json
import math
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from problems import visible
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_runs import (
    ENTROPY_SGD,
    METHODS,
    STEPS,
    Watch,
    flat,
    held_out,
    metrics,
    recipe,
    refusal,
    same,
    state,
    weights,
)

from atent_ext.attacks.accuracy import clean_flags, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.core.errors import NonFiniteLoss
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.objectives import ATENT, PGDAT
from atent_ext.storage import files
from atent_ext.training import loop

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "tiny_net")


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
    chosen = recipe("sgd", ENTROPY_SGD)
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
