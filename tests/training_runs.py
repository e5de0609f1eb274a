"""Small training runs for tests: a recipe, a reporter that acts, and what a run folder holds."""

import json

import pytest
import torch

from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.storage import files
from atent_ext.training import loop, recipes

METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
STEPS = 4
"""Optimizer steps in an epoch: 160 of the 200 images in batches of 40."""
ENTROPY_SGD = "optimizer={name: entropy-sgd, lr: 0.5, arguments: {steps: 2, noise: 0.01}}"


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


def held_out(chosen, tiny):
    return datasets.hold_out(tiny.train, chosen.validation.count, chosen.seed)[1]
