"""A quarter of an hour on one GPU: throughput, then ATENT against PGD-AT on ResNet-18, then AutoAttack.

    python eval/experiments/gpu.py --out gpu --data-root DATA                  13 minutes
    python eval/experiments/gpu.py --out gpu --rehearse --data-root DATA       the same on a CPU, at toy size

Every measurement is a line of OUT/lines.jsonl as soon as it is made; trainings resume at their last epoch and scores at
their last chunk, so that a second call goes on where the first was stopped. The clock of `--minutes` is the call's own.
Speed: a pass is a forward and a backward of one image. Operations are torch's own count, of each kind of pass apart:
an input gradient alone, weight gradients alone, or both. The share of the peak is that of a large matrix product of the
same dtype on the same device.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from atent_ext.attacks import langevin
from atent_ext.attacks.restarts import adversaries
from atent_ext.cli import exit
from atent_ext.core import registry
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import frozen, seeded
from atent_ext.core.norms import LINF
from atent_ext.core.version import __version__
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.experiments.runner import Runner
from atent_ext.models import speed
from atent_ext.objectives import ATENT, PGDAT
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder

EPS, STEPS = 8 / 255, 10
ANNEALED = [f"objective.step_size={EPS}", "objective.schedule=cosine"]


@dataclass(frozen=True)
class Size:
    """What is measured: networks with the images of a batch, settings, and the recipes' changes."""

    networks: dict[str, tuple[int, tuple[int, ...]]]
    speeds: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    product: int
    changes: tuple[str, ...]
    epochs: int | None
    protocol: str
    n: int


FULL = Size(
    networks={"small-cnn": (512, (1, 28, 28)), "resnet-18": (256, (3, 32, 32)), "wrn-28-10": (128, (3, 32, 32))},
    speeds=("plain", "compile", "graphs"),
    dtypes=(torch.float32, torch.bfloat16),
    product=8192,
    changes=("model.name=resnet-18", "mixed_precision=bf16", "speed=compile", "batch_size=256"),
    epochs=None,
    protocol="autoattack",
    n=500,
)
TOY = Size(
    networks={"digits-cnn": (4, (1, 8, 8))},
    speeds=("plain",),
    dtypes=(torch.bfloat16,),
    product=128,
    changes=(
        *("dataset=digits", "model={name: digits-cnn}", "augment=none", "examples=32", "validation.count=20"),
        "mixed_precision='no'",
    ),
    epochs=1,
    protocol="quick",
    n=4,
)


class Lines:
    """The measurements so far, and the time that is left."""

    def __init__(self, folder: Path, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.ends = folder / "lines.jsonl", time.monotonic() + 60 * minutes
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        self.known = {tuple(json.loads(line)["what"]) for line in lines}

    def left(self) -> float:
        return self.ends - time.monotonic()

    def add(self, what: tuple[str, ...], measure: Callable[[], dict[str, Any]], reserve: float = 0.0) -> None:
        """Measure and write a line, unless it is there or less than `reserve` seconds are left; a failure is a line."""
        if what in self.known or self.left() <= reserve:
            return
        try:
            found = measure()
        except (RuntimeError, ImportError, torch.OutOfMemoryError) as error:
            found = {"failed": str(error).strip().split("\n")[0][:200]}
        versions = {"atent-ext": __version__, "torch": torch.__version__}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **found, "device": device_name(), "versions": versions}) + "\n")
        print(*what, found, flush=True)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """The fastest of some runs, after two that are not counted."""
    times = []
    for _ in range(2 + repeats):
        _wait()
        began = time.perf_counter()
        run()
        _wait()
        times.append(time.perf_counter() - began)
    return min(times[2:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(size: int, dtype: torch.dtype) -> float:
    """Operations a second of a matrix product."""
    side = torch.rand(size, size, device=device()).to(dtype)
    return float(2 * size**3 / seconds(lambda: side @ side))


def plain_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """PGD as one writes it by hand."""
    moving = x + torch.empty_like(x).uniform_(-EPS, EPS)
    for _ in range(STEPS):
        leaf = moving.clamp(0, 1).detach().requires_grad_()
        gradient = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        moving = x + (leaf + EPS / 4 * gradient.sign() - x).clamp(-EPS, EPS)
    return moving.clamp(0, 1).detach()


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    import torchattacks

    adversary: Tensor = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=STEPS)(x, y)
    return adversary


def our_pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return adversaries(langevin.pgd(LINF, EPS, STEPS), model, x, y, cross_entropy)


def a_step(objective: Any) -> Callable[[nn.Module, Tensor, Tensor], None]:
    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        model.zero_grad()
        for term in objective(model, x, y):
            term.backward()

    return step


OBJECTIVES: dict[str, PGDAT | ATENT] = {
    "step of PGD-AT": PGDAT(eps=EPS, steps=STEPS, step_size=EPS / 4, inner_mode="train"),
    "step of ATENT": ATENT(eps=EPS, steps=STEPS, step_size=EPS / 4, project="every"),
}
JOBS: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    **{job: a_step(objective) for job, objective in OBJECTIVES.items()},
    "PGD": our_pgd,
    "torchattacks PGD": torchattacks_pgd,
    "plain loop": plain_pgd,
}


def throughput(job: str, name: str, how: str, dtype: torch.dtype, batch: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """Passes a second of a job on random images, with its peak memory and its share of a matrix product's speed."""
    with seeded(0):
        model = registry.resolve("model", name)().to(device())
        x, y = torch.rand(batch, *shape, device=device()), torch.randint(10, (batch,), device=device())
    model.train("step" in job)
    done = operations(job, model, x[:1])
    speed.convert(model, how)

    def run() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            JOBS[job](model, x, y)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    took = seconds(run)
    passes = batch * (STEPS + ("step" in job))
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    figures = {"batch": batch, "passes_a_second": round(passes / took), "peak_bytes": memory}
    return figures | {"operations_a_second": batch * done / took}


def operations(job: str, model: nn.Module, x: Tensor) -> int:
    """Operations that a job needs for the images `x`: of each pass those of the gradients that it computes.

    The last pass of a training step has no input gradient. Those before have none of the weights, but for iterates that
    ATENT keeps: one graph gives both.
    """
    objective = OBJECTIVES.get(job)
    if objective is None:
        return STEPS * of_a_pass(model, x, inputs=True)
    both = objective.terms - 1
    attacking, sharing = of_a_pass(model, x, inputs=True), of_a_pass(model, x, inputs=True, weights=True)
    return (STEPS - both) * attacking + both * sharing + of_a_pass(model, x, weights=True)


def of_a_pass(model: nn.Module, x: Tensor, inputs: bool = False, weights: bool = False) -> int:
    """Operations of a forward of the images `x` and a backward to them, to the weights, or to both."""
    with nullcontext() if weights else frozen(model), FlopCounterMode(display=False) as counter:
        model(x.detach().requires_grad_(inputs)).sum().backward()
    model.zero_grad()
    return int(counter.get_total_flops())


def seconds_of(run: RunFolder) -> float:
    """The seconds of all epochs of a training, whatever calls they were trained in."""
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return round(sum(json.loads(line)["seconds"] for line in lines), 1)


def training_recipe(method: str, size: Size, epochs: int) -> recipes.Recipe:
    changes = [*size.changes, *ANNEALED, f"epochs={size.epochs or epochs}"]
    return recipes.load(f"cifar10-linf-{method}-zoo", changes)


def plans(size: Size) -> Iterator[tuple[tuple[str, ...], Callable[[], dict[str, Any]]]]:
    for dtype in size.dtypes:
        named = str(dtype).removeprefix("torch.")
        yield ("peak", named), lambda dtype=dtype: {"operations_a_second": peak(size.product, dtype)}  # type: ignore[misc]
    for name, (batch, shape) in size.networks.items():
        for how in size.speeds:
            for dtype in size.dtypes:
                for job in JOBS:
                    what = "speed", name, how, str(dtype).removeprefix("torch."), job
                    yield what, lambda given=(job, name, how, dtype, batch, shape): throughput(*given)  # type: ignore[misc]


app = typer.Typer(add_completion=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="Folder of the lines, runs and reports.")] = Path("gpu"),
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    minutes: Annotated[float, typer.Option(help="When to stop beginning something new.")] = 13,
    epochs: Annotated[int, typer.Option(min=1, help="Of each training.")] = 12,
    dataset: Annotated[str, typer.Option(help="What is trained on.")] = "cifar10",
    rehearse: Annotated[bool, typer.Option(help="At toy size.")] = False,
) -> None:
    size = TOY if rehearse else FULL
    lines, runner = Lines(out, minutes), Runner(out, root=data_root)
    for what, measure in plans(size):
        lines.add(what, measure, reserve=60 * (minutes - 4) if not rehearse else 0.0)
    runs = {}
    for method in ("atent", "pgd-at"):
        recipe = training_recipe(method, size, epochs)
        if not rehearse:
            recipe = recipe.model_copy(update={"dataset": dataset})
        runs[method] = runner.train(recipe, f"runs/{method}")
        took = seconds_of(runs[method])
        lines.add(("training", method), lambda line={"seconds": took, "recipe": recipe.name}: line)  # type: ignore[misc]
    for method, run in runs.items():
        subject = runner.subject(run)

        def score(subject: Any = subject, method: str = method) -> dict[str, Any]:
            plan = load_protocol(size.protocol)
            report = runner.score(subject, plan, f"scores/{method}", n=size.n, batch_size=250, chunk=250)
            return {"n": report.n, "results": [result.model_dump(mode="json") for result in report.results]}

        lines.add(("score", method), score)


if __name__ == "__main__":
    exit.run(app)
