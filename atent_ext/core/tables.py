"""Tables for terminals and pipes (where rich assumes a width of 80) that never cut a cell."""

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

_NARROW = 6
"""Minimum width of a column, in characters."""


class Table:
    """A table whose first column never wraps. The others wrap on a narrow console, the widest first.

    The title has the width of the console, not of the table, and its words are never cut. Words of cells are kept whole
    as long as they fit. If even 6 characters per column do not fit, the table is wider than the
    console, so print it with `crop=False`. figures: how many of the last columns hold right-aligned numbers.
    """

    def __init__(self, *headings: str, title: str = "", figures: int = 0) -> None:
        self.headings = headings
        self.title = title
        self.figures = figures
        self.rows: list[Sequence[str]] = []
        self.styles: list[str | None] = []

    def add(self, *cells: str, style: str | None = None) -> None:
        """Add a row with one cell per heading; a newline in a cell starts a new line."""
        self.rows.append(cells)
        self.styles.append(style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table for the width of the console (called by rich)."""
        frame = 3 * len(self.headings) + 1
        widths = self._widths(options.max_width - frame)
        for line in textwrap.wrap(self.title, options.max_width, break_long_words=False, break_on_hyphens=False):
            yield Text(line, no_wrap=True, overflow="ignore")
        drawn = RichTable()
        for place, (heading, width) in enumerate(zip(self.headings, widths, strict=True)):
            right = place >= len(self.headings) - self.figures
            drawn.add_column(heading, width=width, overflow="fold", justify="right" if right else "left")
        for row, style in zip(self.rows, self.styles, strict=True):
            drawn.add_row(*map(Text, row), style=style)
        yield from console.render(drawn, options.update(max_width=max(options.max_width, sum(widths) + frame)))

    def _widths(self, room: int) -> list[int]:
        columns = list(zip(self.headings, *self.rows, strict=True))
        widths = [max(map(_longest_line, column)) for column in columns]
        words = [max(map(_longest_word, column)) for column in columns]
        for least in (words, [min(word, _NARROW) for word in words]):
            while sum(widths) > room:
                wide = [place for place in range(1, len(widths)) if widths[place] > least[place]]
                if not wide:
                    break
                widths[max(wide, key=widths.__getitem__)] -= 1
        return widths


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)
