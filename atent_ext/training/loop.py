"""`fit`: one training loop for every objective, on Accelerate, resumable after every epoch."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atent_ext.attacks.accuracy import predict, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.core import processes, validate
from atent_ext.core.errors import BadInput, NonFiniteLoss
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import SharedGenerator, norm
from atent_ext.core.types import Objective
from atent_ext.data.datasets import DataSet, Split, digest, hold_out
from atent_ext.models import speed, weights
from atent_ext.storage import files, signals
from atent_ext.training.batches import Batch, Batches
from atent_ext.training.recipes import Recipe, Schedule
from atent_ext.training.run_folder import RunFolder, build_model

Metrics = dict[str, Any]
_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Who is told how training goes; the command line shows it as a progress bar."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Training of recipe `name` starts: `epochs` of `steps` each, of which `done` epochs lie behind it."""

    def step(self, loss: float) -> None:
        """One optimizer step was made; `loss` is that of this process's share of the batch."""

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

    Under torchrun or `accelerate launch`, `recipe.batch_size` is that of all processes together, each of which takes
    its share. Order, augmentation, starts and noise are drawn by example, so that a recipe means the same on any number
    of processes. What is not: dropout, drawn by each process, and BatchNorm, which sees each process's share alone; its
    running statistics are the main process's at the end of each epoch. The main process writes. A process whose loss
    becomes NaN or infinite ends, and the launcher then ends the others.
    Raises BadInput for data or folders that do not fit and for more processes than `recipe.batch_size`, NonFiniteLoss
    if the loss becomes NaN or infinite.
    """
    folder = RunFolder(Path(out))
    validate.images(data.train.images, 0.0, 1.0)
    validate.labels(data.train.labels, len(data.train.images), len(data.classes))
    rest, held_out = hold_out(data.train, recipe.validation.count, recipe.seed)
    with seeded(recipe.seed):
        model = build_model(recipe, data)
        if recipe.init_from and not (resume and folder.state.exists()):
            source = Path(recipe.init_from)
            weights.load_weights(model, RunFolder(source).weights if source.is_dir() else source)
        if resume and recipe.speed == "auto" and folder.exists():  # what it chose then, not what is fastest today
            recipe = recipe.model_copy(update={"speed": folder.recipe().speed})
        trainer = _Trainer(recipe, model, rest.take(recipe.examples), held_out, folder)
        main = trainer.accelerator.is_main_process
        with folder.claimed(trainer.recipe, resume=resume, overwrite=overwrite) if main else nullcontext():
            trainer.accelerator.wait_for_everyone()
            if resume and folder.state.exists():
                trainer.restore()
            trainer.run(reporter or Silent())
    return folder


class _Trainer:
    def __init__(self, recipe: Recipe, model: nn.Module, rest: Split, held_out: Split, folder: RunFolder) -> None:
        self.held_out, self.folder = held_out, folder
        self.data = digest(rest.images, rest.labels, held_out.images, held_out.labels)
        self.objective = recipe.build_objective()
        self.history: list[Metrics] = []
        self.lr = recipe.optimizer.lr  # of the last step
        self.accelerator = _accelerator(recipe.mixed_precision)
        self.recipe = self.hastened(model, recipe, rest.images[: recipe.batch_size])
        here = (self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes)
        self.batches = Batches(rest, recipe.batch_size, recipe.augment, *here)
        optimizer = recipe.optimizer.build(model.parameters())
        schedule = _schedule(recipe.schedule, optimizer, recipe.epochs, len(self.batches))
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # else the processes would meet before every pass of an inner loop
        self.plain: nn.Module = self.accelerator.unwrap_model(self.model)
        self.average = _average(self.plain, recipe.ema) if recipe.ema else None
        # What is validated and kept: the averaged weights where there are any.
        self.judged: nn.Module = self.average.module if self.average else self.plain

    def hastened(self, model: nn.Module, recipe: Recipe, images: Tensor) -> Recipe:
        """Set the network to the recipe's speed, the same in all processes; a measured choice replaces "auto"."""
        device = self.accelerator.device
        found = speed.choose(model.to(device), images.to(device), recipe.speed)
        chosen, notes = broadcast_object_list([found])[0]
        speed.convert(model, chosen)
        for note in notes if self.accelerator.is_main_process else ():
            # Channels-last is not asked for by name, so that what has no use for it need not hear of it.
            _log.log(logging.INFO if recipe.speed == "channels-last" else logging.WARNING, "%s", note)
        return recipe.model_copy(update={"speed": chosen}) if recipe.speed == "auto" else recipe

    def run(self, reporter: Reporter) -> None:
        reporter.begin(self.recipe.name, self.recipe.epochs, len(self.batches), len(self.history))
        for epoch in range(len(self.history), self.recipe.epochs):
            start = time.perf_counter()
            loss = self.together(self.train(epoch, reporter))
            metrics = {"epoch": epoch + 1, "loss": loss, **self.validate(), "lr": self.lr}
            metrics = broadcast_object_list([metrics])[0]  # no rounding may part the processes' choice of an epoch
            metrics["selected"] = self.is_best(metrics)
            metrics["seconds"] = round(time.perf_counter() - start, 1)
            self.history.append(metrics)
            self.save()
            reporter.epoch(metrics)

    def train(self, epoch: int, reporter: Reporter) -> float:
        """One epoch; returns the mean weighted loss. Draws follow from seed and epoch (dropout: and process)."""
        seed = self.recipe.seed
        torch.manual_seed(_seed(seed, epoch, self.accelerator.process_index, 2))  # dropout
        generator = SharedGenerator(self.accelerator.device)
        generator.manual_seed(_seed(seed, epoch, 0, 1))  # the objective's starts and noise
        self.model.train()
        total = 0.0
        for step, batch in enumerate(self.batches.epoch(_seed(seed, epoch))):
            objective = self.ramped(epoch * len(self.batches) + step)
            self.lr = self.optimizer.param_groups[0]["lr"]
            loss = self.step(objective, batch, generator, f"epoch {epoch + 1}, step {step + 1}")
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.plain)
            total += batch.weight * loss
            reporter.step(loss)
        return total / len(self.batches)

    def step(self, objective: Objective, batch: Batch, generator: SharedGenerator, place: str) -> float:
        """One optimizer step on one batch; returns the mean loss of this process's share at the weights before it."""
        generator.total, generator.rows = batch.total, batch.rows
        losses: list[float] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            terms = objective(self.model, batch.images, batch.labels, batch.index, generator=generator)
            losses.append(self.backpropagate(objective.terms, terms, batch.weight))
            if not math.isfinite(losses[-1]):
                raise self.broken(f"the loss is {losses[-1]} at {place}")
            return losses[-1]

        if self.recipe.optimizer.needs_closure:
            self.optimizer.step(closure)
        else:  # a scaled (fp16) step takes none
            closure()
            self.optimizer.step()
        return losses[0]

    def backpropagate(self, count: int, terms: Iterator[Tensor], weight: float) -> float:
        """Back-propagate each term, times `weight`, before the next is asked for; returns their sum without it.

        Processes exchange gradients on the last one only, so the others' forward passes run without synchronisation.
        """
        loss = torch.zeros((), device=self.accelerator.device)
        for position in range(count):
            last = position == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                term = next(terms)
                self.accelerator.backward(weight * term)
            loss = loss + term.detach()  # of the wider type of both
        return float(loss)

    def ramped(self, step: int) -> Objective:
        """The objective at this step: eps and step size grow linearly over the first `eps_ramp` of the training."""
        length = self.recipe.eps_ramp * self.recipe.epochs * len(self.batches)
        return self.objective.scaled((step + 1) / length) if step + 1 < length else self.objective

    def together(self, loss: float) -> float:
        """The mean of the processes' losses; what they found out apart in an epoch becomes the same in all."""
        if self.accelerator.num_processes == 1:
            return loss
        for network in filter(None, (self.plain, self.average)):
            broadcast(list(network.buffers()))  # in place: the running statistics of the main process
        memory: Any = self.objective
        if hasattr(memory, "merge"):
            memory.merge(gather_object([memory.state_dict()]))
        losses: list[float] = gather_object([loss])
        return math.fsum(losses) / len(losses)

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
                f"the network's outputs are not finite after epoch {len(self.history) + 1}, step {len(self.batches)}"
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
            with signals.held_back():
                if self.history[-1]["selected"]:
                    weights.save_weights(self.judged, self.folder.weights)
                files.save_state(self.state(), self.folder.state)
                self.folder.write_metrics(self.history)
        self.accelerator.wait_for_everyone()

    def parts(self) -> dict[str, Any]:
        """What has state, by name."""
        found = {
            "model": self.plain,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "scaler": self.accelerator.scaler,
            "objective": self.objective,
        }
        return {name: part for name, part in found.items() if hasattr(part, "state_dict")}

    def state(self) -> dict[str, Any]:
        return {"history": self.history, "data_sha256": self.data} | {
            name: part.state_dict() for name, part in self.parts().items()
        }

    def restore(self) -> None:
        state = files.load_state(self.folder.state)
        if state.get("data_sha256", self.data) != self.data:
            raise BadInput(f"{self.folder.path} was trained on other images; name those, or give --overwrite")
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
    once = DataLoaderConfiguration(split_batches=True)  # a step is one of all processes, and of the schedule, too
    try:
        with processes.joining() as cpu:
            return Accelerator(mixed_precision=precision, cpu=cpu, dataloader_config=once)
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
