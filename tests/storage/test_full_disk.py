"""Full and read-only disks, kills and interruptions: which files stay, and which message follows."""

import errno
import json
import os
import signal
import tempfile
from pathlib import Path

import filelock
import pytest
from commands import TINY, atent, refused
from problems import visible
from scripts import started

from atent_ext.core.errors import BadInput, NotWritten
from atent_ext.storage import files, locks
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder

HISTORY = ("plot", "history")
SCORE = ("--protocol", "quick", "--n", 20, "--chunk", 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "run"
    done = atent("train", "digits-linf-pgd-at", *TINY, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    report = tmp_path_factory.mktemp("disk") / "whole.json"
    assert atent("eval", run, *SCORE, "--out", report).returncode == 0
    return flags(report)


def flags(report):
    return [result["flags"] for result in json.loads(report.read_text())["results"]]


def content(folder):
    return {path.name: path.read_bytes() for path in visible(folder) if path.is_file()}


def fails(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


# ---- interruptions


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_evaluation_that_is_interrupted_goes_on_to_the_same_flags(run, undisturbed, tmp_path, number):
    report, chunks = tmp_path / "report.json", tmp_path / "report.json.chunks"
    own = number == signal.SIGTERM
    process = started(number, {"begin": 3, "pass": 5}, "eval", run, *SCORE, "--out", report, own=own)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.strip().splitlines() == ["atent: eval was interrupted; the same command goes on from here"]
    assert not report.exists()
    assert [path.name for path in visible(chunks)] == ["0000.json", "0001.json", "setting.json"]
    assert all(isinstance(json.loads(path.read_text()), dict) for path in visible(chunks))
    assert atent("eval", run, *SCORE, "--out", report).returncode == 0
    assert flags(report) == undisturbed
    assert not chunks.exists()


@pytest.mark.parametrize("changes", [[], TINY])
def test_before_there_is_a_run_resume_says_how_to_begin(tmp_path, changes):
    folder = tmp_path / "run"
    folder.mkdir()  # as a kill leaves it that came before the recipe was written
    (folder / ".lock").touch()
    done = atent("train", "digits-linf-pgd-at", *changes, "--out", folder, "--resume")
    refused(done, f"{folder} holds no run to go on with: there is no recipe.yaml in it; leave out --resume")
    assert atent("train", "digits-linf-pgd-at", *TINY, "--out", folder).returncode == 0


def test_what_a_kill_left_of_a_write_is_removed_and_nothing_else(run):
    for name in (".state.pt.x1", ".weights.safetensors.y_2", ".recipe.yaml.z", ".metrics.jsonl.3", ".state", ".hidden"):
        (run / name).touch()
    before, recipe = content(run), RunFolder(run).recipe()
    with RunFolder(run).claimed(recipe, resume=True, overwrite=False):
        pass
    hidden = {path.name for path in run.iterdir()} - before.keys()
    assert hidden == {".lock", ".state", ".hidden"}
    assert content(run) == before


def test_a_killed_overwrite_leaves_no_state_without_its_weights(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    for name in ("state.pt", "metrics.jsonl", "weights.safetensors"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Path, "unlink", lambda path, unlink=Path.unlink: (unlink(path), fails(errno.EINTR)()))
    with pytest.raises(OSError, match="Interrupted"):
        folder._make_ready(recipes.load("digits-linf-sgd"), resume=False, overwrite=True)
    assert [path.name for path in visible(tmp_path)] == ["metrics.jsonl", "weights.safetensors"]


# ---- read-only


def test_a_read_only_folder_is_reported_in_one_line(run, tmp_path, monkeypatch):
    before = content(run)
    monkeypatch.setattr(tempfile, "mkstemp", fails(errno.EROFS))
    done = atent("train", "digits-linf-pgd-at", *TINY, "--out", tmp_path / "run")
    size = len((run / "recipe.yaml").read_bytes())
    refused(
        done,
        f"recipe.yaml cannot be written (Read-only file system); it needs {size} bytes; an earlier file is unchanged",
    )
    refused(atent("eval", run, *SCORE), "setting.json cannot be written (Read-only file system); it needs ")
    refused(atent(*HISTORY, run, "--out", tmp_path / "h.png"), "h.png cannot be written (Read-only file system)")
    assert content(run) == before


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_a_run_in_a_read_only_folder_is_not_touched(run, monkeypatch, how):
    before = content(run)
    monkeypatch.setattr(filelock.FileLock, "acquire", fails(errno.EROFS))
    done = atent("train", "digits-linf-pgd-at", *TINY, "--out", run, how)
    message = "cannot be written (Read-only file system); make room there, or name another --out"
    refused(done, f"{run / '.lock'} {message}")
    assert content(run) == before


def test_a_folder_that_becomes_read_only_does_not_hide_the_error(tmp_path, monkeypatch):
    def use():
        with locks.held(tmp_path, "wait"):
            monkeypatch.setattr(Path, "unlink", fails(errno.EROFS))
            raise NotWritten("state.pt cannot be written")

    with pytest.raises(NotWritten, match=r"^state\.pt cannot be written$"):
        use()
    with locks.held(tmp_path, "wait"):  # and it was released
        pass


# ---- full


def test_a_folder_is_locked_on_a_full_disk_without_the_name_of_the_owner(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: (path.touch(), fails(errno.ENOSPC)()))
    with locks.held(tmp_path, "wait"):
        assert (tmp_path / ".lock-owner").read_text() == ""
        with pytest.raises(BadInput, match=r"is in use by another process; wait$"), locks.held(tmp_path, "wait"):
            pass


def test_a_missing_folder_is_created_or_named(tmp_path):
    files.write(tmp_path / "a" / "b" / "file", "whole")
    assert (tmp_path / "a" / "b" / "file").read_text() == "whole"
    file = tmp_path / "a" / "b" / "file" / "below"
    with pytest.raises(NotWritten) as error:
        files.write(file, "12345")
    assert str(error.value).startswith(f"{file} cannot be written (File exists); it needs 5 bytes")


def test_a_figure_on_a_full_disk_leaves_the_old_one(run, tmp_path, monkeypatch):
    assert atent(*HISTORY, run, "--out", tmp_path / "h.png").returncode == 0
    before = content(tmp_path)
    assert sorted(before) == ["h.png", "h.svg"]
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC))
    size = f"{len(before['h.png']):,}"
    done = atent(*HISTORY, run, "--out", tmp_path / "h.png")
    refused(done, f"h.png cannot be written (No space left on device); it needs {size} bytes; an earlier")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
