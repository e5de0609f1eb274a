"""Run the notebooks of docs/tutorials/ and write their outputs into them.

python eval/pages/tutorials.py              # all of them
python eval/pages/tutorials.py 3-is-it-luck
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import nbformat
import typer
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "tutorials"


def run(path: Path) -> None:
    """Execute a notebook in an empty folder; its outputs are written without the times of its cells."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Commands of a cell print what they print into a file: no progress bars.
        os.environ |= {"TERM": "dumb", "COLUMNS": "100"}
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    for cell in notebook.cells:  # warnings of the machine at hand are no part of the page
        cell.update(
            {"outputs": [one for one in cell.outputs if one.get("name") != "stderr"]} if "outputs" in cell else {}
        )
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    nbformat.write(notebook, path)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Names without .ipynb [default: all].")] = None,
) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            run(path)
            print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
