"""`fit`: one training loop for every objective, on Accelerate, resumable after every epoch."""

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from atent_ext import checkpoints, checks
from atent_ext.data import DataSet, Split, dataset, hold_out
from atent_ext.errors import BadInput, NonFiniteLoss
from atent_ext.evaluation import Setting, predict, robust_flags
from atent_ext.langevin import pgd
from atent_ext.modes import seeded
from atent_ext.norms import norm
from atent_ext.recipes import Recipe, Schedule
from atent_ext.runs import RunFolder, build_model
from atent_ext.types import Objective

Metrics = dict[str, Any]


class Reporter(Protocol):
    """Who is told how training goes; the command line shows it as a progress bar."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Training of recipe `name` starts: `epochs` of `steps` each, of which `done` epochs lie behind it."""

    def step(self, loss: float) -> None:
        """One optimizer step was made."""

    def epoch(self, metrics: Metrics) -> None:
        """An epoch ended and its checkpoint is written."""


class Silent:
    """A reporter that says nothing."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Say nothing."""

    def step(self, loss: float) -> None:
        """Say nothing."""

    def epoch(self, metrics: Metrics) -> None:
        """Say nothing."""


def fit(
    recipe: Recipe,
    data: DataSet,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> RunFolder:
    """Train by `recipe` on `data.train` into the run folder `out`.

    After each epoch the training state and, where it is the best so far, the weights are on disk; `resume` goes on
    from there and on the CPU ends with the same weights bit for bit. The epoch is chosen on images held out of the
    training split; the test split is never looked at. Global random state is restored.
    Raises BadInput for data or folders that do not fit, NonFiniteLoss if the loss becomes NaN or infinite.
    """
    folder = RunFolder(Path(out))
    checks.images(data.train.images, 0.0, 1.0)
    checks.labels(data.train.labels, len(data.train.images), len(data.classes))
    rest, held_out = hold_out(data.train, recipe.validation.count, recipe.seed)
    with seeded(recipe.seed):
        model = build_model(recipe, data)
        if recipe.init_from and not (resume and folder.state.exists()):
            source = Path(recipe.init_from)
            checkpoints.load_weights(model, RunFolder(source).weights if source.is_dir() else source)
        trainer = _Trainer(recipe, model, rest.take(recipe.examples), held_out, folder)
        if trainer.accelerator.is_main_process:
            folder.claim(recipe, resume=resume, overwrite=overwrite)
        trainer.accelerator.wait_for_everyone()
        if resume and folder.state.exists():
            trainer.restore()
        trainer.run(reporter or Silent())
    return folder


class _Trainer:
    def __init__(self, recipe: Recipe, model: nn.Module, rest: Split, held_out: Split, folder: RunFolder) -> None:
        self.recipe, self.held_out, self.folder = recipe, held_out, folder
        self.objective = recipe.build_objective()
        self.history: list[Metrics] = []
        self.lr = recipe.optimizer.lr  # of the last step
        self.accelerator = _accelerator(recipe.mixed_precision)
        # A generator of our own, seeded anew each epoch: Accelerate would seed one of its own once.
        self.order = torch.Generator()
        loader = DataLoader(dataset(rest, recipe.augment), recipe.batch_size, shuffle=True, generator=self.order)
        optimizer = recipe.optimizer.build(model.parameters())
        schedule = _schedule(recipe.schedule, optimizer, recipe.epochs, len(loader))
        prepared = self.accelerator.prepare(model, optimizer, schedule, loader)
        self.model, self.optimizer, self.schedule, self.loader = prepared
        plain = self.accelerator.unwrap_model(self.model)
        self.average = _average(plain, recipe.ema) if recipe.ema else None
        # What is validated and kept: the averaged weights where there are any.
        self.judged: nn.Module = self.average.module if self.average else plain

    def run(self, reporter: Reporter) -> None:
        reporter.begin(self.recipe.name, self.recipe.epochs, len(self.loader), len(self.history))
        for epoch in range(len(self.history), self.recipe.epochs):
            start = time.perf_counter()
            loss = self.train(epoch, reporter)
            metrics = {"epoch": epoch + 1, "loss": loss, **self.validate(), "lr": self.lr}
            metrics["selected"] = self.is_best(metrics)
            metrics["seconds"] = round(time.perf_counter() - start, 1)
            self.history.append(metrics)
            self.save()
            reporter.epoch(metrics)

    def train(self, epoch: int, reporter: Reporter) -> float:
        """One epoch; returns the mean loss. Every draw follows from seed, epoch and process alone."""
        process = self.accelerator.process_index
        self.order.manual_seed(_seed(self.recipe.seed, epoch))
        torch.manual_seed(_seed(self.recipe.seed, epoch, process, 2))  # augmentation and dropout
        generator = torch.Generator(self.accelerator.device)
        generator.manual_seed(_seed(self.recipe.seed, epoch, process, 1))  # the objective's starts and noise
        self.model.train()
        total = 0.0
        for step, (x, y, index) in enumerate(self.loader):
            objective = self.ramped(epoch * len(self.loader) + step)
            self.lr = self.optimizer.param_groups[0]["lr"]
            loss = self.step(objective, (x, y, index), generator, f"epoch {epoch + 1}, step {step + 1}")
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.accelerator.unwrap_model(self.model))
            total += loss
            reporter.step(loss)
        return total / len(self.loader)

    def step(self, objective: Objective, batch: tuple[Tensor, ...], generator: torch.Generator, place: str) -> float:
        """One optimizer step on one batch; returns the loss at the weights before it."""
        losses: list[float] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            losses.append(self.backpropagate(objective.terms, objective(self.model, *batch, generator=generator)))
            if not math.isfinite(losses[-1]):
                raise self.broken(f"the loss is {losses[-1]} at {place}")
            return losses[-1]

        if self.recipe.optimizer.needs_closure:
            self.optimizer.step(closure)
        else:  # a scaled (fp16) step takes none
            closure()
            self.optimizer.step()
        return losses[0]

    def backpropagate(self, count: int, terms: Iterator[Tensor]) -> float:
        """Back-propagate each term before the next is asked for; returns their sum.

        Processes exchange gradients on the last one only, so the others' forward passes run without synchronisation.
        """
        loss = torch.zeros((), device=self.accelerator.device)
        for position in range(count):
            last = position == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                term = next(terms)
                self.accelerator.backward(term)
            loss += term.detach()
        return float(loss)

    def ramped(self, step: int) -> Objective:
        """The objective at this step: eps and step size grow linearly over the first `eps_ramp` of the training."""
        length = self.recipe.eps_ramp * self.recipe.epochs * len(self.loader)
        return self.objective.scaled((step + 1) / length) if step + 1 < length else self.objective

    def broken(self, what: str) -> NonFiniteLoss:
        done = len(self.history)
        kept = f"the checkpoint of epoch {done} is kept in {self.folder.path}" if done else "no epoch was finished"
        return NonFiniteLoss(f"{what}; {kept}; start anew with --overwrite and a smaller optimizer.lr")

    def validate(self) -> Metrics:
        """Clean and robust accuracy on the held-out images."""
        threat, steps = self.recipe.threat, self.recipe.validation.steps
        kernel = pgd(norm(threat.norm), threat.eps, steps)
        setting = Setting(threat, seed=self.recipe.seed)
        logits = predict(self.judged, self.held_out.images)
        # The last step of an epoch may break the weights, and no loss has seen them yet.
        if not bool(torch.isfinite(logits).all()):
            raise self.broken(
                f"the network's outputs are not finite after epoch {len(self.history) + 1}, step {len(self.loader)}"
            )
        clean = logits.argmax(1) == self.held_out.labels
        robust = robust_flags(self.judged, self.held_out, kernel, setting)
        return {"clean": float(clean.double().mean()), "robust": float(robust.double().mean())}

    def is_best(self, metrics: Metrics) -> bool:
        select = self.recipe.validation.select
        return select == "last" or all(metrics[select] > earlier[select] for earlier in self.history)

    def save(self) -> None:
        """Weights first, then the state that counts the epoch: a kill in between only repeats the epoch."""
        if self.accelerator.is_main_process:
            if self.history[-1]["selected"]:
                checkpoints.save_weights(self.judged, self.folder.weights)
            checkpoints.save_state(self.state(), self.folder.state)
            self.folder.write_metrics(self.history)
        self.accelerator.wait_for_everyone()

    def parts(self) -> dict[str, Any]:
        """What has state, by name."""
        found = {
            "model": self.accelerator.unwrap_model(self.model),
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "scaler": self.accelerator.scaler,
            "objective": self.objective,
        }
        return {name: part for name, part in found.items() if hasattr(part, "state_dict")}

    def state(self) -> dict[str, Any]:
        return {"history": self.history} | {name: part.state_dict() for name, part in self.parts().items()}

    def restore(self) -> None:
        state = checkpoints.load_state(self.folder.state)
        try:
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
            self.history = state["history"]
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise BadInput(
                f"{self.folder.state} does not fit the recipe and the data ({reason}); --overwrite starts the run anew"
            ) from error
        if self.accelerator.is_main_process:
            self.folder.write_metrics(self.history)


def _accelerator(precision: str) -> Accelerator:
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:  # a device without it, or an earlier run of this process in another precision
        raise BadInput(f"mixed_precision is {precision!r}, which cannot be had here: {error}") from error


def _schedule(
    schedule: Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps: int
) -> lr_scheduler.LRScheduler:
    """A scheduler that is stepped once per optimizer step."""
    lr = optimizer.param_groups[0]["lr"]
    if schedule.name == "one-cycle":
        total, warmup = epochs * steps, schedule.warmup
        if warmup * total == 1:
            raise BadInput(f"schedule.warmup is {warmup}, exactly one of {total} steps; choose another share")
        return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=warmup, cycle_momentum=False)
    milestones = [epoch * steps for epoch in schedule.milestones] if schedule.name == "multi-step" else []
    return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _seed(*numbers: int) -> int:
    """A seed for each combination of numbers, so that no two epochs or processes draw alike.

    A last number of 0 changes nothing: (1, 0) gives the seed of (1).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
