"""Thirteen architectures that are not in the registry, from source to report, as Python objects and as programs (.pt2).

    python eval/stress/architectures.py [--only NAME ...] [--out eval/results/architectures.json]

Each network has fresh weights and 16 random inputs, whose labels are its own predictions; `quick` attacks it with an
eps that leaves some right. The program that `atent export` writes must give the network's logits to 1e-5 and the same
flags. Needs timm (`pip install timm`) for some; exits with code 1 where one differs.
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import torchvision
import typer
from torch import Tensor, nn

import atent_ext
from atent_ext.core.model_state import seeded
from atent_ext.core.outputs import adapted
from atent_ext.models import programs
from atent_ext.storage import files

INPUTS = 16
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A network, and the shape of one input."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


class WithBuffers(nn.Module):
    """A network that normalises its images by buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        self.layers(torch.zeros(2, 3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers((x - self.mean) / self.std)
        return logits


class TwoResults(nn.Module):
    """A network that returns its features beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 8))
        self.last = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.last(features.flatten(1)), features


def tabular() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 3))


def audio() -> nn.Module:
    layers = [nn.Conv1d(1, 8, 9, stride=4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 9, stride=4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 5))


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm as library

        network: nn.Module = library.create_model(name, pretrained=False, **options)
        return network

    return make


def vision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, **options)


CASES = {
    "regnet-y-400mf, with BatchNorm": Case(vision("regnet_y_400mf", num_classes=10), (3, 64, 64)),
    "nf-resnet-26, without BatchNorm": Case(timm("nf_resnet26", num_classes=10), (3, 64, 64)),
    "vit-tiny-patch16": Case(timm("vit_tiny_patch16_224", img_size=64, num_classes=10), (3, 64, 64)),
    "swin-t": Case(vision("swin_t", num_classes=10), (3, 64, 64)),
    "convnext-atto": Case(timm("convnext_atto", num_classes=10), (3, 64, 64)),
    "mobilenet-v3-small": Case(vision("mobilenet_v3_small", num_classes=10), (3, 64, 64)),
    "efficientnet-b0": Case(vision("efficientnet_b0", num_classes=10), (3, 64, 64)),
    "mlp on tabular input": Case(tabular, (20,)),
    "1-d convolution on audio": Case(audio, (1, 800)),
    "normalisation in buffers": Case(WithBuffers, (3, 16, 16)),
    "a tuple of results": Case(TwoResults, (1, 14, 14)),
    "binary, one logit": Case(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1)),
        (1, 8, 8),
    ),
    "resnet-18, 1,000 classes of 224 x 224": Case(vision("resnet18"), (3, 224, 224)),
}
SMALL = tuple(name for name, case in CASES.items() if case.make in (tabular, audio) or case.shape[-1] < 20)
"""Those that the suite runs."""


def checked(name: str) -> dict[str, Any]:
    """What one architecture gives: the largest difference of logits, and the flags by both routes."""
    case, start = CASES[name], time.perf_counter()
    with seeded(0), warnings.catch_warnings(), TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # of the libraries that build the networks
        network = case.make().eval()
        x = torch.rand(INPUTS, *case.shape)
        with torch.no_grad():
            logits = adapted(network, x).network(x)
        program = programs.export(network, x, Path(folder, "model.pt2"))
        with torch.no_grad():
            difference = float((program.network(x) - logits).abs().max() / logits.abs().max().clamp_min(1))
        labels = logits.argmax(1)
        eps, own = weakened(network, x, labels)
        theirs = atent_ext.evaluate(program.network, x, labels, norm="Linf", eps=eps, protocol="quick")
    flags = [[result.flags for result in report.results] for report in (own, theirs)]
    return {
        "shape": list(case.shape),
        "classes": program.classes,
        "operators": program.operators,
        "notes": list(program.notes),
        "difference": difference,
        "eps": eps,
        "right": own.results[-1].correct,
        "same_flags": flags[0] == flags[1],
        "seconds": round(time.perf_counter() - start, 1),
    }


def weakened(network: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, Any]:
    """An eps that leaves some of the inputs right, and the report under it."""
    for power in range(2, 16):
        eps = 2.0**-power
        report = atent_ext.evaluate(network, x, labels, norm="Linf", eps=eps, protocol="quick")
        if report.results[-1].correct:
            break
    return eps, report


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names, or the beginnings of some.")] = None,
    out: Annotated[Path, typer.Option()] = Path("eval/results/architectures.json"),
) -> None:
    chosen = [name for name in CASES if not only or any(name.startswith(start) for start in only)]
    earlier = json.loads(out.read_text())["architectures"] if only and out.exists() else {}
    results = dict(earlier)
    for name in chosen:
        results[name] = checked(name)
        print(name, results[name], flush=True)
    ordered = {name: results[name] for name in CASES if name in results}
    versions = {"atent-ext": atent_ext.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    files.write(out, json.dumps({"inputs": INPUTS, "architectures": ordered, "versions": versions}, indent=1) + "\n")
    good = [one["right"] > 0 and one["same_flags"] and one["difference"] <= TOLERANCE for one in results.values()]
    raise SystemExit(not all(good))


if __name__ == "__main__":
    typer.run(main)
