"""Writes docs/anytime.md from eval/results/anytime.json (`eval/stress/anytime.py`)."""

import json
from pathlib import Path
from typing import Any

import measured
import typer

from atent_ext.cli import exit
from atent_ext.storage import files

PAGE = """\
# Intervals that hold whenever one stops

Written by `eval/pages/write_anytime.py` from `eval/results/anytime.json`, which `eval/stress/anytime.py` writes.

## Stop as soon as it is known

```sh
atent eval MODEL --until-width 4
atent verify FOLDER --until-decided --tolerance 1
atent eval MODEL --plan
```

`--until-width W` scores test images in an order that is drawn once from the seed. It stops when the interval of the
worst case, for the accuracy on the whole test set, is W points wide. `--until-decided` stops when each claim of the
card is refuted or confirmed. A claim is refuted when the upper end lies below it, and confirmed when the lower end lies
above the claim less the tolerance. Claims of clean accuracy count, too.

With either, `--n` is the most that is scored. The first chunks are small, so that a masked network costs few images.
The report says how many images were not scored, and why it stopped. It has anytime intervals and no Wilson interval.
The same command with a smaller width or tolerance goes on from there; its chunks stay beside the report until then.
Two stopped reports of one seed are compared on the images that both scored, by the sequential test.

In Python: `atent_ext.evaluate(model, images, labels, norm="Linf", eps=8/255, until_width=width)`.

`--plan` measures a few batches and prints forward passes and time by number of images. Nothing is scored or written.
Every report has the passes that it took.

Images that interval bounds prove robust take no passes, in every evaluation of a network that they cover. No flag
changes: batches stay whole, and the network is just not run around these images. The report says how many they are.

## What the intervals promise

`atent_ext.core.statistics.confidence_sequence` gives, after any number of images drawn in random order, an interval
for the accuracy on all N images. With probability {level} it holds at all moments at once, so that one may look after
every image and stop at any. A Wilson interval holds for a number of images that was fixed before.
`sequential_mcnemar` is the like for two models on the same images; `atent compare A.json B.json --until-decided` uses
it.

## How often they fail

{streams} evaluations were simulated for each accuracy and each N, and looked at after every chunk. The table has how
many ever miss the accuracy on all N images, in %, over the accuracies {accuracies}. The highest {bound} upper
bound of a rate is {misses} %.

{coverage}

Pairs of equally accurate models, looked at after every image: how many are ever called different, in %. The highest
{bound} upper bound is {differences} %.

{equal}

## How wide they are

Points between the two ends, on a test set of {wide} images.

{widths}

## How early they decide

The table has the median number of images, over random orders. A claim of {over} points too much is refuted when the
upper end lies below it. A true claim is confirmed within {near} when the lower end lies above the claim less {near}.
A claim of {claim} % for a network that has no image right is refuted after {masked} images.

{decided}

The flags of the committed cards of at least {least} images:

{replays}
"""


def page(found: dict[str, Any]) -> str:
    """The text of the page."""
    coverage, equal = found["coverage"], found["equal"]
    stops = [name for name in found["decided"][0] if name.startswith(("refuted", "confirmed"))]
    bound = next(name for name in coverage[0] if name.startswith("upper"))
    masked = next(name for name in found if name.startswith("masked"))
    heads = [_words(name) for name in stops]
    return PAGE.format(
        level=f"{found['level']:.0%}".replace("%", " %"),
        bound=f"{bound.removeprefix('upper')} %",
        wide=f"{max(row['N'] for row in coverage):,}",
        over=" or ".join(name.partition("+")[2] for name in stops if "+" in name),
        near=" points or ".join(name.partition("-")[2] for name in stops if "-" in name) + " point",
        claim=masked.rpartition(" ")[2],
        least=f"{min(row['n'] for row in found['replays']):,}",
        streams=f"{coverage[0]['of']:,}",
        accuracies=", ".join(dict.fromkeys(f"{row['accuracy']:g}" for row in coverage)),
        misses=f"{100 * max(row[bound] for row in coverage):.2f}",
        coverage=_coverage(coverage),
        differences=f"{100 * max(row[bound] for row in equal):.2f}",
        equal=_table(("images one alone has right", "drawn", "called different"), map(_equal, equal)),
        widths=_table(("accuracy", "n", "anytime", "Wilson"), map(_width, found["widths"])),
        masked=max(found[masked].values()),
        decided=_table(("accuracy", "N", *heads), [_stops(row, stops) for row in found["decided"]]),
        replays=_table(("card", "N", "accuracy", *heads), [_replay(row, stops) for row in found["replays"]]),
    )


def _words(stop: str) -> str:
    """The head of a column: what was refuted or confirmed."""
    return f"{stop.partition('+')[2]} too much" if "+" in stop else f"true, within {stop.partition('-')[2]}"


def _table(head: tuple[str, ...], rows: Any) -> str:
    return "\n".join(measured.table([list(row) for row in rows], list(head)))


def _coverage(rows: list[dict[str, Any]]) -> str:
    chunks = list(dict.fromkeys(row["chunk"] for row in rows))
    lines = []
    for total in dict.fromkeys(row["N"] for row in rows):
        rates = {
            chunk: [100 * r["failures"] / r["of"] for r in rows if (r["N"], r["chunk"]) == (total, chunk)]
            for chunk in chunks
        }
        lines.append((f"{total:,}", *(f"{min(rates[chunk]):.1f} to {max(rates[chunk]):.1f}" for chunk in chunks)))
    return _table(("N", *(f"chunks of {chunk}" for chunk in chunks)), lines)


def _rates(rows: list[dict[str, Any]], total: int, chunk: int) -> str:
    rates = [100 * row["failures"] / row["of"] for row in rows if (row["N"], row["chunk"]) == (total, chunk)]
    return f"{min(rates):.1f} to {max(rates):.1f}"


def _equal(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{row['discordant']:,}", row["drawn"], f"{100 * row['failures'] / row['of']:.2f}"


def _width(row: dict[str, Any]) -> tuple[str, ...]:
    return f"{100 * row['accuracy']:g} %", f"{row['n']:,}", f"{row['anytime']:.1f}", f"{row['wilson']:.1f}"


def _medians(row: dict[str, Any], stops: list[str]) -> list[str]:
    return [f"{row[name]:,.0f}" if name in row else "" for name in stops]


def _stops(row: dict[str, Any], stops: list[str]) -> list[str]:
    return [f"{100 * row['accuracy']:g} %", f"{row['N']:,}", *_medians(row, stops)]


def _replay(row: dict[str, Any], stops: list[str]) -> list[str]:
    return [f"`{row['card']}`", f"{row['n']:,}", f"{100 * row['accuracy']:.1f} %", *_medians(row, stops)]


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Path = measured.ROOT / "docs" / "anytime.md") -> None:
    found = json.loads((measured.ROOT / "eval" / "results" / "anytime.json").read_text(encoding="utf-8"))
    files.write(out, page(found))
    print(f"written: {out}")


if __name__ == "__main__":
    exit.run(app)
