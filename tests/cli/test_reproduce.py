"""`atent reproduce` and `atent plot`, run as a user runs them."""

import json

import pytest
from commands import atent, refused
from studies import tiny

from atent_ext.experiments import study
from atent_ext.storage import locks


@pytest.fixture(autouse=True)
def tiny_study(monkeypatch):
    known = study.load
    monkeypatch.setattr(study, "load", lambda name: tiny() if name == "tiny" else known(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


def test_every_study_is_listed_with_its_scales():
    done = atent("reproduce", "--list")
    assert done.returncode == 0
    for name in study.names():
        assert any(name in line and "smoke, cpu, full" in line for line in done.stdout.splitlines()), name


def test_a_study_is_run_printed_and_written(folder):
    done = atent("reproduce", "tiny", "--out", folder)
    assert done.returncode == 0, done.stderr
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    shown = {(row[0], row[1]): row for row in rows}
    written = json.loads((folder / "tiny-smoke.json").read_text())
    benign = written["rows"][0]["cells"]["benign"]
    assert shown["SGD", "benign"][2:4] == ["90.00", f"{100 * benign['accuracy']:.1f}"]
    assert shown["theirs", "PGD"][2:4] == ["50.00", "-"]
    assert "differs: all of it" in done.stdout


def test_two_reproductions_do_not_share_a_result(folder):
    with locks.held(folder / "tiny-smoke.json", ""):
        done = atent("reproduce", "tiny", "--out", folder)
    assert done.returncode == 2
    assert "tiny-smoke.json is in use by process" in done.stderr


def test_a_plot_is_drawn_from_its_runs(folder):
    atent("reproduce", "tiny", "--out", folder)
    run = next((folder / "runs").glob("digits-linf-sgd-*"))
    done = atent("plot", "history", run, "--out", folder / "h.png")
    assert done.returncode == 0, done.stderr
    assert (folder / "h.png").is_file()
    assert (folder / "h.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce"], ["no table or figure is named", "--list"]),
        (["reproduce", "v2-tabel1"], ["v2-tabel1", "did you mean 'v2-table1'"]),
        (["reproduce", "tiny", "--scale", "ful"], ["unknown scale of tiny 'ful'", "smoke"]),
        (["reproduce", "tiny", "--row", "SDG"], ["row of tiny at scale smoke 'SDG'", "SGD"]),
        (["plot", "histry"], ["did you mean 'history'"]),
        (["plot", "history"], ["needs at least one"]),
        (["plot", "density", "--out", "x.gif"], [".gif", ".png"]),
    ],
)
def test_nonsense_is_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(atent(*arguments), *words)
    assert not list(tmp_path.rglob("*.json"))
