"""Check every link of the built site, the leaderboard's pages included: its file is there, and the place in it.

mkdocs build && python eval/pages/check_site.py site
"""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import typer

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src"}


class Page(HTMLParser):
    """The links of a page, and the names that a link may point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "__top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.anchors |= {str(known[name]) for name in ("id", "name") if known.get(name)}
        if link := known.get(LINKS.get(tag, "")):
            self.links.append(link)


def faults(folder: Path) -> list[str]:
    """A line for each link that leads nowhere."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    return [
        f"{path.relative_to(folder.resolve())}: {link}"
        for path, page in pages.items()
        for link in page.links
        if path.name != "404.html" and not _leads_somewhere(path, link, pages)
    ]


def _leads_somewhere(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True  # a stranger's address; requests are not made here
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    return target.is_file() and (target not in pages or unquote(parts.fragment) in pages[target].anchors)


def main(folder: Path) -> None:
    found = faults(folder) if (folder / "index.html").is_file() else [f"{folder} holds no site; run mkdocs build"]
    for fault in found:
        print(fault)
    if found:
        raise typer.Exit(1)
    print(f"every link of {folder} leads somewhere")


if __name__ == "__main__":
    typer.run(main)
