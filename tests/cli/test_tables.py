"""Every table that a command prints, in a narrow console: nothing is cut, and names stay in one piece."""

import io
from types import SimpleNamespace

import pytest
import typer
from commands import atent
from rich.console import Console

from atent_ext.cli import app, catalog, console, doctor, options
from atent_ext.evaluation.certificates import Certified
from atent_ext.evaluation.comparison import Comparison, Pair
from atent_ext.evaluation.report import Report
from atent_ext.experiments import quickstart, report, reproduce, study
from atent_ext.subjects import zoo
from atent_ext.submissions import folder, verification

MODEL = "quickstart-digits-linf-entropy-sgd-of-another-seed"
OTHER = "another-digits-linf-pgd-at"
ATTACKS = ("clean", "PGD-40 x 10, every iterate", "AutoAttack of a changed version", "worst case")
FILES = ("v1-fig1-cpu-of-a-very-long-name-of-a-figure.png", "b.svg")
REPAIR = "zero_gradients supplied from advertorch's own past, container_abcs supplied from collections.abc"
VERSION = "2.15.0.dev20261126+cu128"


def scored(name, attacks=ATTACKS):
    kinds = {"clean": "clean", "worst case": "worst_case"}
    results = [
        {"kind": kinds.get(attack, "attack"), "attack": attack, "correct": 9876, "n": 10000, "accuracy": 0.9876}
        | {"interval95_wilson": (0.98, 0.99), "seconds": 12345.6}
        for attack in attacks
    ]
    about = {"name": name, "model": "net", "data": "mnist", "part": "test", "n": 10000, "total": 10000, "seed": 0}
    setting = {"protocol": "zoo", "threat": {"norm": "Linf", "eps": 0.3}, "batch_size": 250, "processes": 2}
    return Report.model_validate(about | setting | {"results": results})


def certified():
    smoothing = {"sigma": 0.25, "n": 100000, "n0": 100, "alpha": 0.001}
    about = {"name": MODEL, "model": "net", "data": "mnist", "seed": 0, "images": 100, "smoothing": smoothing}
    return Certified.model_validate(about | {"certified_accuracy": {"0.0625": 0.9, "1": 0.0}})


def examined():
    row = {"version": VERSION, "use": "integrations.robustbench.register, resnet-18", "repaired": [], "install": None}
    rows = [
        row | {"neighbour": "advertorch", "status": "ok", "reason": None, "repaired": [REPAIR]},
        row | {"neighbour": "torchattacks", "status": "fails", "reason": "import: RuntimeError: " + "no " * 90},
        row
        | {"neighbour": "autoattack", "status": "not installed", "reason": None, "version": None}
        | {"install": "pip install git+https://github.com/fra31/auto-attack"},
    ]
    return {"atent-ext": "0.2.0", "python": "3.11", "platform": "Linux x86_64", "device": None, "neighbours": rows}


def compared(scored=None):
    figures = {"scored": scored, "both": 9000, "a_alone": 500, "b_alone": 400, "neither": 100}
    figures |= {"p": 0.00123, "p_holm": 0.00123}
    pairs = (Pair(a=MODEL, b=OTHER, verdict="win", **figures), Pair(a=OTHER, b="c", verdict="tie", **figures))
    return Comparison(attack=ATTACKS[2], n=10000, pairs=pairs)


def result(kind):
    cell = {"accuracy": 0.987, "interval95_wilson": (0.98, 0.99), "n": 10000}
    spread = {"median": 1.23, "least": 1.0, "most": 2.0, "rounds": 5}
    row = {"name": MODEL, "data": "mnist", "paper": {ATTACKS[1]: 99.39}, "cells": {ATTACKS[1]: cell}}
    row |= {"seconds_a_step": spread, "ratio": spread, "paper_ratio": 2.5}
    about = {"title": "v2 Table 2", "scale": "full", "seed": 0, "kind": kind, "files": FILES}
    return about | {"columns": [ATTACKS[1]], "rows": [row]}


TABLES = {
    "eval": (scored(MODEL).table(), (*ATTACKS, MODEL)),
    "certify": (console.certified_table(certified()), ("0.0625", "1", MODEL)),
    "compare": (compared().table(), (MODEL, OTHER, "c")),
    "compare --until-decided": (compared(scored=9000).table(), (MODEL, OTHER, "c")),
    "quickstart": (console.board_table([scored(MODEL), scored("b")]), (MODEL, "b")),
    "doctor": (console.doctor_table(examined()), ("advertorch", "torchattacks", "autoattack")),
    "reproduce --list": (report.listing(), study.names()),
    "reproduce, accuracies": (report.table(result("accuracy")), (MODEL,)),
    "reproduce, times": (report.table(result("times")), (MODEL,)),
    "reproduce, figure": (report.table(result("figure")), FILES),
}


def drawn(table, width):
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(table, crop=False)
    return out.getvalue()


def squeezed(text):
    """Without frames and blanks, column by column: what was folded is in one piece again."""
    rows = [line.strip("│┃").replace("┃", "│").split("│") for line in text.splitlines() if line[:1] in "│┃"]
    return "".join("".join(cell.split()) for column in zip(*rows, strict=True) for cell in column)


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("name", TABLES)
def test_names_stay_in_one_piece_and_nothing_is_cut(name, width):
    table, first_column = TABLES[name]
    text = drawn(table, width)
    assert "…" not in text
    for one in first_column:
        assert any(one in line for line in text.splitlines()), one
    assert squeezed(text) == squeezed(drawn(table, 500))


@pytest.mark.parametrize("width", [80, 60])
def test_the_doctor_cuts_no_version_no_repair_and_no_command(width):
    text = drawn(TABLES["doctor"][0], width)
    assert max(map(len, text.splitlines())) <= width
    assert VERSION in (text if width == 80 else squeezed(text))
    for words in (REPAIR, "pip install git+https://github.com/fra31/auto-attack", "no " * 90):
        assert "".join(words.split()) in squeezed(text)


def test_what_is_usual_fits_80_columns():
    usual = [scored("quickstart-digits-linf-pgd-at", ATTACKS[:2])]
    for table in (scored(MODEL).table(), console.board_table(usual), report.listing()):
        assert max(map(len, drawn(table, 80).splitlines())) <= 80


# ---- the commands themselves, in a pipe of 80 columns

LOOKED_UP = "quickstart-digits-linf-pgd-at"
TRAINED = "quickstart-digits-linf-sgd"
SMALL = {"eval": ["--protocol", "clean", "--n", 5], "certify": ["--sigma", 0.25, "--n", 20, "--n0", 5, "--max", 2]}


def card():
    return zoo.find(LOOKED_UP)[0][0]


COMMANDS = {
    **{f"ls {kind}": lambda kind=kind: [one["name"] for one in catalog.KINDS[kind][0]()] for kind in catalog.KINDS},
    "ls": lambda: list(catalog.KINDS),
    f"show {LOOKED_UP} --kind card": lambda: [LOOKED_UP, *(one.attack for one in card().report.results)],
    f"eval {TRAINED}": lambda: [TRAINED, "clean"],
    f"certify {TRAINED}": lambda: [TRAINED, "0.0625"],
    "compare a.json b.json": lambda: [MODEL, OTHER],
    "compare a.json b.json --until-decided": lambda: [MODEL, OTHER],
    "doctor": lambda: ["advertorch", "torchattacks", "autoattack", VERSION],
    "reproduce --list": study.names,
    "reproduce v2-table2": lambda: [MODEL],
    "quickstart": lambda: [MODEL, *ATTACKS[:1]],
    "verify stub": lambda: [LOOKED_UP, *(one.attack for one in card().report.results)],
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """What takes long is stated instead of measured."""
    monkeypatch.chdir(tmp_path)
    for name, path in ((MODEL, "a.json"), (OTHER, "b.json")):
        clean = scored(name, ("clean",))
        flags = clean.results[0].model_copy(update={"flags": "1" * 9876 + "0" * 124})
        clean.model_copy(update={"results": (flags,)}).save(tmp_path / path)
    monkeypatch.setattr(doctor, "check", lambda names: examined())
    monkeypatch.setattr(doctor, "healthy", lambda checked: True)
    monkeypatch.setattr(quickstart, "quickstart", lambda *_, **__: [scored(MODEL)])
    stated = result("accuracy") | {"differs": "", "notes": ""}
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: stated)
    monkeypatch.setattr(folder, "read", lambda *_: SimpleNamespace())
    monkeypatch.setattr(verification, "verify", lambda *_, **__: card())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_cuts_no_name_in_80_columns(measured, command):
    done = atent(*command.split(), *SMALL.get(command.split()[0], []), width=80)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "…" not in done.stdout
    for name in COMMANDS[command]():
        assert any(name in line for line in lines), name


@pytest.mark.parametrize("group", ["", "registry", "submission"])
def test_the_help_lists_the_commands_in_whole_sentences(group):
    whole = typer.main.get_command(app.app)
    done = atent(*group.split(), "--help")
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    for name, command in (whole.commands[group] if group else whole).commands.items():
        sentence = " ".join(command.help.split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
        assert f" {name} {sentence}" in text


def test_a_command_prints_its_table_whole_in_a_narrow_console():
    done = atent("reproduce", "--list", width=20)
    assert done.returncode == 0
    assert squeezed(done.stdout) == squeezed(drawn(report.listing(), 500))


def test_what_is_printed_has_no_pictures_and_styles_for_words(capsys):
    options.print_line(":cat: [red]")
    assert capsys.readouterr().out == ":cat: [red]\n"
