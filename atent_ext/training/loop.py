"""`fit`: the training loop for all objectives, on Accelerate, resumable after each epoch."""

import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, broadcast, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from atent_ext.attacks.accuracy import predict, robust_flags
from atent_ext.attacks.langevin import pgd
from atent_ext.attacks.spec import Setting
from atent_ext.certification.intervals import certified_linf, sequence
from atent_ext.core import processes, seeds
from atent_ext.core.errors import BadInput, NonFiniteLoss
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import SharedGenerator, norm
from atent_ext.core.types import Objective
from atent_ext.data.datasets import DataSet
from atent_ext.models import speed, weights
from atent_ext.storage import files, signals
from atent_ext.training import averages, splits, tracking
from atent_ext.training.progress import Metrics as Metrics
from atent_ext.training.progress import Reporter as Reporter
from atent_ext.training.progress import Silent as Silent
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder, build_model, initialise, not_both
from atent_ext.training.splits import Splits
from atent_ext.training.step import Stepper

_log = logging.getLogger(__name__)


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
    main process writes, also to the tracker of the recipe. If the loss of one process becomes NaN or infinite, the
    process ends, and the launcher then ends the others.

    Raises BadInput for data or folders that do not fit and for more processes than `recipe.batch_size`, MissingExtra if
    the tracker is not installed, NonFiniteLoss if the loss becomes NaN or infinite.
    """
    not_both(resume, overwrite)
    folder = RunFolder(Path(out))
    recipe = tracking.chosen(recipe, folder, resume)
    images = splits.split(recipe, data)
    with seeded(recipe.seed):
        model = build_model(recipe, data)
        if recipe.init_from and not (resume and folder.state.exists()):
            with data.explaining():
                initialise(model, recipe)
        weights.check_saved(model)
        _check_bounds(recipe, model, images.held_out.images)
        if resume and recipe.speed == "auto" and folder.exists():  # the setting that it chose when it started
            recipe = recipe.model_copy(update={"speed": folder.recipe().speed})
        trainer = _Trainer(recipe, model, images, folder)
        main = trainer.accelerator.is_main_process
        with folder.claimed(trainer.recipe, resume=resume, overwrite=overwrite) if main else nullcontext():
            trainer.accelerator.wait_for_everyone()
            if resume and folder.state.exists():
                trainer.restore()
            with tracking.started(trainer.accelerator, trainer.recipe, folder):
                trainer.run(reporter or Silent())
    return folder


class _Trainer:
    def __init__(self, recipe: Recipe, model: nn.Module, images: Splits, folder: RunFolder) -> None:
        self.held_out, self.folder = images.held_out, folder
        self.data = images.digest()
        self.objective = recipe.build_objective()
        self.history: list[Metrics] = []
        self.lr = recipe.optimizer.lr  # that of the last step
        self.accelerator = _accelerator(recipe, folder)
        self.recipe = self.configure_speed(model, recipe, images.rest.images[: recipe.batch_size])
        self.batches = images.batches(self.accelerator)
        optimizer = recipe.optimizer.build(model.parameters())
        schedule = recipe.schedule.build(optimizer, recipe.epochs, len(self.batches))
        self.model, self.optimizer, self.schedule = self.accelerator.prepare(model, optimizer, schedule)
        if isinstance(self.model, DistributedDataParallel):
            self.model.broadcast_buffers = False  # otherwise every forward pass would sync the processes
        self.network: nn.Module = self.accelerator.unwrap_model(self.model)
        self.average = averages.average(self.network, recipe)
        self.stepper = Stepper(self.recipe, self.accelerator, self.model, self.optimizer)

    @property
    def validated(self) -> nn.Module:
        """The network that is validated and saved: the averaged one if there is one."""
        started = self.average is not None and (self.recipe.swa is None or int(self.average.n_averaged) > 0)
        return self.average.module if self.average is not None and started else self.network

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
            loss = self.train(epoch, reporter)
            if self.recipe.swa is not None and epoch + 1 > self.recipe.swa * self.recipe.epochs:
                self.average_epoch(epoch)
            loss = self.sync(loss)
            metrics = {"epoch": epoch + 1, "loss": loss, **self.validate(), "lr": self.lr, **self.stepper.costs()}
            metrics = broadcast_object_list([metrics])[0]  # rounding must not let processes select other epochs
            metrics["selected"] = self.is_best(metrics)
            metrics["seconds"] = round(time.perf_counter() - start, 1)
            self.history.append(metrics)
            self.save()
            self.accelerator.log(tracking.numbers(metrics), step=metrics["epoch"])
            reporter.epoch(metrics)

    def train(self, epoch: int, reporter: Reporter) -> float:
        """Train one epoch; return the mean weighted loss.

        All draws depend on the seed and the epoch, those of dropout also on the process.
        """
        seed = self.recipe.seed
        seeds.everywhere(_seed(seed, epoch, self.accelerator.process_index, 2))  # dropout
        generator = SharedGenerator(self.accelerator.device)
        generator.manual_seed(_seed(seed, epoch, 0, 1))  # the objective's starts and noise
        self.model.train()
        total = 0.0
        for step, batch in enumerate(self.batches.epoch(_seed(seed, epoch))):
            objective = self.objective_at(epoch * len(self.batches) + step)
            self.lr = self.optimizer.param_groups[0]["lr"]
            try:
                loss = self.stepper(objective, batch, generator, self.perturbs(epoch, step))
            except NonFiniteLoss as error:
                raise self.non_finite(f"{error} at epoch {epoch + 1}, step {step + 1}") from None
            self.schedule.step()
            if self.average and self.recipe.ema is not None:
                self.average.update_parameters(self.network)
            total += batch.weight * loss
            reporter.step(loss)
        return total / len(self.batches)

    def perturbs(self, epoch: int, step: int) -> bool:
        """Whether adversarial weight perturbation has set in."""
        awp, done = self.recipe.awp, epoch + step / len(self.batches)
        return awp is not None and done >= awp.start * self.recipe.epochs

    def average_epoch(self, epoch: int) -> None:
        """Take the weights at the end of an epoch into the average of `swa`."""
        assert self.average is not None
        self.average.update_parameters(self.network)
        batches = self.batches.epoch(_seed(self.recipe.seed, epoch))
        averages.measure_statistics(self.average.module, (batch.images for batch in batches))

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
        """Clean and robust accuracy on the held-out images, and the proven share if it selects the epoch."""
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
        metrics = {"clean": float(clean.double().mean()), "robust": float(robust.double().mean())}
        if self.recipe.validation.select == "proven":
            images, labels = (part.to(self.accelerator.device) for part in (self.held_out.images, self.held_out.labels))
            metrics["proven"] = float(certified_linf(self.validated, images, labels, threat.eps).double().mean())
        return metrics

    def is_best(self, metrics: Metrics) -> bool:
        select = self.recipe.validation.select
        if select == "proven":  # nothing is proven for a while; an epoch later is better then
            return all(metrics[select] >= earlier[select] for earlier in self.history)
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


def _check_bounds(recipe: Recipe, model: nn.Module, images: Tensor) -> None:
    """Raise BadInput if the recipe needs interval bounds and the network has none."""
    needed = {
        "validation.select": recipe.validation.select == "proven",
        "certified": recipe.certified is not None,
        "objective.name": getattr(recipe.build_objective(), "bounds", False),
    }
    for field in (field for field, is_needed in needed.items() if is_needed):
        try:
            sequence(model, images[:2])
        except BadInput as error:
            raise BadInput(f"{field} needs interval bounds, but {error}", code=error.code, field=field) from None


def _accelerator(recipe: Recipe, folder: RunFolder) -> Accelerator:
    precision = recipe.mixed_precision
    once = DataLoaderConfiguration(split_batches=True)  # a step is one of all processes, and of the schedule, too
    try:
        with processes.joining() as cpu:
            return Accelerator(
                mixed_precision=precision,
                cpu=cpu,
                dataloader_config=once,
                log_with=recipe.tracker,
                project_dir=folder.path,
            )
    except ValueError as error:  # a device without it, or an earlier run of this process in another precision
        message = f"mixed_precision is {precision!r}, which is not available here: {error}"
        raise BadInput(message, code="unsupported", field="mixed_precision") from error


def _seed(*numbers: int) -> int:
    """A different seed for each combination of numbers, for the epochs and processes of a run.

    A last number of 0 is ignored: (1, 0) gives the seed of (1).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
