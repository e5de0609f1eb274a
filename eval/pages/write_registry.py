"""Write the tables of registry/README.md from registry/cards/.

python eval/pages/write_registry.py
"""

from pathlib import Path

import typer

from atent_ext.leaderboard import site
from atent_ext.storage import files

REGISTRY = Path(__file__).resolve().parents[2] / "registry"


def main(registry: Path = REGISTRY) -> None:
    page = registry / "README.md"
    files.write(page, site.inserted(page.read_text(encoding="utf-8"), site.markdown(registry / "cards")))
    print(f"written: {page}")


if __name__ == "__main__":
    typer.run(main)
