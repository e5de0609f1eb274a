"""Is ATENT a stronger attack than PGD (v2 Table 6)? The same kind of start, the same step, 20 steps, ℓ∞.

    python eval/experiments/attack_strength.py mnist --n 2000 --data-root DATA
    python eval/experiments/attack_strength.py cifar10 --n 128 --data-root DATA

`mnist`: the adversarially trained network that advertorch ships. `cifar10`: the undefended ResNet-18 that pyautoattack
ships, on DATA/cifar10_sample/cifar10_sample.npz. ATENT differs from PGD in its noise and in projecting at the last step
only; a third attack projects it at every step, which tells the two apart.
A cell is written when it is done, and a second call goes on from there. A pair compares the flags of PGD and one ATENT
on the same images by McNemar's exact test.
"""

import importlib.util
import json
import os
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import track

from atent_ext.attacks import langevin
from atent_ext.attacks.accuracy import robust_flags
from atent_ext.attacks.spec import Outcome, Setting
from atent_ext.core.norms import LINF
from atent_ext.core.schema import Threat
from atent_ext.core.statistics import paired
from atent_ext.core.version import __version__
from atent_ext.evaluation.report import result_of
from atent_ext.experiments.rows import cell
from atent_ext.storage import files
from atent_ext.subjects import weights_file

STEPS = 20
PAPER_STEP = 0.003

ATTACKS = {
    "PGD-20": langevin.pgd,
    "ATENT-20": partial(langevin.atent, project="last", schedule="constant"),
    "ATENT-20, projected every step": partial(langevin.atent, schedule="constant"),
}


@dataclass(frozen=True)
class Network:
    model: str
    data: str
    weights: str  # module:path of the checkpoint inside an installed package
    eps: dict[str, float]


NETWORKS = {
    "mnist": Network(
        "lenet5-advertorch",
        "mnist",
        "advertorch_examples:trained_models/mnist_lenet5_advtrained.pt",
        {text: float(text) for text in ("0.1", "0.2", "0.3", "0.35")},
    ),
    "cifar10": Network(
        "resnet-18-pyautoattack",
        "npz:{root}/cifar10_sample/cifar10_sample.npz",
        "pyautoattack:examples/model_test.pt",
        {f"{text}/255": float(text) / 255 for text in ("0.25", "0.5", "1", "2")},
    ),
}


def shipped(weights: str) -> Path:
    package, _, inside = weights.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return Path(spec.origin).parent / inside


def pairs(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PGD against each ATENT at equal eps, start and step: robust under one alone, and the exact p of such a split."""
    found = []
    for first in range(0, len(cells), len(ATTACKS)):
        pgd, *rivals = cells[first : first + len(ATTACKS)]
        found += [_pair(pgd, rival) for rival in rivals]
    return found


def _pair(pgd: dict[str, Any], rival: dict[str, Any]) -> dict[str, Any]:
    only_pgd, only_rival, p = paired(pgd["flags"], rival["flags"])
    return {key: pgd[key] for key in ("eps", "start", "step_size", "n")} | {
        "attack": rival["attack"],
        "robust to PGD-20": pgd["correct"],
        "robust to it": rival["correct"],
        "robust to PGD-20 alone": only_pgd,
        "robust to it alone": only_rival,
        "mcnemar_p": p,
    }


def main(
    network: str,
    n: Annotated[int, typer.Option()] = 2000,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option()] = 100,
    data_root: Annotated[Path | None, typer.Option()] = None,
    out: Annotated[Path | None, typer.Option()] = None,
) -> None:
    chosen, root = NETWORKS[network], data_root or Path(os.environ.get("ATENT_DATA", "."))
    target = out or Path(__file__).parents[1] / "results" / f"attack-strength-{network}.json"
    subject = weights_file.from_weights(
        shipped(chosen.weights),
        chosen.model,
        chosen.data.format(root=root),
        Threat(norm="Linf", eps=0.0),
        root,
    )
    about = {
        **subject.about.model_dump(include={"name", "model", "weights_sha256", "data_note"}),
        "data": network,
        "split": f"test, the first {n}",
        "threat": "Linf",
        "steps": STEPS,
        "noise of ATENT": langevin.atent(LINF, 0.1, STEPS).noise,
        "seed": seed,
        "batch_size": batch_size,
        "versions": {"atent-ext": __version__, "torch": torch.__version__},
    }
    old = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    cells: list[dict[str, Any]] = old["cells"] if {k: v for k, v in old.items() if k in about} == about else []
    split = subject.test.take(n)
    every = list(product(chosen.eps.items(), ("uniform", "corner"), (None, PAPER_STEP), ATTACKS.items()))
    for (text, eps), start, step, (name, build) in track(every[len(cells) :], description=network):
        kernel = build(LINF, eps, STEPS, step, start=start)
        began = time.perf_counter()
        setting = Setting(Threat(norm="Linf", eps=eps), seed, batch_size)
        flags = robust_flags(subject.model, split, kernel, setting)
        settings = {"eps": text, "start": start, "step_size": kernel.step_size}
        outcome = Outcome("attack", name, settings, flags, time.perf_counter() - began)
        cells.append(cell(result_of(outcome)))
        files.write(target, json.dumps(about | {"pairs": pairs(cells), "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
