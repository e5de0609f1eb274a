"""The command `atent` for tests: in this process, or in one of its own."""

import subprocess
import sys
from functools import cache

import pytest
from click.testing import CliRunner
from typer.main import get_command

from atent_ext.cli import app, options

SMALL = ("epochs=2", "objective.steps=2", "validation.count=60", "validation.steps=2")
TINY = [part for change in SMALL for part in ("--set", change)]


def shell(*arguments):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "atent_ext", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@cache
def _command():
    """What typer makes of the functions, at every call that is not asked for it."""
    return get_command(app.app)


def atent(*arguments, width=200):
    """The command in this process, which spares the imports: the same streams and exit code, `width` columns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options.console, "width", width)
        done = CliRunner().invoke(_command(), [*map(str, arguments)], catch_exceptions=False)
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def refused(done, *words):
    """One line on stderr, exit code 2, no traceback."""
    assert done.returncode == 2, done.stdout + done.stderr
    message = done.stderr.strip()
    assert message.count("\n") == 0
    assert "Traceback" not in message
    for word in words:
        assert word in message
