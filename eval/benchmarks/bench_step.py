"""Cost of a training step: ATENT, PGD-AT and the naive ATENT against the floor of K + 1 plain passes.

    python eval/benchmarks/bench_step.py [--rounds 3] [--takes 3] [--threads 1] [--out eval/results/bench-step.json]

The floor is K forward passes with the gradient of the images (torch.autograd.grad) and one with that of the weights, by
plain PyTorch on the network as it is. The naive step is ATENT as its authors wrote it: a forward pass for each Langevin
step, another for each iterate of the average, K graphs kept, and one backward pass through all of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import bench
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from atent_ext.attacks.langevin import input_gradient
from atent_ext.core.losses import cross_entropy
from atent_ext.core.types import Objective
from atent_ext.models import speed
from atent_ext.objectives import ATENT, PGDAT

EPS = 0.3
GIGA_MULTIPLICATIONS = 0.5554
"""Of ResNet-18's convolutions, for one image of 32 x 32, forward; as many for the gradient of the images."""
Step = Callable[[], object]


def plain_passes(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Step:
    def step() -> None:
        model.zero_grad()
        for _ in range(steps):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
        F.cross_entropy(model(x), y).backward()

    return step


def naive(model: nn.Module, x: Tensor, y: Tensor, steps: int, backward: bool = False) -> Step:
    """`backward`: the input gradient by loss.backward(), which computes the weights' gradients as well."""
    chosen = atent(steps)
    kernel = chosen.kernel

    def step() -> None:
        model.zero_grad()
        moving, average = kernel.begin(x), torch.zeros(())
        for j in range(steps):
            leaf = moving.detach().requires_grad_()
            loss = F.cross_entropy(model(leaf), y, reduction="sum")
            gradient = input_gradient_of(loss, leaf, backward)
            moving = kernel.step(x, moving, gradient, j)
            average = (1 - chosen.alpha) * average + chosen.alpha * F.cross_entropy(model(moving), y)
        if backward:
            model.zero_grad()
        average.backward()

    return step


def input_gradient_of(loss: Tensor, leaf: Tensor, backward: bool) -> Tensor:
    if not backward:
        return torch.autograd.grad(loss, leaf)[0]
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def by_backward(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Step:
    return naive(model, x, y, steps, backward=True)


def by(objective: Objective, model: nn.Module, x: Tensor, y: Tensor) -> Step:
    def step() -> None:
        model.zero_grad()
        for term in objective(model, x, y):
            term.backward()

    return step


def atent(steps: int) -> ATENT:
    return ATENT(eps=EPS, steps=steps, step_size=2.5 * EPS / steps)


def pgd_at(steps: int) -> PGDAT:
    return PGDAT(eps=EPS, steps=steps, step_size=2.5 * EPS / steps, inner_mode="train")


def made(peer: str, setting: str, network: str, shape: tuple[int, ...], count: int, steps: int) -> Step:
    """One peer's step on one batch, its network in train mode."""
    x, y = bench.batch(shape, count)
    model = bench.network(network, shape[0]).train()
    speed.convert(model, setting)
    objectives = {"PGD-AT": pgd_at, "ATENT": atent, "ATENT, bfloat16": atent}
    if peer not in objectives:
        others = {"floor": plain_passes, "naive ATENT": naive, "naive ATENT by backward()": by_backward}
        return others[peer](model, x, y, steps)
    step = by(objectives[peer](steps), model, x, y)
    if peer != "ATENT, bfloat16":
        return step

    def autocast() -> None:
        with torch.autocast(x.device.type, torch.bfloat16):
            step()

    return autocast


# name -> (peer, its network's setting, its environment). Those without a word run as `atent train` runs them: with the
# channels innermost and large pages; "plain" is plain PyTorch.
PEERS = {
    "floor": ("floor", "plain", {}),
    "floor, as ATENT is run": ("floor", "channels-last", bench.LARGE_PAGES),
    "PGD-AT": ("PGD-AT", "channels-last", bench.LARGE_PAGES),
    "ATENT": ("ATENT", "channels-last", bench.LARGE_PAGES),
    "ATENT, bfloat16": ("ATENT, bfloat16", "channels-last", bench.LARGE_PAGES),
    "ATENT, channels-last": ("ATENT", "channels-last", {}),
    "PGD-AT, plain": ("PGD-AT", "plain", {}),
    "ATENT, plain": ("ATENT", "plain", {}),
    "naive ATENT, plain": ("naive ATENT", "plain", {}),
    "naive ATENT by backward(), plain": ("naive ATENT by backward()", "plain", {}),
}
FEW = ("floor", "PGD-AT", "ATENT")


RATIOS = (
    ("ATENT", "PGD-AT"),
    ("ATENT, plain", "PGD-AT, plain"),
    ("naive ATENT, plain", "ATENT"),
    ("naive ATENT, plain", "ATENT, plain"),
    ("naive ATENT by backward(), plain", "ATENT"),
)


def measured(
    network: str,
    shape: tuple[int, ...],
    count: int,
    steps: int,
    rounds: int,
    takes: int = 1,
    peers: Sequence[str] = tuple(PEERS),
) -> Any:
    """The steps of `peers` on one batch, each in a process of its own."""

    def start() -> dict[str, bench.Worker]:
        return {
            name: bench.Worker(made, peer, setting, network, shape, count, steps, environment=environment)
            for name, (peer, setting, environment) in PEERS.items()
            if name in peers
        }

    times = bench.retaken(start, rounds, takes)
    found: dict[str, Any] = {"network": network, "image": shape, "batch": count, "steps": steps}
    found |= {"rounds": rounds, "takes": takes}
    found["results"] = bench.summary(times, "floor")
    found["ratios"] = {
        f"{mine} / {other}": bench.ratio(times[mine], times[other])
        for mine, other in RATIOS
        if {mine, other} <= times.keys()
    }
    return found


def peak_bytes(network: str, shape: tuple[int, ...], count: int, steps: int) -> Any:
    """The most bytes that a step of each network as it is holds at once, and their ratios to PGD-AT's."""
    peers = ("PGD-AT, plain", "ATENT, plain", "naive ATENT, plain")
    runs = {name: made(PEERS[name][0], "plain", network, shape, count, steps) for name in peers}
    found = {name: bench.peak_memory(run) for name, run in runs.items()}
    setting = {"network": network, "image": shape, "batch": count, "steps": steps}
    return {**setting, "bytes": found, "ratios": {name: round(found[name] / found[peers[0]], 3) for name in peers}}


def only_convolutions(count: int) -> Step:
    """ResNet-18's convolutions, forward and input gradient, channels-last: what no setting can spare in float32."""
    x, _ = bench.batch((3, 32, 32), count)
    model = bench.network("resnet-18", 3).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    given: list[tuple[nn.Module, Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda one, inputs, _: given.append((one, inputs[0].detach())))
    model(x)
    layers = list(given)

    def step() -> None:
        for convolution, image in layers:
            leaf = image.detach().requires_grad_()
            torch.autograd.grad(convolution(leaf).sum(), leaf)
        given.clear()

    return step


def input_passes(count: int, setting: str) -> Step:
    """One pass of ResNet-18 with the gradient of the images."""
    x, y = bench.batch((3, 32, 32), count)
    model = bench.network("resnet-18", 3).eval()
    speed.convert(model, setting)
    gradient = input_gradient(model, cross_entropy, y)
    return lambda: gradient(x)


def matrix_product(size: int) -> Step:
    side = torch.rand(size, size)
    return lambda: side @ side


def lower_bound(count: int, rounds: int) -> Any:
    """What ResNet-18's convolutions alone take in float32, beside whole passes and the speed of a matrix product."""
    fast = bench.LARGE_PAGES
    workers = {
        "plain pass": bench.Worker(input_passes, count, "plain"),
        "pass": bench.Worker(input_passes, count, "channels-last", environment=fast),
        "convolutions": bench.Worker(only_convolutions, count, environment=fast),
        "matrix product": bench.Worker(matrix_product, 2048, environment=fast),
    }
    found = bench.summary(bench.rounds(workers, rounds), "plain pass")
    for worker in workers.values():
        worker.stop()
    gflop = {"convolutions": 2 * 2 * GIGA_MULTIPLICATIONS * count, "matrix product": 2 * 2048**3 / 1e9}
    for name, work in gflop.items():
        found[name]["gflop_per_second"] = round(1e3 * work / found[name]["median_ms"], 1)
    return {"network": "resnet-18", "batch": count, "results": found}


def main(
    rounds: int = 3,
    takes: int = 3,
    threads: int = 1,
    out: Annotated[Path, typer.Option()] = Path("eval/results/bench-step.json"),
    picture: Annotated[Path, typer.Option()] = Path("docs/img/bench-step.png"),
) -> None:
    torch.set_num_threads(threads)
    mnist, cifar = (1, 28, 28), (3, 32, 32)
    report = {"what": "training steps in train mode, ℓ∞ eps 0.3, without the optimizer's", **bench.about()}
    report["steps"] = [
        measured("small-cnn", mnist, 128, 10, rounds, takes),
        measured("small-cnn", mnist, 128, 40, 1, takes),
        measured("resnet-18", cifar, 16, 10, 1, takes),
    ]
    report["memory"] = [peak_bytes("small-cnn", mnist, 128, 40), peak_bytes("resnet-18", cifar, 16, 40)]
    report["resnet-18 in float32"] = lower_bound(32, rounds)
    report["scaling"] = {
        "batch": [measured("small-cnn", mnist, count, 10, rounds, peers=FEW) for count in (16, 64, 256)],
        "image": [measured("resnet-20", (3, size, size), 16, 10, rounds, peers=FEW) for size in (16, 32, 64)],
    }
    bench.write(out, report)
    bench.bars(picture, "Training steps; without a word: as `atent train` runs them", report["steps"])


if __name__ == "__main__":
    typer.run(main)
