"""eval/stress/same_flags.py: every text of flags is still there, wherever it lies in a file."""

import importlib
import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
CARD, REPORT = "registry/cards/digits/one.json", "eval/results/zoo/two.json"
OLD = {
    CARD: {"report": {"results": [{"attack": "clean", "flags": "1111"}, {"attack": "AutoAttack", "flags": "1001"}]}},
    REPORT: {"rows": [{"name": "SGD", "cells": {"AutoAttack": {"flags": "1000", "n": 4}}}], "flags_same": [True]},
}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "eval" / "stress")
    return importlib.import_module("same_flags")


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    return folder


def compare(script, tmp_path, new, old=OLD):
    folders = [str(write(tmp_path / name, files)) for name, files in (("old", old), ("new", new))]
    done = CliRunner().invoke(script.app, folders)
    return done.exit_code, done.output.splitlines()


def test_the_same_files_have_the_same_flags(script, tmp_path):
    code, lines = compare(script, tmp_path, OLD)
    assert code == 0
    assert lines == [
        "2 files: 3 flags the same (0 of them in another place or under another label), 0 changed, 0 missing, 0 added"
    ]


def test_another_layout_and_other_keys_change_nothing(script, tmp_path):
    results = [{"kind": "autoattack", "attack": "AutoAttack", "flags": "1001"}, {"name": "clean", "flags": "1111"}]
    new = {CARD: {"version": 2, "results": results}, REPORT: {"cells": [{"method": "SGD", "flags": "1000"}]}}
    code, lines = compare(script, tmp_path, new)
    assert code == 0
    assert lines[-1].startswith("2 files: 3 flags the same (3 of them in another place")


def test_flags_that_changed_or_are_gone_are_named(script, tmp_path):
    results = [{"attack": "AutoAttack", "flags": "1011"}, {"attack": "PGD-20", "flags": "1011"}]
    code, lines = compare(script, tmp_path, {CARD: {"results": results}})
    assert code == 1
    assert lines == [
        f"changed: {CARD}, AutoAttack: 4 images",
        f"missing: {CARD}, clean: 4 images",
        f"missing: {REPORT}, AutoAttack: 4 images",
        "2 files: 0 flags the same (0 of them in another place or under another label), 1 changed, 2 missing, 1 added",
    ]


def test_a_text_that_is_there_twice_has_to_stay_there_twice(script, tmp_path):
    twice = {CARD: {"results": [{"attack": "PGD-20", "flags": "1001"}, {"attack": "AutoAttack", "flags": "1001"}]}}
    once = {CARD: {"results": [{"attack": "AutoAttack", "flags": "1001"}]}, REPORT: OLD[REPORT]}
    code, lines = compare(script, tmp_path, once, twice)
    assert code == 1
    assert lines[-1].startswith("1 files: 1 flags the same")
    assert lines[-1].endswith("0 changed, 1 missing, 1 added")


def test_a_state_without_flags_is_refused(script, tmp_path, capfd):
    for state in (str(tmp_path), "no-such-revision"):
        with pytest.raises(script.BadInput) as error:
            script.read(state)
        assert error.value.code in ("missing", "unknown-name")
        assert error.value.field == "base"


@pytest.mark.integration
def test_a_git_revision_is_read_without_a_checkout(script, tmp_path, monkeypatch):
    write(tmp_path, OLD)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "old"]):
        subprocess.run([*git, *arguments], check=True)
    write(tmp_path, {CARD: {"flags": "0000"}})
    monkeypatch.setattr(script, "ROOT", tmp_path)
    assert script.read("HEAD")[CARD] == [("clean", "1111"), ("AutoAttack", "1001")]
    assert script.read(str(tmp_path))[CARD] == [("", "0000")]
    done = CliRunner().invoke(script.app, ["HEAD", str(tmp_path)])
    assert done.exit_code == 1
    assert "1 flags the same" in done.output
    assert "2 missing, 1 added" in done.output
