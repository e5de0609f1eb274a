"""Kill trainings at random moments, resume each, and compare with uninterrupted trainings.

    python eval/stress/kill_training.py --out FILE.json [--kills 40] [--seed 0]

`atent train` runs as a process of its own by each of the five digits recipes and sends itself SIGKILL at an event
(signal_at.py), so that the same seed kills at the same moments on every machine: while it starts, within epochs and
while a file is being written, the kills shared evenly. After each kill every file of the run folder must be whole, and
the same command goes on, with --resume as soon as the folder holds a run; a run that ends before its last kill is
compared, and another begins. At the end the weights are the same bytes as those of the undisturbed run, and so are all
numbers of its state and its metrics but seconds. Writes what happened, and exits with code 1, after printing it, if not
so.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import safetensors.torch
import signal_at
import torch
import typer

from atent_ext.storage import files
from atent_ext.training import recipes

Events = dict[str, int]
Record = dict[str, Any]
METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
_SMALL = ("epochs=12", "validation.steps=3")
_KINDS = ("start", "epoch", "write", "epoch", "write")
_FILES = {"recipe.yaml", "metrics.jsonl", "state.pt", "weights.safetensors"}


def main(
    out: Annotated[Path, typer.Option()],
    kills: Annotated[int, typer.Option(min=len(METHODS))] = 40,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    shares = [kills // len(METHODS) + (number < kills % len(METHODS)) for number in range(len(METHODS))]
    records = [trained(method, share, seed) for method, share in zip(METHODS, shares, strict=True)]
    happened = [kill for record in records for kill in record["kills"]]
    good = all(record["good"] for record in records)
    summary = {
        "seed": seed,
        "kills": len(happened),
        "kinds": {kind: sum(kill["kind"] == kind for kill in happened) for kind in dict.fromkeys(_KINDS)},
        "kills_before_there_was_a_run": sum(not kill["files"] for kill in happened),
        "kills_within_a_write_at_least": sum(within_a_write(record["kills"]) for record in records),
        "files_checked": sum(len(kill["files"]) for kill in happened),
        "runs_compared": sum(len(record["same"]) for record in records),
        "good": good,
    }
    text = json.dumps(summary | {"recipes": records}, indent=1) + "\n"
    out.write_text(text, encoding="utf-8")
    if not good:
        print(text)
    print(f"{len(happened)} kills in {summary['runs_compared']} trainings: {'good' if good else 'BAD'}")
    sys.exit(not good)


def trained(method: str, kills: int, seed: int) -> Record:
    """Train by one recipe undisturbed and disturbed: what happened."""
    training = command(method)
    with TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        ended, log = run(training, whole, {})
        if not ended:
            raise SystemExit("a training that nobody killed did not end")
        happened, same = disturbed(training, killed, moments(log, kills, f"{seed} {method}"), whole)
        left = leftovers(killed)
    good = all(same) and not left and not any(kill["faults"] for kill in happened)
    print(f"{training[1]}: {kills} kills, {len(same)} compared: {'good' if good else 'BAD'}", flush=True)
    return {"command": " ".join(training), "same": same, "left_at_the_end": left, "good": good, "kills": happened}


def command(method: str, *more: str) -> list[str]:
    changes = [*_SMALL, *([] if method == "sgd" else ["objective.steps=3"]), *more]
    return ["train", f"digits-linf-{method}", *(part for change in changes for part in ("--set", change))]


def moments(log: list[Record], kills: int, seed: str) -> list[tuple[str, Events]]:
    """Moments of all kinds in turn; those in the training let a share of its steps pass on average.

    log: of an undisturbed training, which says how many events there are.
    """
    draws = random.Random(seed)
    imports = next(line["counts"]["import"] for line in log if line["at"] == "step")
    steps, writes = log[-1]["counts"]["step"], 9  # the three files of an epoch, three events each

    def drawn(kind: str) -> Events:
        if kind == "start":
            return {"import": draws.randint(1, imports)}
        step = {"step": draws.randint(1, max(1, 2 * steps // kills))}
        return step if kind == "epoch" else step | {"write": draws.randint(1, writes)}

    return [(kind, drawn(kind)) for kind in islice(cycle(_KINDS), kills)]


# ---- processes


def run(training: list[str], folder: Path, events: Events) -> tuple[bool, list[Record]]:
    """Train, or go on as soon as the folder holds a run, until the events: whether it ended, and its process's log."""
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    log = folder.with_name("events.jsonl")
    log.unlink(missing_ok=True)
    whole = [*training, "--out", str(folder), *resume]
    code = signal_at.started("SIGKILL", events, log, *whole, stdout=subprocess.DEVNULL).wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a training failed with exit code {code}")
    return code == 0, signal_at.counted(log)


def disturbed(
    training: list[str], folder: Path, moments: list[tuple[str, Events]], whole: Path
) -> tuple[list[Record], list[bool]]:
    """Kill the training at each of the moments, then let it end: what happened, and whether each end is as `whole`."""
    happened: list[Record] = []
    compared: list[bool] = []
    for kind, events in moments:
        while run(training, folder, events)[0]:  # before its kill: begin another, and be quicker
            compared.append(same_run(folder, whole))
            shutil.rmtree(folder)
            events = {name: max(1, count * 4 // 5) for name, count in events.items()}
        happened.append({"kind": kind, "at": events, **found(folder)})
    run(training, folder, {})
    return happened, [*compared, same_run(folder, whole)]


# ---- what lies in the folder


def found(folder: Path) -> Record:
    """The files of a run folder after a kill, what is wrong with them, and the epochs that are done."""
    present = sorted(path for path in folder.glob("*") if not path.name.startswith("."))
    faults = list(wrong(present))
    state = folder / "state.pt"
    epochs = len(files.load_state(state)["history"]) if state.exists() and not faults else 0
    names = [path.name for path in present]
    return {"epochs_done": epochs, "files": names, "left_of_a_write": leftovers(folder), "faults": faults}


def wrong(paths: list[Path]) -> Iterator[str]:
    """What is wrong with these files of a run folder: each that cannot be read whole, or does not belong there."""
    for path in paths:
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


def within_a_write(kills: list[Record]) -> int:
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
