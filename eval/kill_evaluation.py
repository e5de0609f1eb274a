"""Kill an evaluation at random moments, go on each time, and compare with one that nobody disturbed.

    python eval/kill_evaluation.py RUN --out FILE.json [--n 100] [--chunk 5] [--kills 20] [--seed 0] [--protocol pgd]

`atent eval` runs as a process of its own and is ended by SIGKILL, at moments drawn so that the kills spread over one
evaluation; if that ends before the last kill, another begins. A chunk that was done is never scored again, and only the
one that was in progress is lost. Writes what happened, and exits with code 1 if flags differ or more was lost.
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

Flags = dict[str, str]
Kill = dict[str, Any]
Written = dict[str, tuple[int, float]]
"""The finished chunks in a journal: file name -> when it was written (ns), and the seconds that the chunk took."""
_CLOCK = 0.05
"""Seconds that a file system's clock may be off."""


def main(
    run: Path,
    out: Annotated[Path, typer.Option()],
    n: Annotated[int, typer.Option("--n", min=1)] = 100,
    chunk: Annotated[int, typer.Option(min=1)] = 5,
    kills: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    protocol: str = "pgd",
) -> None:
    setting = {"protocol": protocol, "n": n, "chunk": chunk, "seed": seed}
    options = [part for name, value in setting.items() for part in (f"--{name}", str(value))]
    evaluation = ["eval", str(run), *options]
    with TemporaryDirectory() as folder:
        begin = time.monotonic()
        startup = started(evaluation, Path(folder) / "whole.json")
        scoring = time.monotonic() - begin - startup
        moments = spread(startup, scoring, kills, seed)
        happened, found = disturbed(evaluation, Path(folder) / "killed.json", moments)
        same = [one == flags(Path(folder) / "whole.json") for one in found]
    lost = max(kill["in_progress_at_most"] for kill in happened)
    repeated = sum(kill["kept_and_repeated"] for kill in happened)
    good = all(same) and lost <= 1 and not repeated
    while_scoring = sum(after > startup for after in moments)
    seconds = {"startup": round(startup, 1), "scoring": round(scoring, 1)}
    told = {"run": run.name, **setting, "seconds": seconds, "flags_same": same, "good": good}
    told |= {"kills_while_scoring": while_scoring, "kills": happened}
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{kills} kills in {len(found)} evaluations of {-(-n // chunk)} chunks: {'good' if good else 'BAD'}")
    sys.exit(not good)


def spread(startup: float, scoring: float, kills: int, seed: int) -> list[float]:
    """Seconds from the start of a process to its kill: every fifth before it scores, the others while it scores.

    Those get on average scoring / kills seconds of it done, so that they spread over an evaluation.
    """
    draws = random.Random(seed)
    return [
        draws.uniform(0, startup) if number % 5 == 4 else startup + draws.uniform(0, 2 * scoring / kills)
        for number in range(kills)
    ]


def disturbed(evaluation: list[str], report: Path, moments: list[float]) -> tuple[list[Kill], list[Flags]]:
    """Kill the evaluation at each of the moments, then let it end: what happened, and the flags of each that ended."""
    happened: list[Kill] = []
    found: list[Flags] = []
    written: Written = {}
    for after in moments:
        while finished(evaluation, report, after):  # before its kill: begin another, and be quicker
            found.append(flags(report))
            report.unlink()
            written = {}
            after *= 0.8
        now = kept(report)
        happened.append(
            {
                "after_seconds": round(after, 2),
                "chunks_kept": len(now),
                "kept_and_repeated": sum(now.get(name) != stamp for name, stamp in written.items()),
                "in_progress_at_most": most_at_once(now, written),
            }
        )
        written = now
    finished(evaluation, report, None)
    return happened, [*found, flags(report)]


def process(evaluation: list[str], report: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atent_ext", *evaluation, "--out", str(report)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def started(evaluation: list[str], report: Path) -> float:
    """Run an evaluation to its end; the seconds until it began to score."""
    begin, running, seconds = time.monotonic(), process(evaluation, report), 0.0
    while running.poll() is None:
        if not seconds and journal(report).is_dir():
            seconds = time.monotonic() - begin
        time.sleep(0.02)
    if running.returncode:
        raise SystemExit(f"the undisturbed evaluation failed with exit code {running.returncode}")
    return seconds


def finished(evaluation: list[str], report: Path, after: float | None) -> bool:
    """Start the evaluation or go on with it, and kill it `after` so many seconds (None: never); whether it ended."""
    running = process(evaluation, report)
    try:
        code = running.wait(after)
    except subprocess.TimeoutExpired:
        running.kill()
        code = running.wait()
    if code > 0:
        raise SystemExit(f"an evaluation that was gone on with failed with exit code {code}")
    return report.is_file() and not journal(report).exists()


def journal(report: Path) -> Path:
    return report.with_name(f"{report.name}.chunks")


def kept(report: Path) -> Written:
    found = {}
    for file in journal(report).glob("[0-9][0-9][0-9][0-9].json"):
        record = json.loads(file.read_text(encoding="utf-8"))  # a chunk's file is whole or not there
        found[file.name] = (file.stat().st_mtime_ns, record["seconds"])
    return found


def most_at_once(now: Written, before: Written) -> int:
    """How many of the chunks that were written since `before` were in progress at the same time; 1 for none."""
    new = sorted(stamp for name, stamp in now.items() if name not in before)
    spans = [(written / 1e9 - seconds, written / 1e9) for written, seconds in new]
    return max((sum(begin + _CLOCK < end <= last for begin, last in spans) for _, end in spans), default=1)


def flags(report: Path) -> Flags:
    return {result["attack"]: result["flags"] for result in json.loads(report.read_text(encoding="utf-8"))["results"]}


if __name__ == "__main__":
    typer.run(main)
