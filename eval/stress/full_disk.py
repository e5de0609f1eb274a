"""Run every command that writes on full and on read-only disks, and check what it leaves there.

    python eval/stress/full_disk.py --out FILE.json

Each disk is a tmpfs in a mount namespace of its own (`unshare -rm`), too small by a page for one of the files that a
command writes. The command must end with exit code 2 and one line that names the file and the bytes it needs, leave
what was there as it was and no temporary file, and end, once there is room, as it does where nothing is in its way.
Writes what happened, and exits with code 1 if anything did not go so.
"""

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import kill_training
import typer
from kill_evaluation import flags

from atent_ext.cli import app

Told = dict[str, Any]
Files = dict[str, bytes]
_PAGE = 4096
_INSIDE = "ATENT_FULL_DISK_INSIDE"
_TRAINING = kill_training.command("pgd-at", "epochs=3", "validation.select=last")  # each epoch writes the weights, too


def main(out: Annotated[Path, typer.Option()]) -> None:
    enter()
    with TemporaryDirectory() as folder:
        place, run = Path(folder, "disk"), Path(folder, "whole")
        place.mkdir()
        ended(atent(*_TRAINING, "--out", run))
        cases = []
        for try_it in (training, read_only_runs, evaluation, drawings):
            for case in try_it(place, run):
                print(f"{case['case']}: {'good' if case['good'] else case}", flush=True)
                cases.append(case)
    good = all(case["good"] for case in cases)
    out.write_text(json.dumps({"good": good, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases: {'good' if good else 'BAD'}")
    sys.exit(not good)


def enter() -> None:
    """Begin again in a mount namespace of one's own, where anybody may mount."""
    if os.environ.get(_INSIDE):
        return
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True)
    if tried.returncode:
        raise SystemExit(f"small disks need `unshare -rm`, which this system refuses: {tried.stderr.strip()}")
    os.execvpe("unshare", ["unshare", "-rm", sys.executable, *sys.argv], os.environ | {_INSIDE: "1"})


# ---- disks


@contextmanager
def disk(place: Path, size: int) -> Iterator[None]:
    """A disk with room for `size` bytes, a multiple of the page (0 too), at `place`."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + _PAGE}", "tmpfs", place], check=True)
    try:
        (place / "filler").write_bytes(bytes(_PAGE))  # a tmpfs has a page at least
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)  # weights that were read from it may be mapped still


def resize(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size + _PAGE}", place], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write in the folder, processes that began to do so included."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def room(*files: Path) -> int:
    """The bytes that files take on a disk, by whole pages."""
    return sum(_PAGE * math.ceil(file.stat().st_size / _PAGE) for file in files)


_OWNER = _PAGE  # where a process writes that it is there
_AMPLE = 2**24


# ---- commands


def atent(*arguments: object) -> tuple[int, str]:
    """The command in this process, which spares the imports: its exit code and what it said as error."""
    err = io.StringIO()
    sys.argv = ["atent", *map(str, arguments)]
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        try:
            app.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:  # as the interpreter ends
            traceback.print_exc()
            code = 1
    return code, err.getvalue().strip()


def started(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, which can be halted."""
    command = [sys.executable, "-m", "atent_ext", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def done(running: subprocess.Popen[str]) -> tuple[int, str]:
    said = running.communicate()[1]
    return running.returncode, said.strip()


def ended(result: tuple[int, str]) -> None:
    if result[0]:
        raise SystemExit(f"a command that nothing was in the way of ended with exit code {result[0]}: {result[1]}")


def refused(name: str, result: tuple[int, str], file: Path, needed: int | None = None, verb: str = "written") -> Told:
    """Whether a command was refused in one line that names the file, and the bytes needed to within a page."""
    code, said = result
    bytes_named = re.search(r"it needs ([\d,]+) bytes", said)
    told = int(bytes_named[1].replace(",", "")) if bytes_named else None
    right = needed is None or (told is not None and abs(told - needed) < _PAGE)
    one_line = re.fullmatch(rf"atent: {re.escape(str(file))} cannot be {verb} \(.*", said) is not None
    good = code == 2 and one_line and right
    return {"case": name, "exit_code": code, "said": said.replace(str(file.parent), "FOLDER"), "good": good}


def checked(case: Told, **checks: bool) -> Told:
    """The case with more that must be so."""
    return case | checks | {"good": case["good"] and all(checks.values())}


def content(folder: Path) -> Files:
    """The visible files of a folder, by name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if not path.name.startswith(".")}


def no_temporary(folder: Path) -> bool:
    return all(path.name.endswith((".lock", ".lock-owner")) for path in folder.rglob(".*"))


# ---- training


def training(place: Path, whole: Path) -> Iterator[Told]:
    """A disk that is full at the first file, at the first checkpoint and at the second."""
    recipe, weights, state, metrics = (
        whole / name for name in ("recipe.yaml", "weights.safetensors", "state.pt", "metrics.jsonl")
    )
    epoch = _OWNER + room(recipe, weights, state, metrics)
    yield full_at("first", recipe, _OWNER, place, whole)
    yield full_at("first", weights, _OWNER + room(recipe, weights) - _PAGE, place, whole)
    yield full_at("first", state, _OWNER + room(recipe, weights, state) - 2 * _PAGE, place, whole)
    yield full_at("second", weights, epoch + room(weights) - 2 * _PAGE, place, whole)
    yield full_at("second", state, epoch + room(state) - 2 * _PAGE, place, whole)


def full_at(which: str, file: Path, size: int, place: Path, whole: Path) -> Told:
    """Train on a disk that is too small for the first or second writing of a file, then go on with more room."""
    run = place / "run"
    with disk(place, size):
        before = Files()
        if which == "first":
            said = atent(*_TRAINING, "--out", run)
        else:
            running = started(*_TRAINING, "--out", run)
            before = content_after_an_epoch(running, run)
            said = done(running)
        case = refused(f"train: full at the {which} {file.name}", said, run / file.name, file.stat().st_size)
        return went_on(case, before, file.name, place, whole)


def content_after_an_epoch(running: subprocess.Popen[str], run: Path) -> Files:
    """Halt the process after the last file of its first epoch, take what lies there, and let it go on."""
    while not (run / "metrics.jsonl").exists() and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGSTOP)
    before = content(run)
    running.send_signal(signal.SIGCONT)
    return before


def went_on(case: Told, before: Files, failed: str, place: Path, whole: Path) -> Told:
    """What a refused training left, and whether it ends as `whole` once there is room."""
    run = place / "run"
    now = content(run)
    newer = {"weights.safetensors"} if failed == "state.pt" else set()  # whole, and written before the state
    checks = {
        "earlier_files_unchanged": all(now[name] == old for name, old in before.items() if name not in newer),
        "files_readable": not list(kill_training.wrong([run / name for name in now])),
        "no_temporary_file": no_temporary(run),
    }
    resize(place, _AMPLE)
    ended(atent(*_TRAINING, "--out", run, *(["--resume"] if "recipe.yaml" in now else [])))
    return checked(case, **checks, same_in_the_end=kill_training.same_run(run, whole))


def read_only_runs(place: Path, whole: Path) -> Iterator[Told]:
    """A run folder that cannot be written any more while a process trains in it, or from the start."""
    run, weights = place / "run", whole / "weights.safetensors"
    with disk(place, _AMPLE):
        running = started(*_TRAINING, "--out", run)
        before = content_after_an_epoch(running, run)
        with read_only(run):
            said = done(running)
        case = refused("train: read-only after an epoch", said, run / weights.name, weights.stat().st_size)
        yield went_on(case, before, weights.name, place, whole)
        before = content(run)
        with read_only(run):
            for how in ("--resume", "--overwrite"):
                case = refused(f"train {how}: read-only", atent(*_TRAINING, "--out", run, how), run / ".lock")
                yield checked(case, earlier_files_unchanged=content(run) == before)
            chunks = run / "eval-pgd-Linf-0.15-n20-seed0.json.chunks"
            yield refused("eval: read-only", atent("eval", run, "--protocol", "pgd", "--n", 20), chunks, verb="made")


# ---- the others


def evaluation(place: Path, run: Path) -> Iterator[Told]:
    """Score on a disk that grows by a page after each refusal: it is full at every file of the evaluation once."""
    command = ["eval", run, "--protocol", "quick", "--n", 20, "--chunk", 10, "--out"]
    whole, report = run.with_name("whole.json"), place / "out" / "report.json"
    ended(atent(*command, whole))
    with disk(place, 0):
        size, before = 0, Files()
        while (result := atent(*command, report))[0]:
            named = re.search(r"atent: (\S+) cannot be written", result[1])
            file = Path(named[1]) if named else report
            case = refused(f"eval: full at {file.name}", result, file)
            now = content(report.parent)
            yield checked(
                case,
                bytes_named="bytes" in case["said"],
                finished_chunks_unchanged=all(now.get(name) == old for name, old in before.items()),
                files_readable=all(isinstance(json.loads(text), dict) for text in now.values()),
                no_temporary_file=no_temporary(place),
            )
            before, size = now, size + _PAGE
            resize(place, size)
        same = flags(report) == flags(whole)
        yield {"case": f"eval: went on to the end on {size} bytes", "same_flags": same, "good": same}


def drawings(place: Path, run: Path) -> Iterator[Told]:
    """Figures: each file of a command in turn is the one that does not fit; then all of them, drawn anew."""
    whole, out = run.with_name("drawn"), place / "out"
    plot, study = ["plot", "history", run, "--out"], ["reproduce", "v2-fig2", "--out"]
    ended(atent(*plot, whole / "plot" / "history.png"))
    yield from drawing(place, [*plot, out / "history.png"], whole / "plot", ["history.png", "history.svg"])
    ended(atent(*study, whole / "study"))
    files = [f"v2-fig2-smoke{end}" for end in ("-density.png", "-density.svg", "-density.json", ".json")]
    yield from drawing(place, [*study, out], whole / "study", files, lock=".v2-fig2-smoke.json.lock")


def drawing(
    place: Path, command: Sequence[object], whole: Path, names: Sequence[str], lock: str | None = None
) -> Iterator[Told]:
    """`names`: what the command writes, in its order, and `whole` has; `lock`: the file that it holds meanwhile."""
    files, what, out = [whole / name for name in names], str(command[0]), place / "out"
    owner = _OWNER if lock else 0
    for number, file in enumerate(files):
        with disk(place, owner + room(*files[: number + 1]) - _PAGE):
            case = refused(f"{what}: full at {file.name}", atent(*command), out / file.name, file.stat().st_size)
            kept = content(out) == {one.name: one.read_bytes() for one in files[:number]}
            yield checked(case, earlier_files_whole=kept, no_temporary_file=no_temporary(out))
    with disk(place, _AMPLE):
        ended(atent(*command))
        before, first = content(out), files[0]
        resize(place, owner + room(*files))
        case = refused(f"{what}: full, drawn anew", atent(*command), out / first.name, first.stat().st_size)
        yield checked(case, earlier_files_unchanged=content(out) == before, no_temporary_file=no_temporary(out))
        with read_only(out):
            barred = (out / lock, None) if lock else (out / first.name, first.stat().st_size)
            case = refused(f"{what}: read-only", atent(*command), *barred)
            yield checked(case, earlier_files_unchanged=content(out) == before)
        resize(place, _AMPLE)
        ended(atent(*command))
        same = content(out) == before == content(whole)
        yield {"case": f"{what}: the same files once there is room", "same_in_the_end": same, "good": same}


if __name__ == "__main__":
    typer.run(main)
