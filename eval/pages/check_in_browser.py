"""Open pages in headless Chromium, as a desktop and a phone show them, light and dark, and check them.

mkdocs build && python eval/pages/check_in_browser.py site                  # the site, the leaderboard, `atent view`
python eval/pages/check_in_browser.py site --pictures OUT                   # and write a picture of each

A fault is a serious violation of axe-core, a message on the console, or a page that is wider than its window.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from atent_ext import subjects
from atent_ext.leaderboard import view
from atent_ext.leaderboard.view_images import look

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import browser

ROOT = Path(__file__).resolve().parents[2]
CARDS = ROOT / "registry" / "cards" / "digits" / "Linf-0.15"
WINDOWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
SCHEMES = ("light", "dark")
PAGES = (
    *("index", "guide/evaluate", "guide/train", "method", "results", "leaderboard", "tutorials/1-is-my-model-robust"),
    *("reference/atent_ext", "reference/commands", "board/index"),
)
"""Pages of the site without .html: one of each kind. A model's page of the board and one of `atent view` come in."""
VIEWED = ("quickstart-digits-linf-atent", "quickstart-digits-linf-pgd-at")


def chosen(site: Path, folder: Path) -> dict[str, Path]:
    """The pages that are opened, by the name of their pictures. folder: where the page of `atent view` is written."""
    pages = {name.replace("/", "-"): site / f"{name}.html" for name in PAGES}
    pages["board-model"] = next(path for path in sorted((site / "board").rglob("*.html")) if path.name != "index.html")
    pages["view"] = folder / "view.html"
    shown = [view.read(CARDS / f"{name}.json") for name in VIEWED]
    view.write(shown, pages["view"], look(subjects.load(f"zoo:{VIEWED[0]}"), shown[0].report))
    return pages


def faults(page: Any, said: list[str]) -> Iterator[str]:
    """What is wrong with the opened page, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    yield from said
    wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wider > 0:
        yield f"{wider} pixels wider than its window"
    options = {"resultTypes": ["violations"], "iframes": False}  # the leaderboard's page embeds one that is checked
    for violation in Axe().run(page, options=options).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            first = violation["nodes"][0]
            reasons = [check["message"] for kind in ("any", "all", "none") for check in first[kind]]
            count = len(violation["nodes"])
            yield f"{violation['id']}, {count} times; {first['html'][:150]} ({'; '.join(reasons)[:200]})"


def main(
    site: Path,
    pictures: Annotated[Path | None, typer.Option(help="A folder for pictures of all pages.")] = None,
    full: Annotated[bool, typer.Option(help="Pictures of whole pages, not of what a window shows.")] = False,
    only: Annotated[str, typer.Option(help="Words of the names of the pages.")] = "",
) -> None:
    if not any(map(shutil.which, browser.NAMES)):
        print(f"not checked in a browser: there is no {', '.join(browser.NAMES)} on the path")
        return
    found = []
    with tempfile.TemporaryDirectory() as temporary, browser.chromium() as opened:
        pages = {name: path for name, path in chosen(site, Path(temporary)).items() if only in name}
        for name, path in pages.items():
            for window, size in WINDOWS.items():
                for scheme in SCHEMES:
                    where = f"{name}-{window}-{scheme}"
                    with browser.page(opened, path, viewport=size, color_scheme=scheme) as (page, heard):
                        page.wait_for_timeout(300)  # transitions of colours
                        if pictures:
                            page.screenshot(path=pictures / f"{where}.png", full_page=full)
                        found += [f"{where}: {' '.join(fault.split())}" for fault in faults(page, heard.errors)]
    print("\n".join(found) or f"{len(pages)} pages have no serious fault in any of {2 * len(WINDOWS)} windows")
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
