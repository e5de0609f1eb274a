"""What the benchmarks share: interleaved rounds, medians and ranges, peak memory, a JSON file and a bar chart."""

import gc
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from atent_ext.core.model_state import seeded
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.models import networks
from atent_ext.storage import files

PACKAGES = (
    *("torch", "advertorch", "torchattacks", "foolbox", "adversarial-robustness-toolbox", "pyautoattack", "atent-ext"),
)
Run = Callable[[], object]
LARGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""What `atent` sets for itself; a script of one's own has to set it before it starts."""


class Worker:
    """A run in a process of its own, so that no peer changes another's memory, threads or settings.

    `make(*arguments)` gives the run; it is a function of a module, for the process imports it anew.
    """

    def __init__(self, make: Callable[..., Run], *arguments: Any, environment: Mapping[str, str] = {}) -> None:
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(there, make, arguments, torch.get_num_threads()), daemon=True
        )
        self.process.start()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def ask(self, what: str) -> Any:
        """What one run gives: its "seconds", its "memory" (peak_memory), or its "result"."""
        self.here.send(what)
        return self.here.recv()

    def seconds(self) -> float:
        found: float = self.ask("seconds")
        return found

    def stop(self) -> None:
        self.process.terminate()


def _serve(pipe: Any, make: Callable[..., Run], arguments: tuple[Any, ...], threads: int) -> None:
    warnings.simplefilter("ignore")  # the neighbours' own
    torch.set_num_threads(threads)
    run = make(*arguments)
    answers = {"seconds": lambda: timed(run), "memory": lambda: peak_memory(run), "result": run}
    while True:
        pipe.send(answers[pipe.recv()]())


def timed(run: Run) -> float:
    """Seconds of one run."""
    gc.collect()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rounds(runs: Mapping[str, Worker], count: int) -> dict[str, list[float]]:
    """Seconds of each run in each of `count` rounds, after one that warms up; every round starts with another run."""
    names = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = runs[name].seconds()
            if number:
                found[name].append(seconds)
    return found


def retaken(start: Callable[[], Mapping[str, Worker]], count: int, takes: int) -> dict[str, list[float]]:
    """`count` rounds of the runs in each of `takes` takes, for which the processes are started anew.

    Where a process's memory comes to lie makes it up to a tenth slower or faster, which rounds alone do not even out.
    """
    found: dict[str, list[float]] = {}
    for _ in range(takes):
        runs = start()
        for name, values in rounds(runs, count).items():
            found.setdefault(name, []).extend(values)
        for run in runs.values():
            run.stop()
    return found


def summary(times: Mapping[str, list[float]], floor: str) -> dict[str, Any]:
    """Median and range of each run's seconds, and of its ratio to the floor's in the same round."""
    return {
        name: {
            "median_ms": round(1e3 * statistics.median(values), 2),
            "range_ms": [round(1e3 * min(values), 2), round(1e3 * max(values), 2)],
            f"ratio_to_{floor}": ratio(values, times[floor]),
        }
        for name, values in times.items()
    }


def ratio(values: list[float], others: list[float]) -> dict[str, float]:
    """Median and range of the ratios, round by round."""
    ratios = [mine / theirs for mine, theirs in zip(values, others, strict=True)]
    return {key: round(f(ratios), 3) for key, f in (("median", statistics.median), ("min", min), ("max", max))}


def peak_memory(run: Run) -> int:
    """The most bytes of tensors that a run holds at once beyond those before it."""
    run()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def about() -> dict[str, Any]:
    """What every measurement says of where it was made."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "commit": _commit(),
        "device": device,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "atent_ext", "eval/*.py") else ""
    return git("rev-parse", "--short", "HEAD") + changed


def network(name: str, channels: int, seed: int = 0) -> nn.Module:
    """A fresh network of the registry with 10 classes, whose last layer is not zero as SmallCNN's is."""
    with seeded(seed):
        model = networks.build(name, classes=10, channels=channels)
        for module in model.modules():
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                module.reset_parameters()
    return model


def batch(shape: tuple[int, ...], count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images in [0, 1] and labels of 10 classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *shape, generator=generator), torch.randint(0, 10, (count,), generator=generator)


def undefended(images: int = 4000, seed: int = 0) -> tuple[nn.Module, Split]:
    """SmallCNN trained plainly for one epoch on the first MNIST training images, and the test split."""
    mnist = datasets.load("mnist")
    model = network("small-cnn", 1, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    part = mnist.train.take(images)
    with seeded(seed):
        for x, y in zip(part.images.split(50), part.labels.split(50), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval(), mnist.test


def write(path: Path, report: Mapping[str, Any]) -> None:
    files.write(path, json.dumps(report, indent=1) + "\n")
    print(f"written: {path}")


def bars(path: Path, title: str, measured: Sequence[Mapping[str, Any]]) -> None:
    """A bar chart of ratios to the floor: a panel for each measurement, bars at the median, lines for the range."""
    panels = {
        f"{one['network']}, batch {one['batch']}, {one['steps']} steps": {
            name: row["ratio_to_floor"] for name, row in one["results"].items() if name != "floor"
        }
        for one in measured
    }
    chart(path, title, panels, "cost in plain passes (floor = 1)")


def chart(path: Path, title: str, panels: Mapping[str, Mapping[str, Mapping[str, float]]], label: str) -> None:
    """A panel for each name, a bar for each of its values: median, min and max."""
    from matplotlib.figure import Figure

    from atent_ext.figures import plots

    figure = Figure(figsize=(5.2 * len(panels), 0.9 + 0.42 * max(map(len, panels.values()))), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        rows = list(found.values())
        medians = [row["median"] for row in rows]
        ranges = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
        axes.barh(list(found), medians, xerr=ranges, color="#4477aa", error_kw={"elinewidth": 1})
        for place, row in enumerate(rows):
            axes.text(row["max"], place, f" {row['median']:.2f}", va="center", fontsize=8)
        axes.axvline(1.0, color="#999999", linewidth=1, linestyle="--")
        axes.invert_yaxis()
        axes.set(title=name, xlabel=label, xlim=(0, 1.25 * max(row["max"] for row in rows)))
    figure.suptitle(title)
    plots.save(figure, path)
