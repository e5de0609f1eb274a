"""Score a run on images that it held out of training by one of AutoAttack's attacks: cheaper than all, closer than PGD.

python eval/experiments/held_out.py zoo/runs/11dc63de --n 1000 --out held-out.json   (it holds each image's flag)
"""

import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from atent_ext.attacks import autoattack
from atent_ext.attacks.spec import Outcome
from atent_ext.cli import exit
from atent_ext.data import datasets
from atent_ext.evaluation.report import result_of
from atent_ext.experiments.rows import cell
from atent_ext.storage import files
from atent_ext.subjects import run_folder
from atent_ext.training.run_folder import RunFolder

app = typer.Typer(add_completion=False)


@app.command()
def main(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    n: Annotated[int, typer.Option(min=1, help="The first N held-out images.")] = 1000,
    attack: Annotated[str, typer.Option(help="Of AutoAttack: apgd-ce, apgd-t, fab-t, square.")] = "apgd-ce",
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 250,
    seed: Annotated[int, typer.Option(help="Of the attack.")] = 0,
    trained_on: Annotated[bool, typer.Option(help="Images that it was trained on instead.")] = False,
) -> None:
    subject = run_folder.from_run(run, held_out=True)
    part = "training" if trained_on else "held-out"
    images, threat = (_trained_on(run) if trained_on else subject.test).take(n), subject.threat
    start = time.perf_counter()
    found = autoattack.run(
        subject.model,
        images.images,
        images.labels,
        norm=threat.norm,
        eps=threat.eps,
        attacks=[attack],
        seed=seed,
        batch_size=batch,
    )
    settings = {"package": found.package, "torch": torch.__version__, "seed": seed, "batch_size": batch}
    seconds = time.perf_counter() - start
    outcome = Outcome("attack", attack, settings, found.robust, seconds, found.notes, found.robust_after)
    result = {
        "weights_sha256": subject.about.weights_sha256,
        "images": f"the first {len(images)} {part} images",
        "data": subject.about.data,
        "threat": threat.model_dump(),
        **cell(result_of(outcome)),
    }
    files.write(out, json.dumps(result, indent=2) + "\n")
    print(f"{attack}: {int(found.robust.sum())} of {len(images)} {part} images left; written: {out}")


def _trained_on(run: Path) -> datasets.Split:
    recipe = RunFolder(run).recipe()
    kept = datasets.hold_out(datasets.load(recipe.dataset).train, recipe.validation.count, recipe.seed)[0]
    return kept.take(recipe.examples)


if __name__ == "__main__":
    exit.run(app)
