"""The scripts of `eval/` for tests, as modules of this process, and `atent` in a process that signals come to."""

import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from signal import Signals
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import warm

from atent_ext.cli import exit

EVAL = Path(__file__).resolve().parents[1] / "eval"


def module(name: str) -> ModuleType:
    """`experiments/zoo`, say, as a module; its folder stays on the path, where a script finds those beside it."""
    folder, _, stem = name.rpartition("/")
    if str(EVAL / folder) not in sys.path:
        sys.path.append(str(EVAL / folder))
    return importlib.import_module(stem)


def run(name: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """A script in this process: its exit code and what it printed."""
    script, out, err = module(name), io.StringIO(), io.StringIO()
    # A script may set variables for the processes that it starts.
    with mock.patch.dict(os.environ), pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            exit.run(script.app)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def started(
    number: Signals, events: Mapping[str, int], *arguments: object, own: bool = False, **options: Any
) -> subprocess.Popen[str]:
    """`atent` in a process that sends itself a signal at an event, as eval/stress/signal_at.py says.

    own: a process that is not forked from the warm one, with hashes of texts of its own, say.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    signal_at = module("stress/signal_at")
    with nullcontext() if own else warm.starts():
        return signal_at.started(number.name, events, Path(os.devnull), *arguments, **pipes, **options)


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Wait until a process stopped itself, and kill it in the end."""
    try:
        happened = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert happened is not None
        assert happened.si_code == os.CLD_STOPPED, process.communicate()
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
