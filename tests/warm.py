"""Python processes that start in a tenth of a second: forks of one that has imported torch and the package already.

While `starts()` is entered, `subprocess` starts `python FILE …`, `python -m …` and `python -c …` so. It starts other
commands as ever, those with other options of Popen, and those whose variables decide how Python or torch begins.
Streams, signals and exit codes are the same (test_warm.py). Not the same: texts hash as in the warm process, imports
are done before the variables are set, and Python is not taken to pieces at the end. A test of such things needs a
process of its own; some tests of kills and of two processes keep one. Only Linux can: elsewhere all is as ever.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

IMPORTED = (
    *("torch", "torch._dynamo", "torch.distributed.run", "accelerate", "sklearn.model_selection", "sklearn.datasets"),
    *("atent_ext.cli.app", "atent_ext.training.loop", "atent_ext.evaluation.scoring", "atent_ext.submissions"),
)
_AT_THE_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "LD_", "LC_", "LANG", "TORCH", "CUDA", "GLOO_", "ACCELERATE_")
_PLAIN = (True, None, None, None, -1, False, -1)
"""What Popen hands on as restore_signals, gid, gids, uid, umask, start_new_session and, since Python 3.11,
process_group where nobody gives them."""
_SUBREAPER = 36
"""prctl's PR_SET_CHILD_SUBREAPER: orphans below this process become its children, so that it can wait for them."""
_LARGEST = 1 << 17
"""Bytes of a request."""
_ordinary = subprocess.Popen


@contextmanager
def starts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(subprocess, "Popen", Warm)
        yield


class Warm(subprocess.Popen[Any]):
    """A process that is forked from the warm one where that makes no difference."""

    def _execute_child(self, args: Any, executable: Any, preexec: Any, close: Any, fds: Any, *more: Any) -> None:
        folder, given, _, _, shell, *pipes = more[:11]
        args = [os.fspath(part) for part in args] if isinstance(args, list) else args
        environment = dict(os.environ if given is None else given)
        special = shell or executable or preexec or fds or more[11:] != _PLAIN[: len(more) - 11]
        if special or not forkable(args, environment):
            super()._execute_child(args, executable, preexec, close, fds, *more)  # type: ignore[misc]
            return
        request = {"arguments": args[1:], "folder": str(Path(folder or ".").resolve()), "environment": environment}
        request["deaf"] = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        streams = [own if pipe == -1 else pipe for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.pid = forked(json.dumps(request).encode(), streams)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def forkable(arguments: Any, environment: Mapping[str, str]) -> bool:
    if not isinstance(arguments, list) or arguments[:1] != [sys.executable] or len(arguments) < 2:
        return False
    runs = arguments[1] in ("-m", "-c") or not arguments[1].startswith("-")
    return runs and beginning(environment) == warm_process().beginning


def beginning(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_AT_THE_START)}


def forked(request: bytes, streams: Sequence[int]) -> int:
    """The id of a new process, which becomes a child of this one."""
    control = ctypes.CDLL(None).prctl
    control(_SUBREAPER, 1, 0, 0, 0)
    try:
        socket.send_fds(warm_process().channel, [request], streams)
        return int(warm_process().channel.recv(20))
    finally:
        control(_SUBREAPER, 0, 0, 0, 0)


@dataclass(frozen=True)
class WarmProcess:
    """The way to it, and the variables that decided how it began."""

    channel: socket.socket
    beginning: dict[str, str]


@cache
def warm_process() -> WarmProcess:
    """The warm process, which ends with this one."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, str(its.fileno())]
    process = _ordinary(command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    its.close()

    def end() -> None:
        mine.close()
        process.wait()

    atexit.register(end)
    return WarmProcess(mine, beginning(os.environ))


# ---- the warm process, and what is forked from it


def serve(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """None where the tests have ended; in a new process, what it is to become."""
    while True:
        request, streams, *_ = socket.recv_fds(channel, _LARGEST, 3)
        if not request:
            return None
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            process = os.fork()
            if process == 0:
                channel.close()
                return json.loads(request), streams
            os.write(writing, str(process).encode())
            os._exit(0)
        os.waitpid(between, 0)
        channel.send(os.read(reading, 20))
        for descriptor in (reading, writing, *streams):
            os.close(descriptor)


def become(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    for own, stream in enumerate(streams):
        os.dup2(stream, own)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["deaf"] else signal.default_int_handler)
    np.random.seed()  # noqa: NPY002
    random.seed()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    program, *arguments = request["arguments"]
    if program == "-m":
        module, *arguments = arguments
        sys.argv, sys.path[0] = [module, *arguments], request["folder"]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif program == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[0] = [program, *arguments], str(Path(program).parent.resolve())
        runpy.run_path(program, run_name="__main__")


def exit_code(request: Mapping[str, Any], streams: Sequence[int]) -> int:
    """What Python does after a program, but for the second and a half in which it takes torch to pieces."""
    code: Any = 0
    try:
        become(request, streams)
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
        if isinstance(error, KeyboardInterrupt):
            code = -signal.SIGINT
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    return code or 0


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    found = serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(exit_code(*found) if found else 0)
