"""Pictures of the leaderboard: the index and a model's page, on a desktop and a phone, light and dark.

python eval/pages/board_screenshots.py docs/img                            # of registry/cards
python eval/pages/board_screenshots.py OUT --cards FOLDER --model NAME
"""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from atent_ext.leaderboard import site

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import browser

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def main(
    out: Path,
    cards: Path = ROOT / "registry" / "cards",
    model: Annotated[str, typer.Option(help="Words of the model's page; the first page else.")] = "",
    full: Annotated[bool, typer.Option(help="The whole page, not what a window shows of it.")] = False,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, browser.chromium() as opened:
        index, *others = site.build(cards, Path(temporary))
        pages = {
            "index": index,
            "model": next(path for path in others if model in path.name and path.suffix == ".html"),
        }
        for name, path in pages.items():
            for window, size in WINDOWS.items():
                for scheme in ("light", "dark"):
                    with browser.page(opened, path, viewport=size, color_scheme=scheme) as (page, _):
                        file = out / f"board-{name}-{window}-{scheme}.png"
                        page.screenshot(path=file, full_page=full)
                        print(f"written: {file}")


if __name__ == "__main__":
    typer.run(main)
