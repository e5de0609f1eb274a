"""Thirteen architectures that are not in the registry, from source to report by each route, and to a card.

    python eval/stress/architectures.py [--only NAME ...] [--out eval/results/architectures.json]

Routes: the Python object (`atent_ext.evaluate`), its code (FILE.py:callable with a weights file), the program that is
exported from it (.pt2), and the submission of that program (`atent verify`). Networks for MNIST or digits are scored
on the first 16 test images, to which they are fitted first; the others on random inputs, for which `verify` gets
`--dataset npz:FILE`. The labels are the network's own predictions; `quick` attacks with an eps that leaves some right,
not all. Every route must give the object's logits to 1e-5 and its flags; only a card of registry data may go on the
board. Exits with code 1 where a route differs.

A network that the file of results has already is not measured again. Needs timm for some, and MNIST in $ATENT_DATA.
"""

import importlib
import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import torchvision
import typer
from torch import Tensor, nn
from typer.testing import CliRunner

import atent_ext
from atent_ext import subjects
from atent_ext.cli import app
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.model_state import seeded
from atent_ext.core.outputs import adapted
from atent_ext.data import datasets
from atent_ext.evaluation import scoring
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.leaderboard import check
from atent_ext.models import programs
from atent_ext.storage import files
from atent_ext.submissions import cards
from atent_ext.submissions.folder import read

INPUTS = 16
TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit (or 1)."""
_STEPS, _SURE = 300, 0.03
"""Steps of the fit, at most, and the cross-entropy at which it stops."""
_WRITTEN = {"authors": "eval/stress/architectures.py", "license": "MIT", "link": "", "venue": "Unpublished"}


@dataclass(frozen=True)
class Case:
    """A network, and its data: the name of a data set, or the shape of one random input with the number of classes."""

    make: Callable[[], nn.Module]
    data: str | tuple[int, ...]
    classes: int = 10


# ---- the networks


class OnGrey(nn.Module):
    """A network for three channels, on images of one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.repeat(1, 3, 1, 1))


class WithBuffers(nn.Module):
    """A network that normalises its images by buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        self.layers(torch.zeros(2, 3, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers((x - self.mean) / self.std)


class TwoResults(nn.Module):
    """A network that returns its features beside its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.SiLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 8))
        self.last = nn.Linear(8 * 9, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.last(features.flatten(1)), features


def tabular() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 3))


def audio() -> nn.Module:
    layers = [nn.Conv1d(1, 8, 9, stride=4), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 16, 9, stride=4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(64, 5))


def binary() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))


def swin() -> nn.Module:
    """Torchvision's Swin for images of 8 x 8, small enough that its windows are shifted."""
    return OnGrey(torchvision.models.SwinTransformer([1, 1], 24, [2, 2], [2, 4], [4, 4], num_classes=10))


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: importlib.import_module("timm").create_model(name, num_classes=10, in_chans=1, **options)


def mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    made = MlpMixer(num_classes=1000, img_size=224, patch_size=32, num_blocks=2, embed_dim=64)
    nn.init.normal_(made.head.weight, std=0.1)  # timm begins with zeros
    return made


def grey(name: str) -> Callable[[], nn.Module]:
    return lambda: OnGrey(torchvision.models.get_model(name, weights=None, num_classes=10))


CASES = {
    "mlp on tabular input": Case(tabular, (20,), 3),
    "1-d convolution on audio": Case(audio, (1, 800), 5),
    "normalisation in buffers": Case(WithBuffers, (3, 16, 16), 5),
    "binary, one logit": Case(binary, (1, 8, 8), 2),
    "a tuple of results": Case(TwoResults, "digits"),
    "regnet-y-400mf, with BatchNorm": Case(grey("regnet_y_400mf"), "mnist"),
    "nf-resnet-26, without BatchNorm": Case(timm("nf_resnet26"), "mnist"),
    "vit-tiny, patches of 2": Case(timm("vit_tiny_patch16_224", img_size=8, patch_size=2), "digits"),
    "swin, shifted windows of 4": Case(swin, "digits"),
    "convnext-atto, patches of 1": Case(timm("convnext_atto", patch_size=1), "digits"),
    "mobilenet-v3-small": Case(grey("mobilenet_v3_small"), "digits"),
    "efficientnet-b0": Case(lambda: torchvision.models.efficientnet_b0(num_classes=10), (3, 32, 32)),
    "mlp-mixer, 1,000 classes of 224 x 224": Case(mixer, (3, 224, 224), 1000),
}
SMALL = tuple(CASES)[:5]
"""Those that the suite runs."""


def network(name: str) -> nn.Module:
    """What FILE.py:callable of the code's route names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that build the networks
        return CASES[name].make()


# ---- the routes


@dataclass(frozen=True)
class Original:
    """A network in eval mode, its inputs and logits, the name of the data, and the number of classes if that is own."""

    network: nn.Module
    x: Tensor
    logits: Tensor
    data: str
    classes: int | None

    @property
    def labels(self) -> Tensor:
        """The network's own predictions."""
        return self.logits.argmax(1)

    def scored(self) -> Report:
        """The report of the Python object, with an eps that leaves some of the inputs right, but not all."""
        eps = _eps(self.network, self.x, self.labels)
        for factor in (1, 1.5, 0.7, 2, 0.5, 3, 0.3, 4, 0.2):
            setting = {"norm": "Linf", "eps": factor * eps, "protocol": "quick", "speed": "plain"}
            report = atent_ext.evaluate(self.network, self.x, self.labels, **setting)
            if 0 < report.results[-1].correct < INPUTS:
                return report
        raise AssertionError(f"no radius about {eps} leaves some of the inputs right, and some not")

    def load(self, reference: str, eps: float, **given: Any) -> scoring.Subject:
        """The subject of a source on these data."""
        return subjects.load(reference, dataset=self.data, eps=eps, classes=self.classes, **given)

    def differs(self, network: nn.Module) -> float:
        """The largest difference to the logits of another network."""
        return float((_logits(network, self.x) - self.logits).abs().max() / self.logits.abs().max().clamp_min(1))


def original(name: str, folder: Path) -> Original:
    """A network with fresh weights, fitted where the labels are not its own predictions but a data set's."""
    case, made = CASES[name], network(name).eval()
    if isinstance(case.data, str):
        test = datasets.load(case.data).test[:INPUTS]
        _fit(made, test.images, test.labels)
        return Original(made, test.images, _logits(made, test.images), case.data, None)
    x = torch.rand(INPUTS, *case.data)
    logits = _logits(made, x)
    np.savez(folder / "own.npz", x_test=x.numpy(), y_test=logits.argmax(1).numpy())
    return Original(made, x, logits, f"npz:{folder / 'own.npz'}", case.classes)


def _logits(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return adapted(network, x).network(x)


def _fit(network: nn.Module, x: Tensor, labels: Tensor) -> None:
    """Give BatchNorm the statistics of the inputs, and take steps of Adam in eval mode until all labels are right."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(x)
    shaped, optimizer = adapted(network.eval(), x).network, torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(shaped(x), labels).mean()
        if float(loss.detach()) < _SURE:
            return
        loss.backward()
        optimizer.step()
    raise AssertionError(f"the cross-entropy is not {_SURE} after {_STEPS} steps")


def _eps(network: nn.Module, x: Tensor, labels: Tensor) -> float:
    """What would break the median input if the network were linear."""
    x = x.clone().requires_grad_()
    gap = -margin(adapted(network, x).network(x), labels)
    (gradient,) = torch.autograd.grad(gap.sum(), x)
    return float(f"{float((gap.detach() / gradient.flatten(1).abs().sum(1)).median()):.1g}")


def checked(name: str) -> dict[str, Any]:
    """What one architecture gives: by each route the difference of its logits, and whether its flags are the same."""
    with seeded(0), TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = time.perf_counter()
        first = original(name, folder)
        report = first.scored()
        seconds = time.perf_counter() - start
        routes = {
            "code": _timed(lambda: _by_code(name, first, report, folder)),
            "program": _timed(lambda: _by_program(first, report, folder / "model.pt2")),
            "card": _timed(lambda: _by_verify(first, report, folder)),
        }
    return {
        "data": first.data if first.classes is None else f"random {tuple(first.x.shape[1:])}",
        "classes": first.logits.shape[1],
        "eps": report.threat.eps,
        "clean": report.results[0].correct,
        "right": report.results[-1].correct,
        "seconds": round(seconds, 1),
        "routes": routes,
    }


def _by_code(name: str, first: Original, report: Report, folder: Path) -> dict[str, Any]:
    torch.save(first.network.state_dict(), folder / "weights.pth")
    reference = f"{Path(__file__).resolve()}:network"
    made = {"weights": folder / "weights.pth", "arguments": {"name": name}}
    return _scored(first, report, first.load(reference, report.threat.eps, **made))


def _by_program(first: Original, report: Report, path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = programs.export(first.network, first.x, path)
    about = {"operators": program.operators, "notes": list(program.notes)}
    return _scored(first, report, first.load(str(path), report.threat.eps)) | about


def _scored(first: Original, report: Report, subject: scoring.Subject) -> dict[str, Any]:
    theirs = scoring.score(subject, load_protocol("quick"), n=INPUTS, speed="plain")
    return {"difference": first.differs(subject.model), "same_flags": _same(report, theirs)}


def _by_verify(first: Original, report: Report, folder: Path) -> dict[str, Any]:
    """The program as a submission, whose card is put into a registry to see what that says of the data."""
    source = {"dataset": first.data, "eps": report.threat.eps, "classes": first.classes}
    sent = subjects.new(str(folder / "model.pt2"), folder / "sent", _WRITTEN, source=source)
    data = ["--dataset", first.data] if first.classes else []
    command = ["verify", str(sent), "--n", str(INPUTS), "--protocol", "quick", "--speed", "plain", *data]
    done = CliRunner().invoke(app.app, command, catch_exceptions=False)
    if done.exit_code:
        return {"difference": None, "same_flags": False, "failed": done.output.strip().splitlines()[-1]}
    card = cards.read_card(folder / "sent.card.json")
    assert card.report is not None
    cards.write_card(card, folder / "registry" / "cards" / card.place)
    off_board = any("data set" in line for line in check.check(folder / "registry"))
    test = first.load(str(folder / "model.pt2"), report.threat.eps).test[:INPUTS]
    return {
        "difference": first.differs(read(sent, None).network),
        "same_flags": _same(report, card.report),
        "data": card.report.data,
        "has_digest": card.report.data_sha256 == datasets.digest(test.images, test.labels),
        "off_board": off_board,
        "signs": [sign.name for sign in card.signs if sign.found],
    }


def _same(report: Report, other: Report) -> bool:
    """Whether the attacks of a report gave the same flags in another one, which may have more of them."""
    theirs = {result.attack: result.flags for result in other.results}
    return all(theirs[result.attack] == result.flags for result in report.results if result.kind != "worst_case")


def _timed(route: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.perf_counter()
    return route() | {"seconds": round(time.perf_counter() - start, 1)}


def good(result: Mapping[str, Any]) -> bool:
    """Whether every route gave the same, and a card that is where it should be."""
    same = all(one["same_flags"] and one["difference"] <= TOLERANCE for one in result["routes"].values())
    card = result["routes"]["card"]
    return same and result["right"] > 0 and card["has_digest"] and card["off_board"] is ("random" in result["data"])


def main(
    only: Annotated[list[str] | None, typer.Option(help="Names, or the beginnings of some.")] = None,
    out: Annotated[Path, typer.Option()] = Path("eval/results/architectures.json"),
    anew: Annotated[bool, typer.Option("--anew", help="Measure what is there, too.")] = False,
) -> None:
    versions = {"atent-ext": atent_ext.__version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    results = json.loads(out.read_text())["architectures"] if out.exists() else {}
    chosen = [name for name in CASES if not only or any(name.startswith(start) for start in only)]
    for name in [name for name in chosen if anew or name not in results]:
        results[name] = checked(name)
        print(name, results[name], flush=True)
        ordered = {name: results[name] for name in CASES if name in results}
        content = {"inputs": INPUTS, "tolerance": TOLERANCE, "architectures": ordered, "versions": versions}
        files.write(out, json.dumps(content, indent=1) + "\n")
    raise SystemExit(not all(good(results[name]) for name in chosen))


if __name__ == "__main__":
    typer.run(main)
