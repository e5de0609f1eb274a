"""`fit`: the training loop for all objectives, on Accelerate, resumable after each epoch."""

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
from atent_ext.training.run_folder import RunFolder, build_model, initialise, not_both

Metrics = dict[str, Any]
_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Receives the progress of a training. The command line shows it as a progress bar."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Training of recipe `name` starts: `epochs` of `steps` optimizer steps each; `done` epochs are finished."""

    def step(self, loss: float) -> None:
        """An optimizer step was made; `loss` is that of this process's share of the batch."""

    def epoch(self, metrics: Metrics) -> None:
        """An epoch ended and its checkpoint is written; `metrics` are its line in metrics.jsonl."""


class Silent:
    """A reporter that does nothing."""

    def begin(self, name: str, epochs: int, steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, loss: float) -> None:
        """Do nothing."""

    def epoch(self, metrics: Metrics) -> None:
        """Do nothing."""


def fit(
    recipe: Recipe,
    data: DataSet,
    out: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> RunFolder:
    """Train by `recipe` on `data.train` and write the run folder `out`.

    After each epoch the training state and, if the epoch is the best so far, the weights are written. `resume`
    continues from the last finished epoch; on the CPU the final weights are then bit-identical to those of an
    uninterrupted run. `overwrite` replaces the run in `out`. The epoch is selected on images held out of the training
    split; the test split is never used. The global random state is restored.

    Under torchrun or `accelerate launch`, `recipe.batch_size` is the size of the global batch, of which each process
    takes its share. Order, augmentation, starts and noise are drawn per example, so that they do not depend on the
    number of processes. Dropout does, because each process draws its own, and so does BatchNorm, because each process
    normalises over its share; the running statistics are those of the main process at the end of each epoch. Only the
    main process writes. If the loss of one process becomes NaN or infinite, the process ends, and the launcher then
    ends the others.

    Raises BadInput for data or folders that do not fit and for more processes than `recipe.batch_size`, NonFiniteLoss
    if the loss becomes NaN or infinite.
    """
    not_both(resume, overwrite)
    folder = RunFolder(Path(out))
    validate.images(data.train.images, 0.0, 1.0)
    validate.labels(data.train.labels, len(data.train.images), len(data.classes))
    rest, held_out = hold_out(data.train, recipe.validation.count, recipe.seed)
    with seeded(recipe.seed):
        model = build_model(recipe, data)
        if recipe.init_from and not (resume and folder.state.exists()):
            with data.explaining():
                initialise(model, recipe)
        weights.check_saved(model)
        if resume and recipe.speed == "auto" and folder.exists():  # the setting that it chose when it started
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
        self.lr = recipe.optimizer.lr  # that of the last step
        self.accelerator = _accelerator(recipe.mixed_precision)
        self.recipe = self.configure_speed(model, recipe, rest.images[: recipe.batch_size])
        process = (self.accelerator.device, self.accelerator.process_index, self.accelerator.num_processes)
        self.batches = Batches(rest, recipe.batch_size, recipe.augment, *process)
        optimizer = recipe.optimizer.build(model.parameters())
        schedule = _schedule(recipe.schedule, optimizer, recipe.epochs, len(self.batches))
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # otherwise every forward pass would sync the processes
        self.network: nn.Module = self.accelerator.unwrap_model(self.model)
        self.average = _average(self.network, recipe.ema) if recipe.ema else None
        # The network that is validated and saved: the averaged one if there is one.
        self.validated: nn.Module = self.average.module if self.average else self.network

    def configure_speed(self, model: nn.Module, recipe: Recipe, images: Tensor) -> Recipe:
        """Apply the recipe's speed to the network, the same in all processes; "auto" becomes the measured choice."""
        device = self.accelerator.device
        choice = speed.choose(model.to(device), images.to(device), recipe.speed)
        setting, notes = broadcast_object_list([choice])[0]
        speed.convert(model, setting)
        for note in notes if self.accelerator.is_main_process else ():
            # Channels-last is the default, so that a network that cannot use it is no reason for a warning.
            _log.log(logging.INFO if recipe.speed == "channels-last" else logging.WARNING, "%s", note)
        return recipe.model_copy(update={"speed": setting}) if recipe.speed == "auto" else recipe

    def run(self, reporter: Reporter) -> None:
        reporter.begin(self.recipe.name, self.recipe.epochs, len(self.batches), len(self.history))
        for epoch in range(len(self.history), self.recipe.epochs):
            start = time.perf_counter()
            loss = self.sync(self.train(epoch, reporter))
            metrics = {"epoch": epoch + 1, "loss": loss, **self.validate(), "lr": self.lr}
            metrics = broadcast_object_list([metrics])[0]  # rounding must not let processes select other epochs
            metrics["selected"] = self.is_best(metrics)
            metrics["seconds"] = round(time.perf_counter() - start, 1)
            self.history.append(metrics)
            self.save()
            reporter.epoch(metrics)

    def train(self, epoch: int, reporter: Reporter) -> float:
        """Train one epoch; return the mean weighted loss.

        All draws depend on the seed and the epoch, those of dropout also on the process.
        """
        seed = self.recipe.seed
        torch.manual_seed(_seed(seed, epoch, self.accelerator.process_index, 2))  # dropout
        generator = SharedGenerator(self.accelerator.device)
        generator.manual_seed(_seed(seed, epoch, 0, 1))  # the objective's starts and noise
        self.model.train()
        total = 0.0
        for step, batch in enumerate(self.batches.epoch(_seed(seed, epoch))):
            objective = self.objective_at(epoch * len(self.batches) + step)
            self.lr = self.optimizer.param_groups[0]["lr"]
            loss = self.step(objective, batch, generator, f"epoch {epoch + 1}, step {step + 1}")
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.network)
            total += batch.weight * loss
            reporter.step(loss)
        return total / len(self.batches)

    def step(self, objective: Objective, batch: Batch, generator: SharedGenerator, place: str) -> float:
        """Make one optimizer step and return the mean loss of this process's share at the weights before it."""
        generator.total, generator.rows = batch.total, batch.rows
        losses: list[float] = []

        def closure() -> float:
            self.optimizer.zero_grad()
            terms = objective(self.model, batch.images, batch.labels, batch.index, generator=generator)
            losses.append(self.backpropagate(objective.terms, terms, batch.weight))
            if not math.isfinite(losses[-1]):
                raise self.non_finite(f"the loss is {losses[-1]} at {place}")
            return losses[-1]

        if self.recipe.optimizer.needs_closure:
            self.optimizer.step(closure)
        else:  # a scaled (fp16) step takes none
            closure()
            self.optimizer.step()
        return losses[0]

    def backpropagate(self, count: int, terms: Iterator[Tensor], weight: float) -> float:
        """Back-propagate each of `count` terms, times `weight`, before the next; return the sum of the terms.

        Processes exchange gradients for the last term only; the other passes run without synchronisation.
        """
        loss = torch.zeros((), device=self.accelerator.device)
        for position in range(count):
            last = position == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                term = next(terms)
                self.accelerator.backward(weight * term)
            loss = loss + term.detach()  # in the wider dtype of the two
        return float(loss)

    def objective_at(self, step: int) -> Objective:
        """The objective at a step: eps and step size grow linearly over the share `eps_ramp` of the training."""
        length = self.recipe.eps_ramp * self.recipe.epochs * len(self.batches)
        return self.objective.scaled((step + 1) / length) if step + 1 < length else self.objective

    def sync(self, loss: float) -> float:
        """Make buffers and the state of the objective the same in all processes; return the mean of their losses."""
        if self.accelerator.num_processes == 1:
            return loss
        for network in filter(None, (self.network, self.average)):
            broadcast(list(network.buffers()))  # in place: the running statistics of the main process
        objective: Any = self.objective
        if hasattr(objective, "merge"):
            objective.merge(gather_object([objective.state_dict()]))
        losses: list[float] = gather_object([loss])
        return math.fsum(losses) / len(losses)

    def non_finite(self, what: str) -> NonFiniteLoss:
        done = len(self.history)
        kept = f"the checkpoint of epoch {done} is kept in {self.folder.path}" if done else "no epoch was finished"
        message = f"{what}; {kept}; start anew with --overwrite and a smaller optimizer.lr"
        return NonFiniteLoss(message, field="optimizer.lr")

    def validate(self) -> Metrics:
        """Clean and robust accuracy on the held-out images."""
        threat, steps = self.recipe.threat, self.recipe.validation.steps
        kernel = pgd(norm(threat.norm), threat.eps, steps)
        setting = Setting(threat, seed=self.recipe.seed)
        logits = predict(self.validated, self.held_out.images)
        # The last step of an epoch may break the weights, and no loss has been computed from them yet.
        if not bool(torch.isfinite(logits).all()):
            place = f"epoch {len(self.history) + 1}, step {len(self.batches)}"
            raise self.non_finite(f"the network's outputs are not finite after {place}")
        clean = logits.argmax(1) == self.held_out.labels
        robust = robust_flags(self.validated, self.held_out, kernel, setting)
        return {"clean": float(clean.double().mean()), "robust": float(robust.double().mean())}

    def is_best(self, metrics: Metrics) -> bool:
        select = self.recipe.validation.select
        return select == "last" or all(metrics[select] > earlier[select] for earlier in self.history)

    def save(self) -> None:
        """Write the weights, then the state that counts the epoch, so that a kill in between only repeats the epoch."""
        if self.accelerator.is_main_process:
            with signals.held_back():
                if self.history[-1]["selected"]:
                    weights.save_weights(self.validated, self.folder.weights)
                files.save_state(self.state(), self.folder.state)
                self.folder.write_metrics(self.history)
        self.accelerator.wait_for_everyone()

    def parts(self) -> dict[str, Any]:
        """The parts of the training state that have a `state_dict`, by their names in state.pt."""
        parts = {
            "model": self.network,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
            "scaler": self.accelerator.scaler,
            "objective": self.objective,
        }
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def state(self) -> dict[str, Any]:
        return {"history": self.history, "data_sha256": self.data} | {
            name: part.state_dict() for name, part in self.parts().items()
        }

    def restore(self) -> None:
        state = files.load_state(self.folder.state)
        if state.get("data_sha256", self.data) != self.data:
            message = f"{self.folder.path} was trained on other images; name those, or give --overwrite"
            raise BadInput(message, code="other-content", field="data")
        try:
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
            self.history = state["history"]
        except (KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            problem = f"{self.folder.state} does not fit the recipe and the data ({reason})"
            message = f"{problem}; --overwrite starts the run anew"
            raise BadInput(message, code="other-content", field="resume") from error
        if self.accelerator.is_main_process:
            self.folder.write_metrics(self.history)


def _accelerator(precision: str) -> Accelerator:
    once = DataLoaderConfiguration(split_batches=True)  # a step is one of all processes, and of the schedule, too
    try:
        with processes.joining() as cpu:
            return Accelerator(mixed_precision=precision, cpu=cpu, dataloader_config=once)
    except ValueError as error:  # a device without it, or an earlier run of this process in another precision
        message = f"mixed_precision is {precision!r}, which cannot be had here: {error}"
        raise BadInput(message, code="unsupported", field="mixed_precision") from error


def _schedule(
    schedule: Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps: int
) -> lr_scheduler.LRScheduler:
    """A scheduler to step once per optimizer step."""
    lr = optimizer.param_groups[0]["lr"]
    if schedule.name == "one-cycle":
        total, warmup = epochs * steps, schedule.warmup
        if warmup * total == 1:
            message = f"schedule.warmup is {warmup}, exactly one of {total} steps; choose another share"
            raise BadInput(message, code="bad-value", field="schedule.warmup")
        return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=warmup, cycle_momentum=False)
    milestones = [epoch * steps for epoch in schedule.milestones] if schedule.name == "multi-step" else []
    return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _seed(*numbers: int) -> int:
    """A different seed for each combination of numbers, for the epochs and processes of a run.

    A last number of 0 is ignored: (1, 0) gives the seed of (1).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
