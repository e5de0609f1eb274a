"""Run the notebooks of docs/tutorials/ and write their outputs into them.

python eval/pages/tutorials.py              # all of them
python eval/pages/tutorials.py 3-is-it-luck
"""

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
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}, record_timing=False).execute()
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
