"""The notebooks of docs/tutorials/ run, in this process, which spares six kernels and their imports."""

import ast
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from commands import atent

pytestmark = pytest.mark.integration

# A notebook as a reader runs it takes up to half a minute of a core; the test runs its slow settings smaller.
SMALLER = {
    "take(60)": "take(6)",
    "eps=0.15, name=": "eps=0.4, name=",  # AutoAttack's first attacks leave no image to the slow ones
    "norm: Linf, eps: 0.15": "norm: Linf, eps: 0.4",
    "--n 20": "--n 3",
    '"epochs=3"': '"epochs=1", "examples=256"',
    "n=200, chunk=200": "n=40, chunk=40",
    "chains=4000": "chains=400",
    "steps=150": "steps=20",
    "tries=50": "tries=5",
}
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "docs" / "tutorials").glob("*.ipynb"))


def cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def python(source):
    """The cell as Python: a line "!atent ..." calls the command."""
    for setting, smaller in SMALLER.items():
        source = source.replace(setting, smaller)
    lines = source.splitlines()
    return "\n".join(f"command({line[1:].split()[1:]!r})" if line.startswith("!atent ") else line for line in lines)


def command(arguments):
    done = atent(*arguments)
    assert done.returncode == 0, done.stderr


def test_there_are_six_with_every_setting_that_is_made_smaller():
    assert len(NOTEBOOKS) == 6
    text = "\n".join(cell.source for path in NOTEBOOKS for cell in cells(path))
    assert [setting for setting in SMALLER if setting not in text] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_hold_no_error(path):
    outputs = [output for cell in cells(path) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert any("image/png" in output.get("data", {}) or "text/markdown" in output.get("data", {}) for output in outputs)
    assert "/tmp/" not in str(outputs)
    assert not [cell.id for cell in cells(path) if cell.execution_count is None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = {"command": command, "__name__": path.stem}
    monkeypatch.setitem(sys.modules, path.stem, type(sys)(path.stem))  # dataclasses look their module up
    try:
        for cell in cells(path):
            exec(compile(ast.parse(python(cell.source)), f"{path.name}, {cell.id}", "exec"), names)
    finally:
        plt.close("all")
        sys.modules.pop("my_attacks", None)
