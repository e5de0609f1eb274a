"""Whether memory grows: 1,000 training steps, and 200 calls of an attack, each after a warm-up.

    python eval/stress/memory.py --out eval/results/memory.json [--steps 1000] [--calls 200]

Training is `fit` with ATENT on the handwritten digits, checkpoints and validation included, measured at the ends of
epochs; the attack is LinfATENTAttack with 2 restarts that keep successes. Resident memory is the operating system's
count for the process, tensors are what the garbage collector still reaches. Exits with code 1 if either grew by more
than 1 %.
"""

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import bench
import psutil
import torch
import typer
from torch import Tensor, nn

from atent_ext import LinfATENTAttack, fit
from atent_ext.data import datasets
from atent_ext.training import recipes
from atent_ext.training.loop import Metrics, Silent

Memory = dict[str, int]
LIMIT = 1.0
"""Percent."""
_WARM_UP = {"steps": 200, "calls": 20}


def main(
    out: Annotated[Path, typer.Option()],
    steps: Annotated[int, typer.Option(min=20)] = 1000,
    calls: Annotated[int, typer.Option(min=1)] = 200,
) -> None:
    found = {
        "training": grown(training(_WARM_UP["steps"], steps), {"steps": steps, "after": _WARM_UP["steps"]}),
        "attack": grown(attacks(_WARM_UP["calls"], calls), {"calls": calls, "after": _WARM_UP["calls"]}),
    }
    good = all(percent <= LIMIT for part in found.values() for percent in part["growth_percent"].values())
    bench.write(out, bench.about() | {"limit_percent": LIMIT, **found, "good": good})
    for name, part in found.items():
        print(f"{name}: {part['growth_percent']} % more")
    sys.exit(not good)


def grown(measured: list[Memory], setting: dict[str, int]) -> dict[str, Any]:
    """First against last; what lies in between is kept to be looked at."""
    first, last = measured[0], measured[-1]
    percent = {name: round(100 * (last[name] - first[name]) / first[name], 3) for name in first}
    return {**setting, "growth_percent": percent, "measured": measured}


def memory() -> Memory:
    """Resident bytes, and number and bytes of the tensors that are alive; a storage that several share counts once."""
    gc.collect()
    alive = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]  # others may have no memory
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in alive}
    return {
        "resident_bytes": psutil.Process().memory_info().rss,
        "tensors": len(alive),
        "tensor_bytes": sum(storages.values()),
    }


@dataclass
class Watch(Silent):
    """Measures at the ends of the epochs numbered in `at`."""

    at: list[int]
    found: list[Memory] = field(default_factory=list)

    def epoch(self, metrics: Metrics) -> None:
        if metrics["epoch"] in self.at:
            self.found.append(memory())


def training(warm_up: int, steps: int, parts: int = 10, images: int = 100) -> list[Memory]:
    """Memory after `warm_up` steps, each on `images`, and after each of `parts` parts of the `steps` that follow."""
    digits = datasets.load("digits")
    recipe = recipes.load(
        "digits-linf-atent", [f"batch_size={images}", f"examples={10 * images}", "validation.steps=2"]
    )
    an_epoch = 10
    first, last = warm_up // an_epoch, (warm_up + steps) // an_epoch
    recipe = recipe.model_copy(update={"epochs": last})
    watch = Watch([first + (last - first) * part // parts for part in range(parts + 1)])
    with TemporaryDirectory() as folder:
        fit(recipe, digits, Path(folder) / "run", reporter=watch)
    return watch.found


def attacks(warm_up: int, calls: int, parts: int = 10, images: int = 100) -> list[Memory]:
    """Memory after `warm_up` calls, each on `images`, and after each of `parts` parts of the `calls` that follow."""
    model, test = bench.network("digits-cnn", 1).eval(), datasets.load("digits").test.take(images)
    generator = torch.Generator().manual_seed(0)
    attack = LinfATENTAttack(model, eps=0.15, restarts=2, keep="success", generator=generator)
    return repeated(lambda: attack.perturb(test.images, test.labels), warm_up, calls, parts)


def repeated(call: Callable[[], object], warm_up: int, calls: int, parts: int) -> list[Memory]:
    at = {warm_up + calls * part // parts for part in range(parts + 1)}
    found = []
    for done in range(1, warm_up + calls + 1):
        call()
        if done in at:
            found.append(memory())
    return found


if __name__ == "__main__":
    typer.run(main)
