"""Write the cards of registry/cards anew in the layout of today's reports; their flags and figures stay.

python eval/pages/rewrite_cards.py
"""

from pathlib import Path

import typer

from atent_ext.submissions.cards import read_card, write_card

CARDS = Path(__file__).resolve().parents[2] / "registry" / "cards"


def main(folder: Path = CARDS) -> None:
    for path in sorted(folder.rglob("*.json")):
        write_card(read_card(path), path)
        print(path.relative_to(folder))


if __name__ == "__main__":
    typer.run(main)
