"""The leaderboard: a static site of the registry's cards, and the same tables in Markdown.

The text of a card is untrusted input. Templates escape it, only web addresses become links, and the
Content-Security-Policy of each page allows our own script and style, and no network access.
"""

import base64
import hashlib
import html
import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from atent_ext.core.errors import BadInput
from atent_ext.core.version import __version__
from atent_ext.evaluation.report import Result
from atent_ext.leaderboard import ranking
from atent_ext.leaderboard.curve import HEIGHT, WIDTH, draw
from atent_ext.leaderboard.ranking import Entry, Table
from atent_ext.storage import files

_HERE = Path(__file__).resolve().parent / "templates"
_PNG = b"\x89PNG\r\n\x1a\n"
BEGIN, END = "<!-- the tables: begin -->", "<!-- the tables: end -->"
_HEAD = (
    "rank",
    "model",
    "clean",
    "AutoAttack",
    "best known attack",
    "worst case",
    "images",
    "architecture",
    "extra data",
    "remarks",
    "date",
    "link",
)


def build(cards_folder: Path, out: Path) -> list[Path]:
    """Write the site of all cards below `cards_folder` to the folder `out`; returns the files, index.html first.

    A picture NAME.png beside a card NAME.json becomes the gallery of the model's page. Other files in `out` are left
    alone, also those of an earlier build. Raises BadInput as `ranking.read` does, and for a picture that is not a PNG.
    """
    tables = ranking.read(cards_folder)
    (out / "models").mkdir(parents=True, exist_ok=True)
    written = [_write(out / "index.html", "index.html", up="", tables=tables)]
    for table in tables:
        for entry in table.entries:
            written += _model(table, entry, out / "models")
    return written


def markdown(cards_folder: Path) -> str:
    """The tables of all cards below `cards_folder` in Markdown. Raises BadInput as `ranking.read` does."""
    tables = ranking.read(cards_folder)
    return "\n".join(_markdown(table, cards_folder) for table in tables) if tables else "There are no cards yet.\n"


def inserted(page: str, tables: str) -> str:
    """The Markdown text `page` with `tables` between the comments `BEGIN` and `END`. Raises BadInput without these."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        message = f"the page needs the lines {BEGIN!r} and {END!r}, once each and in this order; add them"
        raise BadInput(message, code="missing", field="page")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{rest.partition(END)[2]}"


def _model(table: Table, entry: Entry, folder: Path) -> list[Path]:
    card = folder / f"{entry.page}.json"
    files.write(card, entry.path.read_bytes())
    facts = entry.report.model_dump(mode="json", exclude_none=True) | {"split": entry.report.split}
    shown = {"entry": entry, "table": table, "drawing": draw(entry), "gallery": _gallery(entry), "json": _short(entry)}
    return [
        _write(folder / f"{entry.page}.html", "model.html", up="../", facts=facts, width=WIDTH, height=HEIGHT, **shown),
        card,
    ]


def _write(path: Path, template: str, **shown: Any) -> Path:
    files.write(path, templates().get_template(template).render(**shown))
    return path


@cache
def templates() -> Environment:
    """The templates with their filters and globals; values are escaped, and an undefined name is an error."""
    known = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known.filters |= {"percent": _percent, "interval": _interval, "eps": ranking.eps_text}
    known.filters |= {"plain": _plain, "duration": _duration}
    style, script = (_HERE / "board.css").read_text("utf-8"), (_HERE / "board.js").read_text("utf-8")
    known.globals |= {
        "version": __version__,
        "tones": ranking.TONES,
        # Our own files, without </style> or </script>; the policy allows them by their hashes.
        "style": Markup(style),
        "script": Markup(script),
        "policy": f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'",
    }
    return known


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _visible(value: Any) -> Any:
    """The text without control and bidirectional characters, which could make it look like another one."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.isprintable():
        return value
    return "".join(char for char in value if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _interval(result: Result) -> str:
    low, high = result.interval95
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"


def _plain(value: Any, name: str = "") -> str:
    """A JSON value as readable text; with the name "bytes" as a size."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(child)}" for key, child in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_plain, value))
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    if name == "bytes":
        return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"
    return f"{value:,}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} seconds" if minutes < 2 else f"{minutes // 60} h {minutes % 60:02} min"


def _gallery(entry: Entry) -> str:
    """The picture beside the card as a data: URL, "" if there is none."""
    path = entry.path.with_suffix(".png")
    return f"data:image/png;base64,{base64.b64encode(picture(path)).decode()}" if path.is_file() else ""


def picture(path: Path) -> bytes:
    """The bytes of a gallery picture. Raises BadInput if it is not a PNG."""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        message = f"{path} is no PNG; write the gallery as one, or remove it"
        raise BadInput(message, code="unreadable", field="gallery")
    return content


def _short(entry: Entry) -> str:
    """The card as JSON for the page, with shortened flags; the JSON file has them in full."""
    text = json.dumps(entry.card.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return re.sub(r'("flags": "[01]{24})[01]+"', r'\1…"', text)


def _markdown(table: Table, cards_folder: Path) -> str:
    several = "s" * (len(table.entries) > 1)
    count = f"{len(table.entries)} model{several}"
    drawn = any(entry.report.drawn for entry in table.entries)
    interval = "95 % interval (Wilson; anytime where it stopped early)" if drawn else "95 % Wilson interval"
    note = f"{count}; accuracy in % of {table.images} images, with its {interval}."
    rows = [_row(entry, cards_folder) for entry in table.entries]
    lines = ["| " + " | ".join(cells) + " |" for cells in (_HEAD, ("---",) * len(_HEAD), *rows)]
    title = f"### {_escaped(table.dataset)}, {table.threat.norm} eps {ranking.eps_text(table.threat.eps)}"
    return "\n".join([title, "", note, "", *lines, ""])


def _row(entry: Entry, cards_folder: Path) -> tuple[str, ...]:
    submission, strongest = entry.card.submission, entry.strongest
    place = quote(f"{cards_folder.name}/{entry.path.relative_to(cards_folder).as_posix()}")
    return (
        str(entry.rank),
        f"[{_escaped(submission.name)}]({place})",
        _percent(entry.clean.accuracy),
        f"{_percent(entry.autoattack.accuracy)} ({_interval(entry.autoattack)})" if entry.autoattack else "not run",
        f"{_percent(strongest.accuracy)} ({_escaped(strongest.attack)})",
        f"{_percent(entry.worst.accuracy)} ({_interval(entry.worst)})",
        str(entry.worst.n),
        _escaped(submission.architecture.name),
        "yes" if submission.extra_data else "no",
        _escaped(", ".join(badge.text for badge in entry.badges)),
        _escaped(entry.card.date[:10]),
        f"[link]({quote(entry.link, safe=':/?#@!$&*+,;=%~')})" if entry.link else "",
    )


def _escaped(text: str) -> str:
    """Untrusted text as a Markdown table cell: one line, with Markdown and HTML markup escaped."""
    line = html.escape(" ".join(_visible(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", line)
