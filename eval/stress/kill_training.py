"""Kill trainings at random moments, go on each time, and compare with trainings that nobody disturbed.

    python eval/stress/kill_training.py --out FILE.json [--kills 40] [--seed 0]

`atent train` runs as a process of its own by each of the five digits recipes and is ended by SIGKILL, the kills shared
evenly: while it starts, within epochs and while a file is being written. After each kill every file of the run folder
must be whole, and the same command goes on, with --resume as soon as the folder holds a run; a run that ends before its
last kill is compared, and another begins. At the end the weights are the same bytes as those of the undisturbed run,
and so are all numbers of its state and its metrics but seconds. Writes what happened, and exits with code 1 if not so.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import safetensors.torch
import torch
import typer

from atent_ext.storage import files
from atent_ext.training import recipes

Told = dict[str, Any]
METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
_SMALL = ("epochs=12", "validation.steps=3")
_KINDS = ("start", "epoch", "write", "epoch", "write")
_FILES = {"recipe.yaml", "metrics.jsonl", "state.pt", "weights.safetensors"}
_WRITING = 0.02
"""Seconds that the files of an epoch take, about."""


@dataclass(frozen=True)
class Moment:
    """When to kill: `after` seconds from the start, or for "write" within a write that comes then, `later` into it."""

    kind: str
    after: float
    later: float

    def sooner(self) -> "Moment":
        return Moment(self.kind, 0.8 * self.after, self.later)


def main(
    out: Annotated[Path, typer.Option()],
    kills: Annotated[int, typer.Option(min=len(METHODS))] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    shares = [kills // len(METHODS) + (number < kills % len(METHODS)) for number in range(len(METHODS))]
    told = [tried(method, share, seed) for method, share in zip(METHODS, shares, strict=True)]
    happened = [kill for one in told for kill in one["kills"]]
    good = all(one["good"] for one in told)
    within = {kind: sum(kill["kind"] == kind for kill in happened) for kind in dict.fromkeys(_KINDS)}
    summary = {
        "seed": seed,
        "kills": len(happened),
        "kinds": within,
        "kills_before_there_was_a_run": sum(not kill["files"] for kill in happened),
        "kills_within_a_write_at_least": sum(within_a_write(one["kills"]) for one in told),
        "files_checked": sum(len(kill["files"]) for kill in happened),
        "runs_compared": sum(len(one["same"]) for one in told),
        "good": good,
    }
    out.write_text(json.dumps(summary | {"recipes": told}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(happened)} kills in {summary['runs_compared']} trainings: {'good' if good else 'BAD'}")
    sys.exit(not good)


def tried(method: str, kills: int, seed: int) -> Told:
    """Train by one recipe undisturbed and disturbed: what happened."""
    training = command(method)
    with TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        startup, seconds = undisturbed(training, whole)
        moments = spread(startup, seconds, kills, f"{seed} {method}")
        happened, same = disturbed(training, killed, moments, whole)
        left = leftovers(killed)
    good = all(same) and not left and not any(kill["faults"] for kill in happened)
    print(f"{training[1]}: {kills} kills, {len(same)} compared: {'good' if good else 'BAD'}", flush=True)
    told = {"command": " ".join(training), "seconds": {"startup": round(startup, 1), "training": round(seconds, 1)}}
    return told | {"same": same, "left_at_the_end": left, "good": good, "kills": happened}


def command(method: str, *more: str) -> list[str]:
    changes = [*_SMALL, *([] if method == "sgd" else ["objective.steps=3"]), *more]
    return ["train", f"digits-linf-{method}", *(part for change in changes for part in ("--set", change))]


def spread(startup: float, seconds: float, kills: int, seed: str) -> list[Moment]:
    """Moments of all kinds in turn; those in the training let seconds / kills of it pass on average."""
    draws = random.Random(seed)
    share = 2 * seconds / kills
    moments = []
    for kind in islice(cycle(_KINDS), kills):
        after = draws.uniform(0, startup) if kind == "start" else startup + draws.uniform(0, share)
        moments.append(Moment(kind, after, draws.uniform(0, _WRITING)))
    return moments


# ---- processes


def process(training: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Begin to train, or go on as soon as the folder holds a run."""
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    whole = [sys.executable, "-m", "atent_ext", *training, "--out", str(folder), *resume]
    return subprocess.Popen(whole, stdout=subprocess.DEVNULL)


def undisturbed(training: list[str], folder: Path) -> tuple[float, float]:
    """Train to the end: the seconds until the run was there, and those from then on."""
    begin, running, startup = time.monotonic(), process(training, folder), 0.0
    while running.poll() is None:
        if not startup and (folder / "recipe.yaml").exists():
            startup = time.monotonic() - begin
        time.sleep(0.01)
    if running.returncode:
        raise SystemExit(f"the undisturbed training failed with exit code {running.returncode}")
    return startup, time.monotonic() - begin - startup


def disturbed(training: list[str], folder: Path, moments: list[Moment], whole: Path) -> tuple[list[Told], list[bool]]:
    """Kill the training at each of the moments, then let it end: what happened, and whether each end is as `whole`."""
    happened: list[Told] = []
    compared: list[bool] = []
    for moment in moments:
        while finished(training, folder, moment):  # before its kill: begin another, and be quicker
            compared.append(same_run(folder, whole))
            shutil.rmtree(folder)
            moment = moment.sooner()
        happened.append({"kind": moment.kind, "after_seconds": round(moment.after, 2), **found(folder)})
    finished(training, folder, None)
    return happened, [*compared, same_run(folder, whole)]


def finished(training: list[str], folder: Path, moment: Moment | None) -> bool:
    """Train, or go on, up to the moment (None: to the end); whether the training ended."""
    running = process(training, folder)
    if moment is not None:
        wait(running, folder, moment)
        running.kill()
    code = running.wait()
    if code > 0:
        raise SystemExit(f"a training that was gone on with failed with exit code {code}")
    return code == 0


def wait(running: subprocess.Popen[bytes], folder: Path, moment: Moment) -> None:
    try:
        running.wait(moment.after)
    except subprocess.TimeoutExpired:
        if moment.kind == "write":
            old = temporary(folder)
            while running.poll() is None and temporary(folder) <= old:
                time.sleep(0.0005)
            time.sleep(moment.later)


# ---- what lies in the folder


def found(folder: Path) -> Told:
    """The files of a run folder after a kill, what is wrong with them, and the epochs that are done."""
    files = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    faults = list(wrong(files))
    state = folder / "state.pt"
    epochs = len(files.load_state(state)["history"]) if state.exists() and not faults else 0
    names = [path.name for path in files]
    return {"epochs_done": epochs, "files": names, "left_of_a_write": leftovers(folder), "faults": faults}


def wrong(files: list[Path]) -> Iterator[str]:
    """What is wrong with these files of a run folder: each that cannot be read whole, or does not belong there."""
    for path in files:
        try:
            read(path)
        except Exception as error:  # whatever a broken file does to its reader
            yield f"{path.name}: {type(error).__name__}: {error}"


def read(path: Path) -> Any:
    """What a file of a run folder holds. Raises something if it is not whole."""
    if path.name not in _FILES:
        raise ValueError("no file of a run")
    if path.name == "recipe.yaml":
        return recipes.load(str(path)).model_dump()
    if path.name == "metrics.jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return safetensors.torch.load_file(path) if path.suffix == ".safetensors" else files.load_state(path)


def leftovers(folder: Path) -> list[str]:
    """The temporary files of writes that did not end, or not yet, by the names of the files that they were to be."""
    return sorted(name.rpartition(".")[0].removeprefix(".") for name in temporary(folder))


def within_a_write(kills: list[Told]) -> int:
    """How many kills left other temporary files than lay there after the kill before: at least so many met a write."""
    left = [kill["left_of_a_write"] for kill in kills]
    return sum(bool(now) and now != before for before, now in zip([[], *left], left, strict=False))


def temporary(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*") if not path.name.startswith(".lock")}


def same_run(one: Path, other: Path) -> bool:
    """Whether two run folders hold the same files: weights in bytes, the others in numbers, seconds left out."""
    if any((one / name).exists() != (other / name).exists() for name in _FILES):
        return False
    weights = [(folder / "weights.safetensors").read_bytes() for folder in (one, other)]
    return weights[0] == weights[1] and all(equal(read(one / name), read(other / name)) for name in _FILES)


def equal(one: Any, other: Any) -> bool:
    """Whether nested data are the same, tensors bit for bit, "seconds" left out."""
    if isinstance(one, torch.Tensor):
        same = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(key == "seconds" or equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


if __name__ == "__main__":
    typer.run(main)
