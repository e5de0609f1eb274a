"""How often inference that may stop at any moment is wrong, and how early it decides.

    python eval/stress/anytime.py --out eval/results/anytime.json

coverage: evaluations of N images in random order, of which the confidence sequence is looked at after every chunk: how
many ever miss the accuracy on all N images. equal: pairs of equally accurate models: how many the sequential McNemar
test ever calls different. replays: the flags of committed cards in random orders: after how many images (the median) a
claim that is 5 or 20 points too high is refuted, and a true one confirmed within 1 point; decided: the same for other
accuracies. widths: of the interval and of Wilson's for a fixed number of images.
"""

import json
import statistics
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import beta

from atent_ext.core.statistics import confidence_sequence, interval, sequential_mcnemar
from atent_ext.storage import files
from atent_ext.submissions.cards import read_card

ACCURACIES = (0.0, 0.3, 0.57, 0.9, 0.99)
TOTALS = (500, 1_000, 5_000, 10_000)
CHUNKS = (1, 10, 100)
LEVEL = 0.95
CARDS = Path(__file__).parent.parent.parent / "registry" / "cards"


def coverage(accuracy: float, total: int, streams: int, generator: np.random.Generator) -> list[dict[str, object]]:
    """One row per chunk: how many of the streams ever leave the interval, and the 95 % upper bound of their share."""
    right, log_factorial = round(accuracy * total), gammaln(np.arange(total + 2) + 1.0)
    seen = np.zeros(streams, dtype=np.int64)
    ever = {chunk: np.zeros(streams, dtype=bool) for chunk in CHUNKS}
    for scored in range(1, total + 1):
        seen += generator.random(streams) * (total - scored + 1) < right - seen
        log_ratio = (
            log_factorial[right] - log_factorial[seen] - log_factorial[right - seen],
            log_factorial[total - right] - log_factorial[scored - seen] - log_factorial[total - right - scored + seen],
            log_factorial[scored] + log_factorial[total - scored] - log_factorial[total] + np.log(scored + 1),
        )
        missed = sum(log_ratio) <= np.log(1 - LEVEL) - 1e-9
        for chunk in CHUNKS:
            if scored % chunk == 0 or scored == total:
                ever[chunk] |= missed
        if scored % (total // 5) == 0:
            _require_same(seen[:20], scored, total, right, missed[:20])
    return [
        {"accuracy": accuracy, "N": total, "chunk": chunk, **_rate(int(count.sum()), streams)}
        for chunk, count in ever.items()
    ]


def _require_same(seen: NDArray[np.int64], scored: int, total: int, right: int, missed: NDArray[np.bool_]) -> None:
    """The closed form above is what the package's interval says."""
    low, high = confidence_sequence(seen, np.full_like(seen, scored), total, LEVEL)
    assert np.array_equal(missed, (low * total > right + 0.5) | (high * total < right - 0.5))


def _rate(failures: int, trials: int) -> dict[str, object]:
    upper = 1.0 if failures == trials else float(beta.ppf(0.95, failures + 1, trials - failures))
    return {"failures": failures, "of": trials, "upper95": round(upper, 5)}


def equal(discordant: int, replaced: bool, streams: int, generator: np.random.Generator) -> dict[str, object]:
    """Pairs of models with `discordant` images that one of them has right, as many for either (or drawn by coin)."""
    mine, ever = np.zeros(streams, dtype=np.int64), np.zeros(streams, dtype=bool)
    for seen in range(1, discordant + 1):
        left = 0.5 if replaced else (discordant // 2 - mine) / (discordant - seen + 1)
        mine += generator.random(streams) < left
        ever |= sequential_mcnemar(mine, seen - mine) <= 1 - LEVEL
    drawn = "a coin" if replaced else "without replacement"
    return {"discordant": discordant, "drawn": drawn, **_rate(int(ever.sum()), streams)}


def replays(orders: int, generator: np.random.Generator) -> list[dict[str, object]]:
    """One row per card of at least 500 images: the median number of images until a claim is decided."""
    rows = []
    for path in sorted(CARDS.rglob("*.json")):
        report = read_card(path).report
        flags = report.worst.robust().numpy().astype(np.int64)
        if len(flags) >= 500:
            rows.append(
                {
                    "card": path.stem,
                    "n": len(flags),
                    "accuracy": float(flags.mean()),
                    **_stops(flags, orders, generator),
                }
            )
    return rows


def _stops(flags: NDArray[np.int64], orders: int, generator: np.random.Generator) -> dict[str, float]:
    """Median numbers of images; a claim above 100 % is left out."""
    total, share = len(flags), float(flags.mean())
    found: dict[str, list[int]] = {}
    for _ in range(orders):
        seen = generator.permutation(flags).cumsum()
        low, high = confidence_sequence(seen, np.arange(1, total + 1), total, LEVEL)
        low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
        for points in (5, 20):
            if share + points / 100 <= 1:
                found.setdefault(f"refuted +{points}", []).append(_first(high < share + points / 100))
        found.setdefault("confirmed -1", []).append(_first(low > share - 0.01))
    return {name: statistics.median(counts) for name, counts in found.items()}


def decided(orders: int, generator: np.random.Generator) -> list[dict[str, float]]:
    """As `replays`, for accuracies and numbers of test images that no card has."""
    cases = [(accuracy, total) for accuracy in (0.3, 0.57, 0.9) for total in (500, 1_000, 10_000)]
    return [
        {"accuracy": accuracy, "N": total}
        | _stops((np.arange(total) < round(accuracy * total)).astype(np.int64), orders, generator)
        for accuracy, total in cases
    ]


def _first(decided: NDArray[np.bool_]) -> int:
    """The number of images after which it is decided: always true when all are scored."""
    return int(decided.argmax()) + 1 if decided.any() else len(decided)


def masked(total: int) -> int:
    """How many images refute a claim of 60 % for a network that has none right."""
    scored = np.arange(1, total + 1)
    return _first(confidence_sequence(np.zeros_like(scored), scored, total, LEVEL)[1] < 0.6)


def widths() -> list[dict[str, float]]:
    """Points between low and high, for the interval at any moment and for Wilson's, on 10,000 test images."""
    rows = []
    for accuracy in (0.3, 0.57, 0.9):
        for n in (100, 1_000, 10_000):
            low, high = confidence_sequence(round(accuracy * n), n, TOTALS[-1], LEVEL)
            fixed = interval(round(accuracy * n), n)
            rows.append(
                {"accuracy": accuracy, "n": n, "anytime": 100 * (high - low), "wilson": 100 * (fixed[1] - fixed[0])}
            )
    return rows


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    streams: Annotated[int, typer.Option(min=1, help="Simulated evaluations of each case.")] = 10_000,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of each replay.")] = 101,
    seed: int = 0,
) -> None:
    """Simulate everything and write it."""
    generator = np.random.default_rng(seed)
    found = {
        "level": LEVEL,
        "seed": seed,
        "coverage": [
            row for accuracy in ACCURACIES for total in TOTALS for row in coverage(accuracy, total, streams, generator)
        ],
        "equal": [
            equal(discordant, replaced, streams, generator)
            for discordant in (20, 200, 2_000)
            for replaced in (False, True)
        ],
        "masked network that claims 60": {str(total): masked(total) for total in TOTALS},
        "replays": replays(orders, generator),
        "decided": decided(orders, generator),
        "widths": widths(),
    }
    files.write(out, json.dumps(found, indent=1) + "\n")
    print("highest upper bound of misses:", max(row["upper95"] for row in found["coverage"]))
    print("highest upper bound of false differences:", max(row["upper95"] for row in found["equal"]))


if __name__ == "__main__":
    typer.run(main)
