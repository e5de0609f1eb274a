"""Cost of a pass through an exported program (.pt2) against the network that it was made of.

    python eval/benchmarks/bench_program.py [--rounds 31] [--threads 1] [--out eval/results/bench-program.json]

A pass is the logits of a batch and the gradient of the images, in eval mode on the CPU. Both run in one process, one
after the other in every round; the ratio is the median of the rounds' ratios, which other work on the machine moves
little. The networks are SmallCNN on 28 x 28 and ResNet-18 on 32 x 32 images, with fresh weights, since time does not
depend on their values.
"""

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

import atent_ext
from atent_ext.core.model_state import seeded
from atent_ext.models import networks, programs
from atent_ext.storage import files

MOST = 1.10
NETWORKS = {"small-cnn": (1, 28, 100), "resnet-18-pyautoattack": (3, 32, 16)}
"""Channels, side, and images of a batch."""


def one_pass(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
        return time.perf_counter() - start

    return run


def measured(name: str, rounds: int) -> dict[str, Any]:
    channels, side, count = NETWORKS[name]
    with seeded(0), tempfile.TemporaryDirectory() as folder:
        network = networks.build(name, classes=10, channels=channels).eval().requires_grad_(False)
        x, y = torch.rand(count, channels, side, side), torch.randint(10, (count,))
        program = programs.export(network, x, Path(folder, "model.pt2")).network.requires_grad_(False)
    runs = {"network": one_pass(network, x, y), "program": one_pass(program, x, y)}
    seconds: dict[str, list[float]] = {kind: [] for kind in runs}
    for number in range(rounds + 1):
        order = list(runs) if number % 2 else list(runs)[::-1]
        for kind in order:
            seconds[kind].append(runs[kind]())
    medians = {kind: statistics.median(times[1:]) for kind, times in seconds.items()}
    pairs = zip(seconds["program"][1:], seconds["network"][1:], strict=True)
    ratio = statistics.median(theirs / own for theirs, own in pairs)
    same = torch.equal(network(x), program(x))
    return {"images": count, "seconds": medians, "ratio": round(ratio, 4), "same_logits": same}


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 31,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    out: Annotated[Path, typer.Option()] = Path("eval/results/bench-program.json"),
) -> None:
    torch.set_num_threads(threads)
    results = {name: measured(name, rounds) for name in NETWORKS}
    versions = {"atent-ext": atent_ext.__version__, "torch": torch.__version__, "python": platform.python_version()}
    setting = {"rounds": rounds, "threads": threads, "most": MOST, "versions": versions}
    files.write(out, json.dumps({"networks": results, **setting}, indent=1) + "\n")
    for name, result in results.items():
        print(f"{name}: {result['ratio']:.3f} of the network's time a pass, at most {MOST}")
    raise SystemExit(any(result["ratio"] > MOST or not result["same_logits"] for result in results.values()))


if __name__ == "__main__":
    typer.run(main)
