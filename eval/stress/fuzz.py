"""Run thousands of random cases: each must end in a valid result or in a documented exception.

    python eval/stress/fuzz.py --cases 10000 --seed 0 --out eval/results/fuzz.json

Four cases of ten are attacks, four objectives, one kernels and one command lines; `tests/fuzzing.py` and
`tests/fuzzing_commands.py` say how they are drawn and what is promised. Writes how often each outcome was seen, and
exits with code 1 after any other, which it tells with the case.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import __version__ as hypothesis_version
from hypothesis import seed as seeded

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import fuzzing
import fuzzing_commands

import atent_ext

Seen = dict[str, Counter[str]]
"""What was called -> how often each outcome was seen."""


def main(
    out: Annotated[Path, typer.Option()],
    cases: Annotated[int, typer.Option(min=10)] = 10_000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    begin, seen, others = time.monotonic(), {}, []
    tenth = cases // 10
    kinds = ((fuzzing.attacks(), 4 * tenth), (fuzzing.trainings(), 4 * tenth), (fuzzing.kernels(), tenth))
    for strategy, count in kinds:
        others += drawn(strategy, count, seed, lambda case: case.kind, fuzzing.outcome, seen)
    with TemporaryDirectory() as folder, fuzzing_commands.workshop(Path(folder)):
        strategy, count = fuzzing_commands.commands(), cases - 9 * tenth
        others += drawn(strategy, count, seed, lambda words: "command line", fuzzing_commands.outcome, seen)
    told = {
        "cases": sum(count.total() for count in seen.values()),
        "seed": seed,
        "others": others,
        "outcomes": {kind: dict(sorted(seen[kind].items())) for kind in sorted(seen)},
        "totals": dict(sorted(sum(seen.values(), Counter()).items())),
        "versions": {
            "atent-ext": atent_ext.__version__,
            "torch": torch.__version__,
            "hypothesis": hypothesis_version,
            "python": sys.version.split()[0],
        },
        "seconds": round(time.monotonic() - begin),
    }
    out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{told['cases']} cases, {len(others)} other outcomes; written: {out}")
    sys.exit(bool(others))


def drawn(
    strategy: Any, count: int, seed: int, kind: Callable[[Any], str], outcome: Callable[[Any], str], seen: Seen
) -> list[str]:
    """Run `count` cases, add their outcomes to `seen`, and return the others, each with its case."""
    others = []

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(case: Any) -> None:
        try:
            found = outcome(case)
        except Exception as error:  # what no docstring promises is what is looked for
            found = "other"
            others.append(f"{type(error).__name__}: {error} in {case!r}")
        seen.setdefault(kind(case), Counter())[found] += 1

    run()
    return others


if __name__ == "__main__":
    typer.run(main)
