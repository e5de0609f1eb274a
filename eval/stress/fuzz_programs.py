"""Read thousands of mutated programs (.pt2): each becomes a network that is run, or one line of an error.

    python eval/stress/fuzz_programs.py --cases 2000 --seed 0 --out eval/results/fuzz-programs.json

`tests/fuzzing_programs.py` says how they are mutated. Writes how often each outcome was seen, and exits with code 1
after any other, which it shows with its number. A network may take 4 GB of memory.
"""

import faulthandler
import json
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import fuzzing_programs

import atent_ext
from atent_ext.storage import files


def main(
    out: Annotated[Path, typer.Option()],
    cases: Annotated[int, typer.Option(min=1)] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    begin, seen, others, slowest = time.monotonic(), Counter[str](), [], 0.0
    with TemporaryDirectory() as folder:
        bases = fuzzing_programs.drafted(), fuzzing_programs.exported(Path(folder))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 4 * 2**30, size + 4 * 2**30))
    for number in range(seed, seed + cases):
        start = time.monotonic()
        try:
            outcome = fuzzing_programs.outcome(fuzzing_programs.mutated(bases[number % 2], number))
            assert not outcome.startswith("other"), outcome
            seen[outcome] += 1
        except Exception:
            others.append({"case": number, "error": traceback.format_exc()})
            print(others[-1]["error"], f"case {number}", file=sys.stderr)
        slowest = max(slowest, time.monotonic() - start)
    result = {
        "cases": cases,
        "seed": seed,
        "others": others,
        "outcomes": dict(sorted(seen.items())),
        "slowest_seconds": round(slowest, 2),
        "seconds": round(time.monotonic() - begin),
        "versions": {"atent-ext": atent_ext.__version__, "torch": torch.__version__},
    }
    files.write(out, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["outcomes"], indent=1))
    raise SystemExit(1 if others else 0)


if __name__ == "__main__":
    typer.run(main)
