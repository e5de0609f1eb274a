"""A reproduction as tables: the number of the paper, ours with its interval, and the difference."""

from collections.abc import Iterator
from typing import Any

from atent_ext.core.tables import Table
from atent_ext.experiments import study as studies

Result = dict[str, Any]


def listing() -> Table:
    """A table of all studies with their scales."""
    table = Table("name", "what it is", "scales")
    for name in studies.names():
        study = studies.load(name)
        table.add(name, study.title, ", ".join(scale for scale in studies.SCALES if scale in study.scales))
    return table


def heading(result: Result) -> str:
    """The heading of a result: title, scale, data sets, seed."""
    data = sorted({row["data"] for row in result["rows"] if "data" in row})
    on = f"on {', '.join(data)}; " if data else ""
    return f"{result['title']}; scale {result['scale']}, {on}seed {result['seed']}"


def table(result: Result) -> Table:
    """The result for a terminal, one line per cell: paper, ours, interval, difference, images."""
    return _TABLES[result["kind"]](result)


def cells(result: Result) -> Iterator[tuple[str, str, float | None, dict[str, Any]]]:
    """(row, column, number of the paper or None, our cell or {}) for all cells that the paper or we have."""
    for row in result["rows"]:
        for column in result["columns"]:
            cell, paper = row.get("cells", {}).get(column, {}), row["paper"].get(column)
            if cell or paper is not None:
                yield row["name"], column, paper, cell


def _accuracies(result: Result) -> Table:
    figures = ("paper", "ours", "95 % interval", "difference", "images")
    table = Table("row", "column", *figures, title=heading(result), figures=len(figures))
    before = ""
    for row, column, paper, cell in cells(result):
        table.add("" if row == before else row, column, *described(paper, cell, result["scale"] != "smoke"))
        before = row
    return table


def described(paper: float | None, cell: dict[str, Any], compare: bool) -> tuple[str, str, str, str, str]:
    """Paper, ours, interval, difference (empty unless `compare`) and images of a cell, as texts; accuracies in %."""
    theirs = "" if paper is None else f"{paper:.2f}"
    if "accuracy" not in cell:
        return theirs, "-", "", "", ""
    ours, (low, high) = 100 * cell["accuracy"], cell["interval95_wilson"]
    difference = "" if paper is None or not compare else f"{ours - paper:+.1f}"
    return theirs, f"{ours:.1f}", f"{100 * low:.1f} - {100 * high:.1f}", difference, str(cell["n"])


def _times(result: Result) -> Table:
    figures = ("seconds a step", "ratio", "range", "paper's ratio", "rounds")
    table = Table("row", *figures, title=heading(result), figures=len(figures))
    for row in result["rows"]:
        step, ratio, paper = row["seconds_a_step"], row["ratio"], row["paper_ratio"]
        spread = f"{ratio['least']:.2f} - {ratio['most']:.2f}"
        theirs = f"{paper:.2f}" if paper else ""
        table.add(row["name"], f"{step['median']:.4f}", f"{ratio['median']:.2f}", spread, theirs, str(step["rounds"]))
    return table


def _figure(result: Result) -> Table:
    table = Table("file", title=heading(result))
    for name in result.get("files", []):
        table.add(name)
    return table


_TABLES = {"accuracy": _accuracies, "times": _times, "figure": _figure}
