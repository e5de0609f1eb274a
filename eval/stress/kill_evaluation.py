"""Kill an evaluation at random moments, resume each time, and compare with an uninterrupted one.

    python eval/stress/kill_evaluation.py RUN --out FILE.json [--n 100] [--chunk 5] [--kills 20] [--seed 0]

`atent eval` runs as a process of its own, which sends itself SIGKILL at an event (signal_at.py), so that the same seed
kills at the same moments on every machine: every fifth time while it starts, else within the second, third or first
chunk that it scores. If an evaluation ends before the last kill, another begins. A chunk that was done is never scored
again, and only the one that was in progress is lost. Writes what happened, and exits with code 1, after printing it, if
flags differ, more was lost, or fewer than half of the kills while it scored came after a new chunk.
"""

import json
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import signal_at
import typer

from atent_ext.evaluation.report import Report

Events = dict[str, int]
Flags = dict[str, str]
Kill = dict[str, Any]


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
    with TemporaryDirectory() as folder:
        whole = Evaluation(run, options, Path(folder) / "whole.json")
        log = whole.run({})
        killed = Evaluation(run, options, Path(folder) / "killed.json")
        record = summary(
            killed.disturbed(moments(log, kills, seed)), [found == whole.flags() for found in killed.found]
        )
    record = {"run": run.name, **setting, **record}
    text = json.dumps(record, indent=1) + "\n"
    out.write_text(text, encoding="utf-8")
    if not record["good"]:
        print(text)
    print(f"{kills} kills in {len(killed.found)} evaluations: {'good' if record['good'] else 'BAD'}")
    sys.exit(not record["good"])


def summary(happened: list[Kill], same: list[bool]) -> dict[str, Any]:
    scoring = [kill for kill in happened if kill["while_scoring"]]
    gained = sum(kill["chunks_gained"] > 0 for kill in scoring)
    right = all(kill["chunks_lost"] <= 1 and not kill["kept_and_repeated"] for kill in happened)
    # Where no kill came after a chunk, nothing would have been shown of going on.
    good = all(same) and right and 2 * gained >= len(scoring) > 0
    counts = {"kills_while_scoring": len(scoring), "of_them_after_new_chunks": gained}
    return {"flags_same": same, "good": good, **counts, "kills": happened}


def moments(log: list[dict[str, Any]], kills: int, seed: int) -> list[Events]:
    """When to kill; the log of an undisturbed evaluation says how many events there are."""
    draws = random.Random(seed)
    begun = [line["counts"] for line in log if line["at"] == "begin"]
    passes = (log[-1]["counts"]["pass"] - begun[0]["pass"]) // len(begun)
    return [
        {"import": draws.randint(1, begun[0]["import"])}
        if number % 5 == 4
        else {"begin": (2, 3, 1)[number % 3], "pass": draws.randint(1, max(1, passes))}
        for number in range(kills)
    ]


@dataclass
class Evaluation:
    """One evaluation and its report; `found` collects the flags of each that ended."""

    subject: Path
    options: list[str]
    report: Path
    found: list[Flags] = field(default_factory=list)

    def run(self, events: Events) -> list[dict[str, Any]]:
        """Start the evaluation or go on with it until it is killed or ends; the log of its process."""
        log = self.report.with_name("events.jsonl")
        log.unlink(missing_ok=True)
        command = ("eval", self.subject, *self.options, "--out", self.report)
        code = signal_at.started("SIGKILL", events, log, *command, stdout=subprocess.DEVNULL).wait()
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"an evaluation failed with exit code {code}")
        return signal_at.counted(log)

    def disturbed(self, moments: list[Events]) -> list[Kill]:
        """Kill the evaluation at each of the moments, then let it end."""
        happened, before = [], dict[str, int]()
        for events in moments:
            log = self.run(events)
            while self.ended():  # before its kill: begin another, and be quicker
                before, events = {}, {kind: max(1, count * 4 // 5) for kind, count in events.items()}
                log = self.run(events)
            now = self.kept()
            begun, gained = sum(line["at"] == "begin" for line in log), len(now.keys() - before.keys())
            happened.append(
                {
                    "at": events,
                    "while_scoring": begun > 0,
                    "chunks_kept": len(now),
                    "chunks_gained": gained,
                    "chunks_lost": begun - gained,
                    "kept_and_repeated": sum(now.get(name) != stamp for name, stamp in before.items()),
                }
            )
            before = now
        self.run({})
        if not self.ended():
            raise SystemExit("an evaluation that nobody killed did not end")
        return happened

    def ended(self) -> bool:
        """Whether there is a report, whose flags are kept and which is removed."""
        if self.journal.exists() or not self.report.is_file():
            return False
        self.found.append(self.flags())
        self.report.unlink()
        return True

    @property
    def journal(self) -> Path:
        return self.report.with_name(f"{self.report.name}.chunks")

    def kept(self) -> dict[str, int]:
        """The finished chunks in the journal: file name -> when it was written (ns). Each must be whole."""
        files = sorted(self.journal.glob("[0-9][0-9][0-9][0-9].json"))
        return {file.name: file.stat().st_mtime_ns for file in files if json.loads(file.read_text(encoding="utf-8"))}

    def flags(self) -> Flags:
        return flags(self.report)


def flags(report: Path) -> Flags:
    return {result.attack: result.flags for result in Report.load(report).results}


if __name__ == "__main__":
    typer.run(main)
