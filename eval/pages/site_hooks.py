"""Hooks of mkdocs (mkdocs.yml): pages that are made while the site is built, and formulas without a script.

The reference and the leaderboard come from the code and the cards, the tutorials from their notebooks, the changelog
and the contributor's guide from the root of the repository. LaTeX becomes MathML, which browsers draw by themselves.
"""

import html
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

from atent_ext.leaderboard import site

sys.path.insert(0, str(Path(__file__).resolve().parent))
import reference

ROOT = Path(__file__).resolve().parents[2]
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_config(config: Any) -> Any:
    """Give the reference its part of the navigation."""
    (own,) = (entry["Reference"] for entry in config.nav if "Reference" in entry)
    own += [{title: f"reference/{name}"} for name, title in reference.TITLES.items()]
    own.append({"Python": [{home: f"reference/{home}.md"} for home in reference.homes()]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is made."""
    made: dict[str, str | bytes] = {f"reference/{name}": text for name, text in reference.pages().items()}
    made |= board() | tutorials()
    for source, target in FROM_ROOT.items():
        made[target] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def board() -> dict[str, str | bytes]:
    """The leaderboard's own pages."""
    with tempfile.TemporaryDirectory() as folder:
        written = site.build(ROOT / "registry" / "cards", Path(folder))
        return {f"board/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in written}


def tutorials() -> dict[str, str | bytes]:
    """Each notebook as a page, with its figures beside it."""
    made: dict[str, str | bytes] = {}
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        text, resources = MarkdownExporter().from_notebook_node(notebook, {"output_files_dir": path.stem})
        made[f"tutorials/{path.stem}.md"] = text
        made |= {f"tutorials/{name}": content for name, content in resources["outputs"].items()}
    return made


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML."""
    return FORMULA.sub(_mathml, content)


def on_post_page(output: str, **_: Any) -> str:
    """Name the search for screen readers; the theme does not."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def _mathml(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    return str(convert(html.unescape(found[2]).strip(), display=display))
