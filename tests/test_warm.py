"""Processes forked from the warm one do what processes of their own do."""

import os
import signal
import subprocess
import sys

import pytest
import warm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("ctrl_c"),
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux can make orphans the children of this process"),
]

FILE = """
import sys
print(__name__, sys.argv[1:], sys.stdin.read())
"""
PROGRAMS = {
    "streams": "import sys; print(sys.stdin.read()); print('err', file=sys.stderr)",
    "a folder and a variable": "import os; print(os.getcwd(), os.environ['MINE'], 'HOME' in os.environ)",
    "arguments": "import sys; print(sys.argv, sys.path[0], __name__, '__file__' in globals())",
    "an exit code": "import sys; sys.exit(7)",
    "an exit text": "import sys; sys.exit('no')",
    "an exception": "raise ValueError('no')",
    "an exception hook": "import sys; sys.excepthook = lambda *_: print('hook'); raise ValueError",
    "Ctrl-C": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "a kill": "import os, signal; print('out', flush=True); os.kill(os.getpid(), signal.SIGKILL)",
    "a thread": "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
    "what is done at the end": "import atexit; atexit.register(print, 'end'); print('out')",
    "what nobody flushed": "import sys; sys.stdout.write('out')",
}


def done(command, tmp_path, **more):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | {"MINE": "here"}
    found = subprocess.run(command, input="in", capture_output=True, text=True, cwd=tmp_path, env=environment, **more)
    last = found.stderr.strip().splitlines()[-1:]  # a traceback has other frames
    return found.returncode, found.stdout, last


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_as_in_a_process_of_its_own(name, tmp_path):
    command = [sys.executable, "-c", PROGRAMS[name], "one"]
    own = done(command, tmp_path)
    with warm.starts():
        assert done(command, tmp_path) == own


@pytest.mark.parametrize("given", [["file.py", "one"], ["-m", "file", "one"]], ids=["file", "module"])
def test_a_file_and_a_module_run_as_in_a_process_of_their_own(given, tmp_path):
    (tmp_path / "file.py").write_text(FILE)
    own = done([sys.executable, *given], tmp_path)
    assert own == (0, "__main__ ['one'] in\n", [])
    with warm.starts():
        assert done([sys.executable, *given], tmp_path) == own


def test_a_signal_from_outside_ends_it():
    with warm.starts():
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM


def test_draws_that_nobody_seeded_differ(tmp_path):
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    with warm.starts():
        first, second = (done([sys.executable, "-c", code], tmp_path)[1].split() for _ in range(2))
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    "more",
    [{"start_new_session": True}, {"env": os.environ | {"OMP_NUM_THREADS": "3"}}, {"shell": True}],
    ids=["session", "threads", "shell"],
)
def test_what_a_fork_could_not_do_is_done_by_a_process_of_its_own(more, monkeypatch):
    forks = []
    monkeypatch.setattr(warm, "forked", lambda *_: forks.append("fork"))
    with warm.starts():
        assert subprocess.run([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL, **more).returncode == 0
    assert forks == []
