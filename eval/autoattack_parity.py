"""Check a report of `atent eval` against pyautoattack called directly: same images, seed and batch size, same flags.

    python eval/autoattack_parity.py REPORT.json WEIGHTS [--data-root DIR]

Prints how many flags agree and exits with code 1 unless all do.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from pyautoattack import AutoAttack

from atent_ext import scoring
from atent_ext.modes import frozen


def main(report: Path, weights: Path, data_root: Annotated[Path | None, typer.Option()] = None) -> None:
    told = json.loads(report.read_text(encoding="utf-8"))
    ours = next(result for result in told["results"] if result["attack"] == "AutoAttack")
    threat = told["threat"]
    subject = scoring.load(weights, told["model"], told["data"], threat["norm"], threat["eps"], data_root)
    split = subject.test.take(ours["n"])
    with frozen(subject.model):
        attack = AutoAttack(
            subject.model, norm=threat["norm"], eps=threat["eps"], seed=told["seed"], version="standard"
        )
        adversaries, _ = attack.run_standard_evaluation(split.images, split.labels, batch_size=told["batch_size"])
    with torch.no_grad():
        batches = adversaries.split(told["batch_size"])
        predictions = torch.cat([subject.model(batch).argmax(1) for batch in batches])
    flags = "".join("01"[int(flag)] for flag in predictions == split.labels)
    same = sum(mine == theirs for mine, theirs in zip(ours["flags"], flags, strict=True))
    name, robust = told["name"], ours["correct"]
    print(f"{name}: {same} of {len(flags)} flags agree; robust: {robust}, directly {flags.count('1')}")
    sys.exit(same != len(flags))


if __name__ == "__main__":
    typer.run(main)
