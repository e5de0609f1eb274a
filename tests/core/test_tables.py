"""Tables lose nothing, however narrow the console is."""

import io

import pytest
from rich.console import Console

from atent_ext.core.tables import Table

LONG = "a-name-of-exactly-forty-characters-which-"
WORDS = ("git+https://github.com/somebody/something", "a text of several words that can be folded")


def drawn(table, width):
    """The lines of a table."""
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(table, crop=False)
    return out.getvalue().splitlines()


def columns(text):
    """What stands in each column of the rows, in one piece."""
    rows = [line.strip("│┃").replace("┃", "│").split("│") for line in text if line[:1] in "│┃"]
    return ["".join(cell.strip() for cell in column) for column in zip(*rows, strict=True)]


def example():
    table = Table("name", "what it is", "figure", title="a title", figures=1)
    table.add(LONG, " ".join(WORDS), "97.5", style="red")
    table.add("short", "", "100.0")
    return table


@pytest.mark.parametrize("width", [200, 80, 60, 20, 1])
def test_nothing_is_cut(width):
    text = drawn(example(), width)
    assert "…" not in "\n".join(text)
    assert any(LONG in line for line in text)
    names, what, figures = columns(text)
    assert names == f"name{LONG}short"
    assert what.replace(" ", "") == ("what it is" + " ".join(WORDS)).replace(" ", "")
    assert figures == "figure97.5100.0"


def test_it_fits_wherever_its_words_do():
    least = len(LONG) + len(WORDS[0]) + len("figure") + 10
    for width in (least, least + 1, 200):
        text = drawn(example(), width)
        assert max(map(len, text)) <= width
        assert any(WORDS[0] in line for line in text)


def test_the_widest_column_gives_way_first():
    table = Table("name", "first", "second")
    table.add("n", "five " * 3 + "words", "five " * 9 + "words")
    (_, first, second) = table._widths(50)
    assert (first, second) == (20, 26)


def test_a_title_has_the_width_of_the_console_and_whole_words():
    table = Table("n", title=f"the title names {LONG}, {WORDS[0]} and more")
    table.add("1")
    for width, lines in ((200, 1), (60, 2), (20, 4)):
        text = drawn(table, width)
        assert " ".join(text[:lines]) == table.title
        assert text[lines].startswith("┏")


def test_figures_are_aligned_on_the_right():
    rows = [line for line in drawn(example(), 200) if "97.5" in line or "100.0" in line]
    assert [line.rstrip("│ ").split("│")[-1] for line in rows] == ["   97.5", "  100.0"]


def test_a_row_needs_a_cell_for_each_heading():
    table = Table("name", "figure")
    table.add("n")
    with pytest.raises(ValueError, match="shorter"):
        drawn(table, 80)
