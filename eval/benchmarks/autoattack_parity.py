"""Check a report of `atent eval`, chunk by chunk, against pyautoattack called directly: same images, seed, batch size.

    python eval/benchmarks/autoattack_parity.py REPORT.json WEIGHTS [--data-root DIR]

The network is prepared as the report says (its "speed"), for that changes rounding. Prints how many flags agree in each
chunk and exits with code 1 unless all do.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from pyautoattack import AutoAttack

from atent_ext import subjects
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import chunks
from atent_ext.evaluation.report import Report
from atent_ext.models import speed


def main(report: Path, weights: Path, data_root: Annotated[Path | None, typer.Option()] = None) -> None:
    told = Report.load(report)
    ours = told.autoattack
    if ours is None or ours.changed or told.chunk is None or told.speed is None:
        raise typer.BadParameter(f"{report} holds no AutoAttack as published, in chunks")
    threat = told.threat
    subject = subjects.load(weights, told.model, told.data, threat.norm, threat.eps, data_root)
    split = subject.test.take(ours.n)
    device = str(told.machine["device"])
    model = speed.prepare(subject.model.to(device), split.images[: told.batch_size], told.speed, told.folded).model
    differing = 0
    for chunk in chunks.cut(len(split), told.chunk, told.seed):
        batch_size = told.smaller_batches.get(str(chunk.number), told.batch_size)
        theirs = directly(model, chunk.of(split), threat, chunk.seed, batch_size, device)
        mine = ours.flags[chunk.start : chunk.stop]
        same = sum(one == other for one, other in zip(mine, theirs, strict=True))
        differing += len(theirs) - same
        counts = f"robust: {mine.count('1')}, directly {theirs.count('1')}"
        print(f"{told.name}, chunk {chunk.number}: {same} of {len(theirs)} flags agree; {counts}", flush=True)
    print(f"{differing} of {len(split)} flags differ")
    sys.exit(differing > 0)


def directly(model: torch.nn.Module, split: Split, threat: Threat, seed: int, batch_size: int, device: str) -> str:
    """The flags of stock AutoAttack as a text of 0 and 1."""
    attack = AutoAttack(model, norm=threat.norm, eps=threat.eps, seed=seed, version="standard", device=device)
    found, _ = attack.run_standard_evaluation(split.images, split.labels, batch_size=batch_size)
    with torch.no_grad():
        classes = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in found.split(batch_size)])
    return "".join("01"[int(flag)] for flag in classes == split.labels)


if __name__ == "__main__":
    typer.run(main)
