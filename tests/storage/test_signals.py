"""Ctrl-C, SIGTERM, a second process, a full disk: results are kept, and a one-line message gives the remedy."""

import errno
import os
import signal
import threading

import pytest
from commands import TINY, atent, refused
from problems import visible
from scripts import started, stopped

from atent_ext.core.errors import BadInput, NotWritten
from atent_ext.storage import files, locks, signals

pytestmark = pytest.mark.usefixtures("ctrl_c")
SECOND_EPOCH = {"step": 30}
"""An epoch of TINY has 22 steps."""

# ---- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number):
    seen, before = [], signal.signal(number, lambda *_: seen.append("signal"))
    try:
        with signals.held_back():
            signal.raise_signal(number)
            signal.raise_signal(number)
            seen.append("block")
        assert seen == ["block", "signal"]
        signal.raise_signal(number)
        assert seen == ["block", "signal", "signal"]  # the handler is back
    finally:
        signal.signal(number, before)


def test_ctrl_c_is_raised_after_the_block_also_if_that_fails():
    def fail():
        with signals.held_back():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("within")

    with pytest.raises(KeyboardInterrupt) as error:
        fail()
    assert isinstance(error.value.__context__, ValueError)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_are_not_affected():
    done = []
    thread = threading.Thread(target=lambda: done.append(signals.held_back().__enter__()))
    thread.start()
    thread.join()
    assert done == [None]


def test_a_file_is_written_whole_before_ctrl_c_ends_anything(tmp_path, monkeypatch):
    sync = os.fsync

    def interrupted(handle):
        signal.raise_signal(signal.SIGINT)
        sync(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "file", "whole")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "whole")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_is_interrupted_says_how_to_go_on(tmp_path, number):
    process = started(number, SECOND_EPOCH, "train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run")
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip().splitlines() == ["atent: train was interrupted; go on with the same command and --resume"]
    names = ["metrics.jsonl", "recipe.yaml", "state.pt", "weights.safetensors"]
    assert [path.name for path in visible(tmp_path / "run")] == names


# ---- two processes


def test_a_second_process_on_a_run_folder_is_refused_by_name_of_the_first(tmp_path):
    first = started(signal.SIGSTOP, SECOND_EPOCH, "train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run")
    with stopped(first):
        for how in ("--resume", "--overwrite"):
            second = atent("train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run", how)
            refused(second, f"run is in use by process {first.pid} on ", "wait for it, or name another --out")
    with locks.held(tmp_path / "run", ""):  # a kill frees it
        pass


def test_a_locked_file_is_refused_and_free_afterwards(tmp_path):
    target = tmp_path / "file.json"
    with locks.held(target, "do this"), pytest.raises(BadInput) as error, locks.held(target, "do this"):
        pass
    assert (error.value.code, error.value.field) == ("in-use", "target")
    assert str(error.value).startswith(f"{target} is in use by process {os.getpid()} on ")
    assert str(error.value).endswith("; do this")
    with pytest.raises(ZeroDivisionError), locks.held(target, "do this"):
        raise ZeroDivisionError
    with locks.held(target, "do this"):
        pass
    assert visible(tmp_path) == []


def test_an_owner_without_a_name_is_another_process(tmp_path):
    with locks.held(tmp_path, "wait"):
        (tmp_path / ".lock-owner").unlink()
        with pytest.raises(BadInput, match="in use by another process; wait"), locks.held(tmp_path, "wait"):
            pass


@pytest.mark.parametrize("command", [("train", "digits-linf-sgd"), ("quickstart",)])
def test_after_overwrite_the_remedy_is_to_leave_it_out(tmp_path, monkeypatch, command):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("atent_ext.training.loop.fit", interrupted)
    monkeypatch.setattr("atent_ext.experiments.runner.fit", interrupted)
    for options, end in (((), ""), (("--overwrite",), ", without --overwrite")):
        done = atent(*command, "--out", tmp_path / "out", *options)
        assert done.returncode == 130
        remedy = {
            "train": "go on with the same command and --resume",
            "quickstart": "the same command goes on from here",
        }[command[0]]
        assert done.stderr.strip() == f"atent: {command[0]} was interrupted; {remedy}{end}"


def test_two_evaluations_with_one_out_are_not_mixed(tmp_path):
    done = atent("train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    evaluation = ("eval", tmp_path / "run", "--n", 20, "--chunk", 10, "--out", tmp_path / "report.json")
    first = started(signal.SIGSTOP, {"begin": 1}, *evaluation)
    with stopped(first):
        refused(atent(*evaluation), "report.json.chunks is in use by process", str(first.pid))


# ---- a disk that is full


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_the_last_good_file_stays_and_the_error_says_what_is_needed(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    files.write(path, "good")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NotWritten) as error:
        files.write(path, b"x" * 12_345)
    reason = "No space left on device); it needs 12,345 bytes; an earlier file is unchanged"
    assert str(error.value) == f"{path} cannot be written ({reason}"
    assert (error.value.code, error.value.field) == ("not-written", "path")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("state.pt", "good")]


def test_the_command_line_reports_a_full_disk_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    done = atent("train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run")
    refused(done, "recipe.yaml cannot be written (No space left on device)")
