"""The protocol `fast` beside AutoAttack: accuracy on the same images, passes and seconds, network by network.

    python eval/benchmarks/fast.py --data-root DATA
    python eval/benchmarks/fast.py --network mnist-linf-mart --data-root DATA
    python eval/benchmarks/fast.py --network mnist-linf-mart --n 500 --data-root DATA

Every network whose weights are here or in an installed package is measured twice.

pairs: both attack the first 100 images (a ResNet-18: 16) in one batch, with seed 0. A pass is one forward of one image,
counted by `core.passes.Counted`. Seconds are those of the processor, on one thread; other work changes them little.
longer: pairs of another number of images, by --n, in batches of 100; they are no part of the bias.
cards: `fast` attacks the images that AutoAttack broke when the network's card was made, of up to 1,000. What it
leaves of them bounds how many it leaves more than AutoAttack; the images that AutoAttack left are not attacked.

A row is written as soon as it is measured, and another call goes on from there; other attacks are measured anew. The
bias that `atent eval --protocol fast` prints is eval/protocols/fast.json, which is written from the rows of networks of
which AutoAttack leaves images, with data sets and threat models. The stages
were chosen partly by such rows ("tuned"), so that the bias on other networks and images may be larger.
"""

import importlib.util
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from attacks import CIFAR, subject

from atent_ext.attacks.spec import Setting
from atent_ext.core import registry
from atent_ext.core.passes import Counted
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.run import run_protocol
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.storage import files
from atent_ext.subjects import weights_file, zoo
from atent_ext.submissions.cards import read_card

RESULTS = Path(__file__).parents[1] / "results" / "fast.json"
LENET = {
    f"advertorch-lenet5-{kind}": f"advertorch_examples:trained_models/mnist_lenet5_{short}trained.pt"
    for kind, short in (("adversarial", "adv"), ("clean", "cln"))
}
AUTOATTACK = Protocol(
    name="autoattack", description="AutoAttack alone.", attacks=({"attack": "clean"}, {"attack": "autoattack"})
)
CIFAR_MODEL, CIFAR_THREAT = "resnet-18-pyautoattack", Threat(norm="Linf", eps=8 / 255)
Row = dict[str, Any]


def names() -> list[str]:
    """Networks for digits first, the others by how soon AutoAttack is done."""
    digits = [name for name in zoo.names() if "digits" in name]
    weak = ["mnist-linf-sgd", "mnist-linf-entropy-sgd", "advertorch-lenet5-clean", CIFAR]
    small = [
        "mnist-linf-mma",
        "mnist-linf-mart",
        "mnist-linf-trades",
        "mnist-l2-atent",
        "advertorch-lenet5-adversarial",
    ]
    first = list(dict.fromkeys([*digits, *weak, *small]))
    return [*first, *(name for name in zoo.names() if name not in first)]


def shipped(weights: str) -> Path:
    """The path of a checkpoint, module:path, inside an installed package."""
    package, _, inside = weights.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed")
    return Path(spec.origin).parent / inside


def loaded(name: str, root: Path) -> Subject:
    """The network on its test images, under its card's threat model."""
    if name in LENET:
        threat = Threat(norm="Linf", eps=0.3)
        return weights_file.from_weights(shipped(LENET[name]), "lenet5-advertorch", "mnist", threat, root)
    if name == CIFAR:
        data = f"npz:{root}/cifar10_sample/cifar10_sample.npz"
        weights = shipped("pyautoattack:examples/model_test.pt")
        return weights_file.from_weights(
            weights, "resnet-18-pyautoattack", data, Threat(norm="Linf", eps=8 / 255), root
        )
    return subject(name, root)


def measure(name: str, protocol: Protocol, root: Path, n: int | None = None) -> Row:
    """A pair's row: one network under one protocol, on `n` images [default: 100, a ResNet-18: 16]."""
    n = n or (16 if name == CIFAR else 100)
    chosen = loaded(name, root)
    split = chosen.test.take(n)
    counted = Counted(prepare(chosen.model, split.images, "channels-last").model, backward=True)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = run_protocol(counted, split, protocol, Setting(chosen.threat, 0, min(n, 100)))
    return {
        **about(name, chosen, protocol, n),
        "clean": int(outcomes[0].flags.sum()),
        "left": int(outcomes[-1].flags.sum()),
        "left_after": dict(outcomes[1].robust_after),
        "passes": round(counted.forward_passes / n, 1),
        "backward": round(counted.backward_passes / n, 1),
        "seconds": round(time.process_time() - began, 2),
        "flags": "".join("01"[int(flag)] for flag in outcomes[-1].flags),
    }


def measure_card(name: str, protocol: Protocol, root: Path) -> Row:
    """A card's row: what `fast` leaves of the images that AutoAttack broke."""
    chosen, report = loaded(name, root), card_of(name)
    clean, result = report.of_kind("clean"), report.autoattack
    if clean is None or result is None:
        raise SystemExit(f"the card of {name} has no AutoAttack")
    rows = (clean.robust() & ~result.robust()).nonzero().flatten()
    split = Split(chosen.test.images[rows], chosen.test.labels[rows])
    network = prepare(chosen.model, split.images, "channels-last").model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcome = protocol.attacks[1].run(network, split, Setting(chosen.threat, 0, 100))
    left = rows[outcome.flags].tolist()
    found = {"broken": len(rows), "autoattack": result.correct, "left": left, "left_after": dict(outcome.robust_after)}
    found |= {"points": round(100 * len(left) / report.n, 4)}
    top = result.interval95_wilson[1]
    inside = (result.correct + len(left)) / report.n <= top
    return {**about(name, chosen, protocol, report.n), **found, "below_upper_end": inside}


def card_of(name: str) -> Report:
    paths = sorted(registry.folder("card").rglob(f"{name}.json"))
    report = read_card(paths[0]).report if paths else None
    if report is None:
        raise SystemExit(f"{name} has no card")
    return report


def about(name: str, chosen: Subject, protocol: Protocol, n: int) -> Row:
    return {
        "network": name,
        "norm": chosen.threat.norm,
        "eps": chosen.threat.eps,
        "weights_sha256": chosen.about.weights_sha256,
        "n": n,
        "protocol": protocol.name,
        "attacks": protocol.model_dump(mode="json")["attacks"],
        "versions": {"atent-ext": __version__, "torch": torch.__version__},
    }


# ---- the file


def read(path: Path) -> dict[str, list[Row]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"pairs": [], "cards": []}


def keep(
    path: Path,
    part: str,
    name: str,
    protocol: Protocol,
    measured: Callable[[str, Protocol, Path], Row],
    root: Path,
    n: int | None = None,
) -> None:
    """Measure a row unless it is there, and write it at once, instead of one of other attacks or of another `n`."""
    attacks = protocol.model_dump(mode="json")["attacks"]
    known = [row for row in read(path).get(part, []) if (row["network"], row["attacks"]) == (name, attacks)]
    if any(n in (None, row["n"]) for row in known):
        return
    row = measured(name, protocol, root)
    rows = {part: [], **read(path)}
    rows[part] = [one for one in rows[part] if (one["network"], one["protocol"]) != (name, protocol.name)] + [row]
    files.write(path, json.dumps(rows, indent=1) + "\n")
    print(part, name, protocol.name, {key: row[key] for key in ("left", "left_after")}, row.get("seconds"), flush=True)


def summary(rows: dict[str, list[Row]], protocol: Protocol) -> Row | None:
    """What eval/protocols/fast.json says; None if nothing was measured of these attacks.

    Networks of which AutoAttack leaves no image are left out of the bias: there every strong attack leaves nothing.
    """
    attacks = protocol.model_dump(mode="json")["attacks"]
    cards = [row for row in rows["cards"] if row["attacks"] == attacks]
    pairs = {row["network"]: row for row in rows["pairs"] if row["attacks"] == attacks}
    both = [
        (pairs[row["network"]], row)
        for row in rows["pairs"]
        if row["protocol"] == "autoattack" and row["network"] in pairs
    ]
    carded = {row["network"] for row in cards}
    counted = [row for row in cards if row["autoattack"]]
    counted += [
        f | {"points": 100 * (f["left"] - a["left"]) / f["n"]}
        for f, a in both
        if a["left"] and f["network"] not in carded
    ]
    if not (counted and both):
        return None
    points = [row["points"] for row in counted]
    where = Counter((card_of(row["network"]).data, row["norm"], row["eps"]) for row in counted)
    return {
        "stages": attacks[1]["stages"],
        "measured": [
            {"dataset": dataset, "threat": {"norm": norm, "eps": eps}, "networks": count}
            for (dataset, norm, eps), count in sorted(where.items())
        ],
        "networks": len(counted),
        "images": sum(row["n"] for row in counted),
        "mean": round(sum(points) / len(points), 4),
        "worst": max(points),
        "pairs": len(both),
        "passes": round(max(f["passes"] / a["passes"] for f, a in both), 4),
        "seconds": round(max(f["seconds"] / a["seconds"] for f, a in both), 4),
        "tuned": True,
    }


def main(
    network: Annotated[list[str] | None, typer.Option()] = None,
    only: Annotated[str | None, typer.Option(help="autoattack, fast or cards [default: all]")] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Longer pairs, of so many images, and nothing else.")] = None,
    data_root: Annotated[Path | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option()] = RESULTS,
) -> None:
    torch.set_num_threads(1)
    root, fast = data_root or Path(os.environ.get("ATENT_DATA", ".")), load_protocol("fast")
    if n and only == "cards":
        raise SystemExit("--n is for pairs; leave out --only cards")
    pair = partial(measure, n=n)
    part = "longer" if n else "pairs"
    for name in network or names():
        if not n and only in (None, "cards") and name != CIFAR:  # AutoAttack breaks all 796 images of that one
            keep(out, "cards", name, fast, measure_card, root)
        if only in (None, "fast"):
            keep(out, part, name, fast, pair, root, n)
        if only in (None, "autoattack"):
            keep(out, part, name, AUTOATTACK, pair, root, n)
    if (known := summary(read(out), fast)) is not None:
        files.write(registry.folder("protocol") / "fast.json", json.dumps(known, indent=1) + "\n")
        print({key: value for key, value in known.items() if key != "stages"})


if __name__ == "__main__":
    typer.run(main)
