"""The images that AutoAttack left when a card was made, attacked by annealed ATENT: what does it break of them?

What it breaks was chosen by what one seed of AutoAttack missed. So AutoAttack attacks it again with other draws.

    python eval/benchmarks/beyond_autoattack.py --network mnist-linf-trades --passes 1000 --data-root DATA

The attacked network is one that `models.speed.prepare` makes. An adversary counts if it lies in ball and box, and the
network as it was published, in float32, is right on the image and wrong on the adversary. A finished network is a line
of eval/results/attacks-beyond.jsonl; `autoattack_again` says of each broken image which of `autoattack_seeds` break it.
Every batch is kept as soon as it is done, and the same call goes on from there; it also completes a line without
`autoattack_again`. Adversaries, if there are any, are written to eval/results/beyond/, for `atent adversaries add`.
"""

import json
import os
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from attacks import read, subject
from rivals import Case, annealed
from torch import Tensor, nn

from atent_ext.attacks import autoattack, uphill
from atent_ext.attacks.accuracy import flags_under
from atent_ext.cli import exit
from atent_ext.core import compat, registry
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.passes import Counted
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.data.datasets import Split
from atent_ext.evaluation.adversaries import packed
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.storage import files
from atent_ext.subjects import zoo
from atent_ext.submissions import evidence
from atent_ext.submissions.cards import Card

BATCH = 64
SEEDS = [1, 2, 3, 4, 5]
"""Of AutoAttack on what was broken. Chunk k of a card had seed k, in another batch, so that every draw differs."""
RESULTS = Path(__file__).parents[1] / "results" / "attacks-beyond.jsonl"
Arrays = dict[str, Tensor]
Line = dict[str, Any]


def left(card: Card) -> Tensor:
    """The positions (k,) of the test images that AutoAttack left. Raises BadInput for a card without AutoAttack."""
    report = evidence.scored(card)
    clean, attacked = report.of_kind("clean"), report.autoattack
    if clean is None or attacked is None:
        message = f"the card of {card.submission.name} has no AutoAttack; take one that has"
        raise BadInput(message, code="missing", field="network")
    return (clean.robust() & attacked.robust()).nonzero().flatten()


def attack(fast: nn.Module, network: nn.Module, split: Split, threat: Threat, passes: int, seed: int) -> Arrays:
    """The adversaries of a batch that count (x_adv), of which of its images (rows), and what it cost (price)."""
    counted, began = Counted(fast, backward=True), time.process_time()
    case = Case(norm_called(threat.norm), threat.eps, passes, seed)
    build = annealed(case)
    rows, images = [torch.zeros(0, dtype=torch.long)], [split.images[:0]]

    def found(broken: Tensor, adversaries: Tensor) -> None:
        rows.append(broken)
        images.append(adversaries)

    def attacked(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return build(counted, x, y)  # `network` checks its adversaries

    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags_under(attacked, network, split, case.norm, case.eps, len(split), found=found)
    price = [counted.forward_passes, counted.backward_passes, time.process_time() - began]
    return {"x_adv": torch.cat(images), "rows": torch.cat(rows), "price": torch.tensor(price, dtype=torch.float64)}


def batches(
    fast: nn.Module, network: nn.Module, split: Split, threat: Threat, passes: int, seed: int, kept: Path
) -> Sequence[Arrays]:
    """What `attack` says of every batch of BATCH images, with seed + its number; done ones are read from `kept`."""
    done = []
    for number, start in enumerate(range(0, len(split), BATCH)):
        path, part = kept / f"{number:04d}.npz", slice(start, start + BATCH)
        if not path.is_file():
            batch = Split(split.images[part], split.labels[part])
            files.write(path, packed(**attack(fast, network, batch, threat, passes, seed + number)))
        with np.load(path, allow_pickle=False) as archive:
            done.append({name: torch.from_numpy(archive[name]) for name in archive.files})
        done[-1]["rows"] += start
        found = sum(len(one["rows"]) for one in done)
        print(f"{min(start + BATCH, len(split))} of {len(split)} images: {found} broken", flush=True)
    return done


def about(card: Card, passes: int, price: Sequence[float], n: int) -> Line:
    """What a line says of the card, of the attack and of its price, of an image in the mean."""
    report, (restarts, steps) = evidence.scored(card), uphill.divided(passes)
    return {
        "norm": report.threat.norm,
        "eps": report.threat.eps,
        "card_n": report.n,
        "autoattack": len(left(card)),
        "restarts": restarts,
        "steps": steps,
        "batch": BATCH,
        "mean_passes": round(price[0] / n, 1),
        "mean_backward": round(price[1] / n, 1),
        "cpu_seconds": round(price[2], 1),
        "versions": {"atent-ext": __version__, "torch": torch.__version__},
    }


def adversaries(line: Mapping[str, Any], out: Path) -> Path:
    """The file of a line's adversaries; its name says how many images were attacked if more were left."""
    part = f"-n{line['n']}" if line["n"] < line["autoattack"] else ""
    return out.parent / "beyond" / f"{line['network']}-{line['passes']}{part}-{line['seed']}.npz"


def measure(key: Line, card: Card, chosen: Subject, rows: Tensor, out: Path) -> Line:
    """Attack the test images `rows`, write the adversaries, and append the line, which is returned."""
    split = Split(chosen.test.images[rows], chosen.test.labels[rows])
    passes, seed, weights = key["passes"], key["seed"], key["weights_sha256"][:8]
    kept = out.parent / "beyond" / f"{key['network']}-{passes}-{len(rows)}-{seed}-{weights}"
    fast = prepare(chosen.model, split.images, "channels-last").model
    done = batches(fast, chosen.model, split, chosen.threat, passes, seed, kept)
    broken = rows[torch.cat([one["rows"] for one in done])]
    price = torch.stack([one["price"] for one in done]).sum(0).tolist()
    line = {**key, **about(card, passes, price, len(rows)), "broken": broken.tolist()}
    if len(broken):
        images = torch.cat([one["x_adv"] for one in done])
        files.write(adversaries(line, out), packed(x_adv=images, y=chosen.test.labels[broken], index=broken))
    with out.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")
    shutil.rmtree(kept)
    return line


def again(chosen: Subject, rows: Sequence[int]) -> dict[str, list[int]]:
    """Of each of these test images the SEEDS with which AutoAttack, as published, breaks it; they are its one batch."""
    how: dict[str, Any] = {"norm": chosen.threat.norm, "eps": chosen.threat.eps, "batch_size": max(1, len(rows))}
    images, labels, found = chosen.test.images[list(rows)], chosen.test.labels[list(rows)], {}
    for seed in SEEDS if rows else ():
        found[seed] = autoattack.run(chosen.model, images, labels, seed=seed, **how).robust.tolist()
    return {str(row): [seed for seed in found if not found[seed][place]] for place, row in enumerate(rows)}


def complete(line: Line, chosen: Subject, out: Path) -> Line:
    """The line with what `again` found, which is written in its place."""
    found, versions = again(chosen, line["broken"]), line["versions"] | dict([compat.autoattack_package()])
    whole = line | {"autoattack_again": found, "autoattack_seeds": SEEDS, "versions": versions}
    files.write(out, "".join(json.dumps(whole if other == line else other) + "\n" for other in read(out)))
    return whole


app = typer.Typer(add_completion=False)


@app.command()
def main(
    network: Annotated[str, typer.Option(help="a network of `atent ls zoo`")],
    passes: Annotated[int, typer.Option(help="at most, of an image")] = 1000,
    n: Annotated[int | None, typer.Option(help="at most so many of the images that AutoAttack left")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    data_root: Annotated[Path | None, typer.Option()] = None,
    out: Annotated[Path, typer.Option()] = RESULTS,
) -> None:
    (card, *_), weights = zoo.find(network)
    rows = left(card)[:n]
    key = {"network": network, "weights_sha256": card.weights["sha256"], "passes": passes, "n": len(rows), "seed": seed}
    line = next((line for line in read(out) if key.items() <= line.items()), None)
    if not len(rows) or (line is not None and "autoattack_again" in line):
        print(f"{network}: no image is left" if not len(rows) else f"{network} is in {out} already")
        return
    chosen = subject(network, data_root or Path(os.environ.get("ATENT_DATA", ".")))
    evidence.require_same_images(card, chosen.test)
    line = complete(line or measure(key, card, chosen, rows, out), chosen, out)
    broken, others = line["broken"], sum(map(bool, line["autoattack_again"].values()))
    print(f"{network}: {len(broken)} of {len(rows)} images that AutoAttack left are broken; written: {out}")
    if broken:
        print(f"AutoAttack breaks {others} of them with at least one of the seeds {', '.join(map(str, SEEDS))}")
        by = f"atent-ext (annealed ATENT, {passes:,} passes)"
        place = registry.folder("card") / card.place
        print(f"atent adversaries add {place} {adversaries(line, out)} --by '{by}' --weights {weights}")


if __name__ == "__main__":
    exit.run(app)
