"""The command `atent` for tests: in this process, or in one of its own."""

import io
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest
from rich.console import Console

from atent_ext.cli import app

SMALL = ("epochs=2", "objective.steps=2", "validation.count=60", "validation.steps=2")
TINY = [part for change in SMALL for part in ("--set", change)]


def shell(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "atent_ext", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def atent(*arguments):
    """The command in this process, which spares the imports: the same entry point, streams and exit code."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["atent", *map(str, arguments)])
        patch.setattr(app, "console", Console(width=200))
        try:
            app.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(done, *words):
    """One line on stderr, exit code 2, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stderr.strip()
    assert message.count("\n") == 0
    assert "Traceback" not in message
    for word in words:
        assert word in message


def started(*arguments):
    command = [sys.executable, "-m", "atent_ext", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    deadline = time.monotonic() + 400
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
