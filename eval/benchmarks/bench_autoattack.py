"""Wall time of standard AutoAttack: stock pyautoattack against `atent eval` with one and with two processes.

    python eval/benchmarks/bench_autoattack.py RUN [--n 200] [--processes 2] [--out eval/results/bench-autoattack.json]

RUN is a run folder. Each evaluation is a command of its own with one thread a process, timed from start to end. Stock
is pyautoattack called directly on the network as it is, in a plain environment; `atent eval` prepares the network, asks
torch for large pages, and scores the clean images and PGD-40 besides. Each runs once: a time has no range. The robust
accuracies after each attack, and the flags with one and with several processes, are compared.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import bench
import torch
import typer

from atent_ext import subjects
from atent_ext.evaluation.report import Report

_AFTER = "robust accuracy after "


def stock(run: Path, out: Path, n: int, seed: int) -> None:
    """pyautoattack as its README calls it; writes how many images are robust after each attack."""
    from pyautoattack import AutoAttack

    subject = subjects.load(run)
    part = subject.test.take(n)
    after: dict[str, int] = {}

    def listen(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith(_AFTER):
            name, share = message.removeprefix(_AFTER).split(" (")[0].split(": ")
            after[name.lower()] = round(float(share.rstrip("%")) * n / 100)
        return True

    logger = logging.getLogger("auto-attack")
    logger.setLevel(logging.DEBUG)
    logger.addFilter(listen)
    attack = AutoAttack(subject.model, norm=subject.threat.norm, eps=subject.threat.eps, seed=seed, version="standard")
    start = time.perf_counter()
    adversaries, _ = attack.run_standard_evaluation(part.images, part.labels, batch_size=250)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        flags = subject.model(adversaries).argmax(1) == part.labels
    found = {"robust_after": after, "attack_seconds": round(seconds, 1), "flags": "".join("01"[int(f)] for f in flags)}
    out.write_text(json.dumps(found))


def timed(command: list[str]) -> float:
    """Seconds of a command; what it wrote is in its files."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return round(seconds, 1)


def evaluated(run: Path, n: int, seed: int, processes: int, folder: Path, chunk: int | None) -> dict[str, Any]:
    """`atent eval` with so many processes: its AutoAttack entry, what was prepared, and the time of the command."""
    out = folder / f"processes-{processes}.json"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    # "--" keeps torchrun from taking --n for one of its own options.
    command = [*([*torchrun, "-m", "--"] if processes > 1 else ["-m"]), "atent_ext", "eval", str(run), "--n", str(n)]
    command += ["--seed", str(seed), "--out", str(out), *(["--chunk", str(chunk)] if chunk else [])]
    seconds = timed(command)
    report = Report.load(out)
    entry = report.result("autoattack")
    kept = report.model_dump(mode="json", include={"chunk", "processes", "speed", "prepared"})
    found = {"robust_after": entry.robust_after, "flags": entry.flags, "notes": [note.text for note in entry.notes]}
    return {"seconds": seconds} | kept | {"attack_seconds": entry.seconds} | found


def main(
    run: Path,
    n: Annotated[int, typer.Option("--n")] = 200,
    seed: int = 0,
    processes: int = 2,
    chunk: Annotated[int | None, typer.Option(help="As of `atent eval` [default: its own].")] = None,
    out: Annotated[Path, typer.Option()] = Path("eval/results/bench-autoattack.json"),
    picture: Annotated[Path, typer.Option()] = Path("docs/img/bench-autoattack.png"),
    stock_to: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    if stock_to is not None:
        return stock(run, stock_to, n, seed)
    subject = subjects.load(run)  # which also fills the file caches, for whoever runs first
    report: dict[str, Any] = {
        "what": f"standard AutoAttack on the first {n} test images, one thread a process, seed {seed}",
        **bench.about(),
        **subject.about.model_dump(include={"name", "model", "weights_sha256", "data"}),
        "threat": subject.threat.model_dump(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "stock.json"
        seconds = timed([__file__, str(run), "--n", str(n), "--seed", str(seed), "--stock-to", str(plain)])
        runs = {"pyautoattack": {"seconds": seconds, **json.loads(plain.read_text())}}
        for count in (1, processes):
            key = f"atent eval, {count} process{'es' * (count > 1)}"
            runs[key] = evaluated(run, n, seed, count, folder, chunk)
    direct, one, several = runs.values()
    report |= {
        "runs": runs,
        "one_to_stock": round(one["seconds"] / direct["seconds"], 3),
        "speedup_of_processes": round(one["seconds"] / several["seconds"], 3),
        "robust_after_differs_by": {
            name: one["robust_after"][name] - count for name, count in direct["robust_after"].items()
        },
        "flags_differ_between_processes": sum(a != b for a, b in zip(one["flags"], several["flags"], strict=True)),
    }
    bench.write(out, report)
    shares = {name: found["seconds"] / direct["seconds"] for name, found in runs.items()}
    panel = {name: {"median": share, "min": share, "max": share} for name, share in shares.items()}
    bench.chart(
        picture, f"AutoAttack, {n} images", {report["name"]: panel}, "wall time of the command (pyautoattack = 1)"
    )


if __name__ == "__main__":
    typer.run(main)
