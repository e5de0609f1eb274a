"""Write the tables of registry/README.md from registry/cards/.

python eval/write_registry.py
"""

from pathlib import Path

import typer

from atent_ext import board, checkpoints

REGISTRY = Path(__file__).resolve().parent.parent / "registry"


def main(registry: Path = REGISTRY) -> None:
    page = registry / "README.md"
    checkpoints.write(page, board.inserted(page.read_text(encoding="utf-8"), board.markdown(registry / "cards")))
    print(f"written: {page}")


if __name__ == "__main__":
    typer.run(main)
