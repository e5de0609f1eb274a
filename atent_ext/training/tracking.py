"""Metrics of a training in TensorBoard, Weights & Biases or MLflow, through Accelerate's trackers.

The run folder remembers its log in tracker.json, so that a resumed run goes on in the same one.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from pydantic import ValidationError

from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.schema import Section
from atent_ext.storage import files
from atent_ext.training.recipes import Recipe, TrackerName
from atent_ext.training.run_folder import RunFolder


class Log(Section):
    """What tracker.json holds: the name of the tracker, and its identifier of the run."""

    tracker: TrackerName | None = None
    run: str | None = None


def chosen(recipe: Recipe, folder: RunFolder, resume: bool) -> Recipe:
    """The recipe with its tracker: a resumed run keeps that of its log unless `recipe` names one.

    Raises MissingExtra if the tracker's package is not installed, and BadInput for a broken tracker.json.
    """
    log = _log(folder) if resume else Log()
    if recipe.tracker is None:
        recipe = recipe.model_copy(update={"tracker": log.tracker})
    if recipe.tracker is not None and recipe.tracker not in [str(name) for name in get_available_trackers()]:
        message = f"tracker is {recipe.tracker!r}, which is not installed; pip install {recipe.tracker}"
        raise MissingExtra(message, field="tracker")
    return recipe


@contextmanager
def started(accelerator: Accelerator, recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """A context in which `accelerator.log` writes to the tracker of `recipe`; without one it does nothing.

    TensorBoard's files are in the run folder. The project of the others is "atent-ext" unless $WANDB_PROJECT or
    $MLFLOW_EXPERIMENT_NAME names another one. Raises BadInput if the tracker does not start.
    """
    if recipe.tracker is None or not accelerator.is_main_process:
        yield
        return
    log = _log(folder)
    goes_on = log.tracker == recipe.tracker
    run = log.run if goes_on else None
    config = None if goes_on else dict(_flat(recipe.model_dump(mode="json")))
    if recipe.tracker == "wandb":
        run = run or uuid.uuid4().hex
    settings = {
        "tensorboard": {},
        "wandb": {"name": recipe.name, "id": run, "resume": "allow", "dir": str(folder.path)},
        "mlflow": {"run_name": recipe.name, "run_id": run},
    }
    project = "tensorboard" if recipe.tracker == "tensorboard" else os.environ.get("WANDB_PROJECT", "atent-ext")
    try:
        accelerator.init_trackers(project, config, settings)
    except Exception as error:  # no account, no connection, a log that is gone: each package has errors of its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"tracker {recipe.tracker!r} did not start ({reason}); mend that, or train without a tracker"
        raise BadInput(message, code="unsupported", field="tracker") from error
    try:
        if recipe.tracker == "mlflow":
            run = accelerator.get_tracker("mlflow", unwrap=True).info.run_id
        files.write(folder.tracker, Log(tracker=recipe.tracker, run=run).model_dump_json() + "\n")
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an epoch that a tracker draws as curves."""
    kinds = (int, float)
    return {key: value for key, value in metrics.items() if type(value) in kinds and key != "epoch"}


def _log(folder: RunFolder) -> Log:
    """What tracker.json holds, nothing if it is not there. Raises BadInput if it is broken."""
    if not folder.tracker.is_file():
        return Log()
    try:
        return Log.model_validate_json(folder.tracker.read_bytes())
    except ValidationError as error:
        message = (
            f"{folder.tracker} is no log of a tracker ({error.errors()[0]['msg']}); remove it, and a new log starts"
        )
        raise BadInput(message, code="unreadable", field="tracker") from None


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str | int | float]]:
    """The fields of a recipe by their full names, as `--set` takes them; lists as texts."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", value if isinstance(value, str | int | float) else str(value)
