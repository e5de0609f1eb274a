"""Kill an evaluation at random moments, go on each time, and compare with one that nobody disturbed.

    python eval/stress/kill_evaluation.py RUN --out FILE.json [--n 100] [--chunk 5] [--kills 20] [--seed 0]

`atent eval` runs as a process of its own and is ended by SIGKILL: every fifth time before it scores, else after up to
two chunks and a part of the next; if an evaluation ends before the last kill, another begins. A chunk that was done is
never scored again, and only the one that was in progress is lost. Writes what happened, and exits with code 1 if flags
differ, more was lost, or fewer than half of the kills while it scored came after a new chunk.
"""

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from atent_ext.evaluation.report import Report

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
        whole = Path(folder) / "whole.json"
        startup, scoring = timed(evaluation, whole)
        moments = drawn(startup, scoring / -(-n // chunk), kills, seed)
        happened, found = disturbed(evaluation, Path(folder) / "killed.json", moments)
        same = [one == flags(whole) for one in found]
    while_scoring = [kill for kill in happened if kill["while_scoring"]]
    gained = sum(kill["chunks_gained"] > 0 for kill in while_scoring)
    lost = max(kill["in_progress_at_most"] for kill in happened)
    repeated = sum(kill["kept_and_repeated"] for kill in happened)
    # Where no kill came after a chunk, nothing would have been shown of going on.
    good = all(same) and lost <= 1 and not repeated and 2 * gained >= len(while_scoring) > 0
    seconds = {"startup": round(startup, 1), "scoring": round(scoring, 1)}
    told = {"run": run.name, **setting, "seconds": seconds, "flags_same": same, "good": good}
    told |= {"kills_while_scoring": len(while_scoring), "of_them_after_new_chunks": gained, "kills": happened}
    out.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(f"{kills} kills in {len(found)} evaluations of {-(-n // chunk)} chunks: {'good' if good else 'BAD'}")
    sys.exit(not good)


@dataclass(frozen=True)
class Moment:
    """When a process is killed: `seconds` after its start, or after it finished so many chunks."""

    seconds: float
    chunks: int | None = None


def drawn(startup: float, one_chunk: float, kills: int, seed: int) -> list[Moment]:
    """Every fifth kill comes before the process scores, the others after up to two chunks and a part of the next."""
    draws = random.Random(seed)
    return [
        Moment(draws.uniform(0, startup))
        if number % 5 == 4
        else Moment(draws.uniform(0, one_chunk), draws.randint(0, 2))
        for number in range(kills)
    ]


def disturbed(evaluation: list[str], report: Path, moments: list[Moment]) -> tuple[list[Kill], list[Flags]]:
    """Kill the evaluation at each of the moments, then let it end: what happened, and the flags of each that ended."""
    happened: list[Kill] = []
    found: list[Flags] = []
    written: Written = {}
    for moment in moments:
        while (scored := killed(evaluation, report, moment)) is None:  # it ended before: begin another, and be quicker
            found.append(flags(report))
            report.unlink()
            written, moment = {}, replace(moment, seconds=0.8 * moment.seconds)
        now = kept(report)
        happened.append(
            {
                "after_seconds": round(moment.seconds, 2),
                "while_scoring": scored,
                "chunks_kept": len(now),
                "chunks_gained": len(now.keys() - written.keys()),
                "kept_and_repeated": sum(now.get(name) != stamp for name, stamp in written.items()),
                "in_progress_at_most": most_at_once(now, written),
            }
        )
        written = now
    if killed(evaluation, report, None) is not None:
        raise SystemExit("an evaluation that nobody killed did not end")
    return happened, [*found, flags(report)]


def process(evaluation: list[str], report: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "atent_ext", *evaluation, "--out", str(report)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def timed(evaluation: list[str], report: Path) -> tuple[float, float]:
    """Run an evaluation to its end; the seconds until it had the journal, and from then on."""
    begin, running = time.monotonic(), process(evaluation, report)
    wait_until_it_scores(running, report)
    startup = time.monotonic() - begin
    if running.wait():
        raise SystemExit(f"the undisturbed evaluation failed with exit code {running.returncode}")
    return startup, time.monotonic() - begin - startup


def killed(evaluation: list[str], report: Path, moment: Moment | None) -> bool | None:
    """Start the evaluation or go on with it, and kill it at the moment (None: never).

    Whether it had the journal when it was killed; None if it ended before.
    """
    before, scored, running = len(kept(report)), False, process(evaluation, report)
    try:
        if moment and moment.chunks is not None:
            wait_until_it_scores(running, report)
            while running.poll() is None and len(kept(report)) < before + moment.chunks:
                time.sleep(0.01)
        code = running.wait(moment and moment.seconds)
    except subprocess.TimeoutExpired:
        scored = scores(running, report)
        running.kill()
        code = running.wait()
    if code > 0:
        raise SystemExit(f"an evaluation that was gone on with failed with exit code {code}")
    return None if report.is_file() and not journal(report).exists() else scored


def wait_until_it_scores(running: subprocess.Popen[bytes], report: Path) -> None:
    while running.poll() is None and not scores(running, report):
        time.sleep(0.01)


def scores(running: subprocess.Popen[bytes], report: Path) -> bool:
    """Whether that process has the journal now."""
    try:
        owner = (journal(report) / ".lock-owner").read_text(encoding="utf-8")
    except OSError:
        return False
    return owner.startswith(f"process {running.pid} ")


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
    return {result.attack: result.flags for result in Report.load(report).results}


if __name__ == "__main__":
    typer.run(main)
