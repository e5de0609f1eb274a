"""Run `atent` and send its process a signal when it comes to an event, so that no test depends on a machine's speed.

    python eval/stress/signal_at.py SIGNAL EVENTS LOG ATENT-ARGUMENT...

SIGNAL is a name, such as SIGKILL. EVENTS says when: `begin=2,pass=30` is the 30th pass after the second chunk was
begun, an empty text is never. A line of LOG is written at the first event of each kind, at every chunk and at the end
of the process; it holds the events so far. Kinds of events:

    import  a module is about to be loaded
    begin   a chunk of an evaluation is begun
    pass    a layer of a network is about to compute
    step    an optimizer is about to take a step
    write   a file is written: its temporary file is about to be made, to be synced, and to be renamed (three events)
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KINDS = ("import", "begin", "pass", "step", "write")


class Watch:
    """Counts events, and sends the signal when the last of those that it waits for has come."""

    def __init__(self, number: signal.Signals, events: Mapping[str, int], log: Path) -> None:
        self.number, self.left, self.counts = number, list(events.items()), Counter[str]()
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def event(self, kind: str) -> None:
        """Count an event, and send the signal if it is the one."""
        self.counts[kind] += 1
        if kind == "begin" or self.counts[kind] == 1:
            self.note(kind)
        if self.left and self.left[0][0] == kind:
            count = self.left[0][1] - 1
            self.left[:1] = [(kind, count)] if count else []
            if not self.left:
                os.kill(os.getpid(), self.number)

    def note(self, kind: str) -> None:
        """Write what was counted so far, in one call, which a kill does not cut."""
        os.write(self.log, json.dumps({"at": kind, "counts": self.counts}).encode() + b"\n")


def parsed(events: str) -> dict[str, int]:
    """`begin=2,pass=30` as a mapping."""
    found = {kind: int(count) for kind, count in (part.split("=") for part in events.split(",") if part)}
    if not found.keys() <= set(KINDS) or any(count < 1 for count in found.values()):
        raise SystemExit(f"events are {events!r}; known are {', '.join(KINDS)}, each with a count of 1 or more")
    return found


def main(name: str, events: str, log: str, *arguments: str) -> None:
    watch = Watch(signal.Signals[name], parsed(events), Path(log))
    atexit.register(watch.note, "end")
    sys.addaudithook(lambda event, given: audited(watch, event, given))
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    from atent_ext.evaluation import engine

    register_module_forward_pre_hook(lambda *_: watch.event("pass"))
    register_optimizer_step_pre_hook(lambda *_: watch.event("step"))
    engine.score = before(lambda: watch.event("begin"), engine.score)
    os.fsync = before(lambda: watch.event("write"), os.fsync)

    from atent_ext.cli import app

    sys.argv = ["atent", *arguments]
    app.main()


def audited(watch: Watch, event: str, given: tuple[Any, ...]) -> None:
    """An audit hook of Python: it hears of imports, temporary files and renamings before they happen."""
    if event == "import":
        watch.event("import")
    elif event in ("tempfile.mkstemp", "os.rename") and Path(os.fsdecode(given[0])).name.startswith("."):
        watch.event("write")


def before(tell: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        tell()
        return function(*arguments, **options)

    return call


# ---- for the scripts and tests that start it


def started(
    name: str, events: Mapping[str, int], log: Path, *arguments: object, **options: Any
) -> subprocess.Popen[Any]:
    """Start `atent` with these arguments; options of subprocess.Popen."""
    text = ",".join(f"{kind}={count}" for kind, count in events.items())
    command = [sys.executable, __file__, name, text, log, *arguments]
    return subprocess.Popen([str(part) for part in command], **options)


def counted(log: Path) -> list[dict[str, Any]]:
    """The lines of a log."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(*sys.argv[1:])
