"""The pieces of a training, each against the formula written as a plain torch loop."""

import math

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_runs import STEPS, metrics, recipe, refusal

from atent_ext.attacks.langevin import last_iterate
from atent_ext.certification import intervals
from atent_ext.certification.intervals import certified_linf
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import evaluating, seeded
from atent_ext.core.norms import SharedGenerator
from atent_ext.data import datasets
from atent_ext.objectives import PGDAT
from atent_ext.storage import files
from atent_ext.training import loop
from atent_ext.training.batches import Batches
from atent_ext.training.run_folder import build_model

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "tiny_net")

CONVOLUTIONS = "model.name=digits-cnn"  # neither BatchNorm nor dropout
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def clean_loss(model, batch, generator):
    return F.cross_entropy(model(batch.images), batch.labels)


def plain(chosen, tiny, optimizer, rate, clip=None, step=None):
    """The weights after a loop of the recipe's epochs, written as in a tutorial."""
    rest, _ = datasets.hold_out(tiny.train, chosen.validation.count, chosen.seed)
    with seeded(chosen.seed):
        model = build_model(chosen, tiny)
    updates, total, taken = optimizer(model.parameters()), chosen.epochs * STEPS, 0
    lr = updates.param_groups[0]["lr"]
    for epoch in range(chosen.epochs):
        generator = SharedGenerator()
        generator.manual_seed(loop._seed(chosen.seed, epoch, 0, 1))
        for batch in Batches(rest, chosen.batch_size).epoch(loop._seed(chosen.seed, epoch)):
            generator.total, generator.rows = batch.total, batch.rows
            updates.param_groups[0]["lr"] = lr * rate(taken, total)
            updates.zero_grad()
            if step is None:
                clean_loss(model, batch, generator).backward()
            else:
                step(model, batch, generator)
            if clip is not None:
                length = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
                for p in model.parameters():
                    p.grad *= min(1.0, clip / float(length))
            updates.step()
            taken += 1
    return model.state_dict()


def constant(step, total):
    return 1.0


def cosine(step, total):
    return (1 + math.cos(math.pi * step / total)) / 2


def cosine_after_a_quarter(step, total):
    rise = total / 4
    return (step + 1) / (rise + 1) if step < rise else (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2


def halved(step, total):
    return 0.5 ** ((step >= STEPS) + (step >= 2 * STEPS))


STEPPED = "schedule={name: multi-step, milestones: [1, 2], factor: 0.5}"
UPDATES = {
    "nesterov": (["optimizer.nesterov=true"], lambda p: torch.optim.SGD(p, nesterov=True, **SGD), constant, None),
    "adamw": (
        ["optimizer={name: adamw, lr: 0.01, weight_decay: 0.3}"],
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.3),
        constant,
        None,
    ),
    "cosine": (["schedule={name: cosine}"], lambda p: torch.optim.SGD(p, **SGD), cosine, None),
    "cosine after a warmup": (
        ["schedule={name: cosine, warmup: 0.25}"],
        lambda p: torch.optim.SGD(p, **SGD),
        cosine_after_a_quarter,
        None,
    ),
    "a factor": ([STEPPED], lambda p: torch.optim.SGD(p, **SGD), halved, None),
    "clip": (["clip=0.3"], lambda p: torch.optim.SGD(p, **SGD), constant, 0.3),
    "accumulate": (["accumulate=3"], lambda p: torch.optim.SGD(p, **SGD), constant, None),
}


def close(folder, expected, atol=2e-6):
    actual = files.load_state(folder.state)["model"]
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=0, atol=atol)


@pytest.mark.parametrize("case", UPDATES)
def test_steps_and_rates_are_those_of_a_plain_loop(tmp_path, tiny, case):
    overrides, optimizer, rate, clip = UPDATES[case]
    chosen = recipe("sgd", CONVOLUTIONS, "schedule={name: constant}", "speed=plain", *overrides)
    close(loop.fit(chosen, tiny, tmp_path), plain(chosen, tiny, optimizer, rate, clip))
    if case != "accumulate":  # the case does something
        usual = recipe("sgd", CONVOLUTIONS, "schedule={name: constant}")
        other = plain(usual, tiny, lambda p: torch.optim.SGD(p, **SGD), constant)
        moved = [(files.load_state(tmp_path / "state.pt")["model"][name] - other[name]).abs().max() for name in other]
        assert max(moved) > 1e-3


@pytest.mark.parametrize("method", ["atent", "mart"])
def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, tiny, method):
    # 48 images in 5 parts, and a last batch of 16: every draw is that of the whole batch.
    settings = (CONVOLUTIONS, "batch_size=48", "epochs=1", "optimizer.lr=0.02")
    whole = loop.fit(recipe(method, *settings), tiny, tmp_path / "whole")
    parts = loop.fit(recipe(method, *settings, "accumulate=5"), tiny, tmp_path / "parts")
    close(parts, files.load_state(whole.state)["model"], atol=1e-4)
    assert metrics(parts)[0]["loss"] == pytest.approx(metrics(whole)[0]["loss"], rel=1e-4)


# ---- adversarial weight perturbation


def awp_step(gamma):
    """Wu et al. 2020, Algorithm 1: x' at w, v along the gradient at (w, x'), the gradient at (w + v, x')."""

    def step(model, batch, generator):
        objective = PGDAT(eps=0.15, steps=3, step_size=0.0375)
        with evaluating(model):
            x = last_iterate(objective.kernel, model, batch.images, batch.labels, cross_entropy, generator)
        F.cross_entropy(model(x), batch.labels).backward()
        weights = [p for p in model.parameters() if p.dim() > 1]
        moves = [gamma * p.detach().norm() * p.grad / p.grad.norm() for p in weights]
        with torch.no_grad():
            for p, move in zip(weights, moves, strict=True):
                p += move
        model.zero_grad()
        F.cross_entropy(model(x), batch.labels).backward()
        with torch.no_grad():
            for p, move in zip(weights, moves, strict=True):
                p -= move

    return step


def test_weights_are_perturbed_as_in_the_algorithm(tmp_path, tiny):
    shared = (CONVOLUTIONS, "schedule={name: constant}", "speed=plain", "epochs=2", "optimizer.lr=0.05", "eps_ramp=0")
    chosen = recipe("pgd-at", *shared, "awp={gamma: 0.05}")
    folder = loop.fit(chosen, tiny, tmp_path / "awp")
    settings = SGD | {"lr": 0.05}
    close(folder, plain(chosen, tiny, lambda p: torch.optim.SGD(p, **settings), constant, step=awp_step(0.05)), 1e-5)
    without = loop.fit(recipe("pgd-at", *shared), tiny, tmp_path / "without")
    assert metrics(without)[-1]["loss"] != pytest.approx(metrics(folder)[-1]["loss"], rel=1e-5)
    assert "passes" not in metrics(without)[0]


# Passes of the chain, of the loss before, of the loss after the perturbation; K = 3, three kept iterates.
PASSES = {"sgd": 0 + 1 + 1, "pgd-at": 3 + 1 + 1, "trades": (1 + 3) + 2 + (1 + 2), "mart": 3 + 2 + 2, "atent": 4 + 3}


@pytest.mark.parametrize("method", PASSES)
def test_the_passes_of_a_perturbed_step_are_reported(tmp_path, tiny, method):
    folder = loop.fit(recipe(method, "epochs=2", "awp={gamma: 0.01, start: 0.5}"), tiny, tmp_path)
    first, second = (line["passes"] for line in metrics(folder))
    assert second == PASSES[method]
    assert first == {"sgd": 1, "pgd-at": 4, "trades": 6, "mart": 5, "atent": 4}[method]


def test_batchnorms_statistics_are_those_of_the_perturbed_passes_alone(tmp_path, tiny):
    folder = loop.fit(recipe("sgd", "awp={gamma: 0.01}"), tiny, tmp_path)
    assert int(files.load_state(folder.state)["model"]["2.num_batches_tracked"]) == 3 * STEPS


# ---- averages


def test_stochastic_weight_averaging_is_the_mean_of_the_epochs(tmp_path, tiny):
    ends, steps = [], []

    def note(optimizer, *_):
        steps.append(1)
        if len(steps) % STEPS == 0:
            ends.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])

    handle = register_optimizer_step_post_hook(note)
    try:
        chosen = recipe("sgd", "epochs=4", "swa=0.5", "validation.select=last", "model.name=digits-cnn")
        folder = loop.fit(chosen, tiny, tmp_path)
    finally:
        handle.remove()
    kept = [p.detach() for p in folder.load_model(tiny).parameters()]
    for actual, third, fourth in zip(kept, ends[2], ends[3], strict=True):
        torch.testing.assert_close(actual, (third + fourth) / 2, rtol=0, atol=1e-6)


def test_the_average_has_batchnorm_statistics_of_its_own(tmp_path, tiny):
    chosen = recipe("sgd", "epochs=2", "swa=0", "validation.select=last")
    kept = loop.fit(chosen, tiny, tmp_path).load_model(tiny)
    rest, _ = datasets.hold_out(tiny.train, 40, 0)
    images = [batch.images for batch in Batches(rest, 40).epoch(loop._seed(0, 1))]
    features = [kept[1](kept[0](batch)) for batch in images]
    torch.testing.assert_close(kept[2].running_mean, torch.stack([f.mean(0) for f in features]).mean(0))
    torch.testing.assert_close(kept[2].running_var, torch.stack([f.var(0) for f in features]).mean(0))
    assert kept[2].momentum == 0.1


def test_before_the_average_begins_the_weights_themselves_are_kept(tmp_path, tiny):
    chosen = recipe("sgd", "epochs=2", "swa=0.6", "validation.select=last")
    kept = []

    class Watch(loop.Silent):
        def epoch(self, line):
            weights = safetensors.torch.load_file(tmp_path / "weights.safetensors")["1.weight"]
            kept.append(torch.equal(weights, files.load_state(tmp_path / "state.pt")["model"]["1.weight"]))

    loop.fit(chosen, tiny, tmp_path, reporter=Watch())
    assert kept == [True, True]  # the mean of one epoch is that epoch


def test_two_averages_are_refused():
    message = refusal("conflict", "swa", recipe, "sgd", "ema=0.9", "swa=0.5")
    assert "only one average is kept" in message


# ---- extra images


@pytest.fixture
def archive(tmp_path, tiny):
    """30 images in channels-last order, as generated images are published, each with one pixel of its own value."""
    images = np.zeros((30, 8, 8, 1), np.uint8)
    images[:, 0, 0, 0] = 200 + np.arange(30)
    np.savez(tmp_path / "extra.npz", image=images, label=np.arange(30) % 10)
    return tmp_path / "extra.npz"


@pytest.fixture
def calls(monkeypatch):
    recorded, call = [], PGDAT.__call__

    def spy(self, model, x, y, index=None, *, generator=None):
        recorded.append((x, y, index))
        return call(self, model, x, y, index, generator=generator)

    monkeypatch.setattr(PGDAT, "__call__", spy)
    return recorded


def test_a_share_of_less_than_one_image_and_awp_of_an_objective_with_memory_are_refused(tmp_path, tiny, archive):
    chosen = recipe("pgd-at", f"extra={{source: 'npz:{archive}', share: 0.001}}", "objective.steps=1")
    with pytest.raises(BadInput) as error:
        loop.fit(chosen, tiny, tmp_path)
    assert (error.value.code, error.value.field) == ("bad-value", "extra.share")
    with pytest.raises(BadInput) as error:
        recipe("mma", "awp={gamma: 0.01}")
    assert (error.value.code, error.value.field) == ("unsupported", "awp")


def test_a_share_of_each_batch_are_extra_images(tmp_path, tiny, archive, calls):
    chosen = recipe("pgd-at", "epochs=1", f"extra={{source: 'npz:{archive}', share: 0.25}}", "objective.steps=1")
    loop.fit(chosen, tiny, tmp_path / "run")
    rest, _ = datasets.hold_out(tiny.train, 40, 0)
    x, y, index = (torch.cat(parts) for parts in zip(*calls, strict=True))
    added = index >= 160
    assert [int((part >= 160).sum()) for _, _, part in calls] == [10] * 5 + [4]  # 30 + 10 images, at last 10 + 4
    assert sorted(index[~added].tolist()) == list(range(160))
    assert torch.equal(x[~added], rest.images[index[~added]])
    assert torch.equal(((255 * x[added][:, 0, 0, 0]).round() - 200).long(), index[added] - 160)
    assert torch.equal(y[added], (index[added] - 160) % 10)
    assert index[added].bincount(minlength=190)[160:].tolist() in [[1] * 30, [2] * 24 + [1] * 6] or set(
        index[added].bincount(minlength=190)[160:].tolist()
    ) == {1, 2}  # each once before any is used again


def test_a_teacher_labels_extra_images(tmp_path, tiny, archive, calls):
    teacher = loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "teacher")
    extra = f"extra={{source: 'npz:{archive}', share: 0.5, teacher: '{teacher.path}'}}"
    loop.fit(recipe("pgd-at", "epochs=1", extra, "objective.steps=1"), tiny, tmp_path / "run")
    x, y, index = (torch.cat(parts) for parts in zip(*calls, strict=True))
    with torch.no_grad():
        expected = teacher.load_model(tiny)(x).argmax(1)
    assert torch.equal(y[index >= 160], expected[index >= 160])


@pytest.mark.parametrize(
    ("arrays", "code", "field"),
    [
        ({"x_train": np.full((4, 1, 9, 8), 9, np.uint8), "y_train": np.zeros(4, int)}, "bad-shape", "extra.source"),
        ({"x_train": np.full((4, 1, 8, 8), -1.0), "y_train": np.zeros(4, int)}, "bad-value", "images"),
        ({"image": np.full((4, 8, 8, 1), 9, np.uint8), "label": np.full(4, 10)}, "bad-value", "labels"),
        ({"image": np.full((4, 8, 8, 1), 9, np.uint8)}, "unreadable", "name"),
        (None, "missing", "name"),
    ],
)
def test_extra_images_that_do_not_fit_are_refused(tmp_path, tiny, arrays, code, field):
    if arrays:
        np.savez(tmp_path / "extra.npz", **arrays)
    chosen = recipe("sgd", f"extra={{source: 'npz:{tmp_path}/extra.npz', share: 0.5}}")
    refusal(code, field, loop.fit, chosen, tiny, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- what a recipe refuses, and what it writes


@pytest.mark.parametrize(
    ("overrides", "code", "field"),
    [
        (["optimizer={name: adamw, lr: 0.1, nesterov: true}"], "conflict", "optimizer.nesterov"),
        (["optimizer={lr: 0.1, momentum: 0, nesterov: true}"], "conflict", "optimizer.nesterov"),
        (["accumulate=0"], "bad-value", "accumulate"),
        (["clip=0"], "bad-value", "clip"),
        (["label_smoothing=1"], "bad-value", "label_smoothing"),
        (["augment=[cutout, flip]"], "unknown-name", "augment"),
        (["extra={source: digits, share: 0.5}"], "bad-value", "extra.source"),
        (["extra={source: 'npz:a.npz', share: 1}"], "bad-value", "extra.share"),
        (["certified={weight: 1}"], "bad-value", "certified.weight"),
        (["threat={norm: L2, eps: 1}", "certified={weight: 0.5}"], "conflict", "certified"),
    ],
)
def test_pieces_that_make_no_sense_are_refused(overrides, code, field):
    refusal(code, field, recipe, "sgd", *overrides)


def test_a_piece_that_is_used_is_written(tmp_path, tiny):
    pieces = ("label_smoothing=0.1", "clip=2", "awp={}", "augment=[shift, cutout]", "optimizer.nesterov=true")
    chosen = recipe("sgd", "epochs=1", *pieces, "schedule={name: cosine}")
    folder = loop.fit(chosen, tiny, tmp_path)
    assert folder.recipe() == chosen
    assert (chosen.schedule.warmup, chosen.augment, chosen.awp.gamma) == (0.0, ("shift", "cutout"), 0.01)
    without = recipe("sgd", "epochs=1", "schedule={name: cosine}", "augment=[shift, cutout]", *pieces[:1], *pieces[2:3])
    message = refusal("other-content", "optimizer", loop.fit, without, tiny, tmp_path, resume=True)
    assert "was trained with optimizer" in message
    without = recipe("sgd", "epochs=1", *pieces[:1], *pieces[2:], "schedule={name: cosine}")
    message = refusal("other-content", "clip", loop.fit, without, tiny, tmp_path, resume=True)
    assert "was trained with clip = 2.0, not None" in message


def test_a_network_without_batchnorm_learns(tmp_path, tiny):
    for scaling in ("standardised", "fixup"):
        model = f"model={{name: wrn-normfree, arguments: {{depth: 10, width: 1, scaling: {scaling}}}}}"
        adam = ("optimizer={name: adamw, lr: 0.005}", "schedule={name: constant}", "epochs=4")
        folder = loop.fit(recipe("sgd", model, *adam), tiny, tmp_path / scaling)
        assert metrics(folder)[-1]["loss"] < 0.8 * metrics(folder)[0]["loss"]
        network = folder.load_model(tiny)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# ---- interval bounds


def test_the_epoch_of_the_largest_proven_share_is_kept(tmp_path, tiny, monkeypatch):
    shares = iter([0.25, 0.75, 0.5])
    monkeypatch.setattr(loop, "certified_linf", lambda model, x, y, eps: torch.arange(len(x)) < next(shares) * len(x))
    folder = loop.fit(recipe("sgd", CONVOLUTIONS, "validation.select=proven"), tiny, tmp_path)
    assert [(line["proven"], line["selected"]) for line in metrics(folder)] == [
        (0.25, True),
        (0.75, True),
        (0.5, False),
    ]


def test_the_proven_share_is_that_of_the_held_out_images(tmp_path, tiny):
    chosen = recipe("sgd", CONVOLUTIONS, "validation.select=proven", "epochs=1", "threat.eps=0.01")
    folder = loop.fit(chosen, tiny, tmp_path)
    _, held_out = datasets.hold_out(tiny.train, chosen.validation.count, chosen.seed)
    flags = certified_linf(folder.load_model(tiny), held_out.images, held_out.labels, 0.01)
    assert metrics(folder)[-1]["proven"] == pytest.approx(float(flags.double().mean()))


def test_proven_shares_are_for_linf():
    refusal("conflict", "validation.select", recipe, "sgd", "threat={norm: L2, eps: 1}", "validation.select=proven")


def test_bounds_are_computed_in_the_precision_of_the_recipe(tmp_path, tiny, monkeypatch):
    kinds = []
    multiply = intervals._apply
    monkeypatch.setattr(intervals, "_apply", lambda *a: kinds.append(multiply(*a).dtype) or multiply(*a))
    certified = ("certified={weight: 0.5}", "epochs=1")
    for name, precision in (("a", "no"), ("b", "bf16")):
        AcceleratorState._reset_state(True)
        loop.fit(recipe("sgd", CONVOLUTIONS, *certified, f"mixed_precision='{precision}'"), tiny, tmp_path / name)
    assert set(kinds[: len(kinds) // 2]) == {torch.float32}
    assert set(kinds[len(kinds) // 2 :]) == {torch.bfloat16}


@pytest.mark.parametrize("settings", [(), ("awp={gamma: 0.01}",)], ids=["plain", "awp"])
def test_mixed_precision_does_not_hide_that_a_network_is_a_chain(tmp_path, tiny, monkeypatch, settings):
    monkeypatch.setitem(registry.MODELS, "own-forward", "problems:own_forward")
    bounds = ("model.name=own-forward", "certified={weight: 0.5}", "validation.select=proven", "mixed_precision=bf16")
    folder = loop.fit(recipe("sgd", *bounds, *settings, "epochs=2", "optimizer.lr=0.5"), tiny, tmp_path)
    assert metrics(folder)[-1]["loss"] < metrics(folder)[0]["loss"]


@pytest.mark.parametrize(
    ("setting", "field"),
    [("validation.select=proven", "validation.select"), ("certified={weight: 0.5}", "certified")],
)
def test_a_network_without_bounds_is_refused_before_anything_is_written(tmp_path, tiny, setting, field):
    chosen = recipe("sgd", "model.name=resnet-20", setting)
    message = refusal("unsupported", field, loop.fit, chosen, tiny, tmp_path / "run")
    assert message.startswith(f"{field} needs interval bounds, but ResNet20 does not apply its children in order")
    assert not (tmp_path / "run").exists()


def test_while_nothing_is_proven_the_last_epoch_is_kept(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(loop, "certified_linf", lambda model, x, y, eps: torch.zeros(len(x), dtype=torch.bool))
    folder = loop.fit(recipe("sgd", CONVOLUTIONS, "validation.select=proven"), tiny, tmp_path)
    assert all(line["selected"] for line in metrics(folder))
