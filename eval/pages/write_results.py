"""Write docs/results.md, its longer form in docs/log/, and the results in README.md, all from the committed reports.

python eval/pages/write_results.py
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import comparisons
import measured
import typer
from measured import Entry, Group, Known, Reports, cell, compared, fill, listed, place, table
from results_texts import CIFAR, DIGITS, HEAD, LIMITS, PAPERS, README
from write_zoo import spread

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.experiments import markdown, study
from atent_ext.experiments.report import Result
from atent_ext.storage import files

DOCS, RESULTS = measured.ROOT / "docs", measured.ROOT / "eval" / "results"
BEGIN, END = "<!-- the results: begin -->", "<!-- the results: end -->"
SCORES = ("clean", "PGD-40", "AutoAttack")
MOST = 5
"""The most comparisons that a data set has on the short page."""


def method(entry: Entry) -> str:
    """The training method by its usual name."""
    recipe = entry.load()
    return "Entropy-SGD" if recipe.optimizer.needs_closure else str(recipe.objective["name"]).upper()


def defended(entry: Entry) -> bool:
    return entry.load().objective["name"] != "sgd"


def rivals(known: Mapping[str, Entry], scored: Reports, here: Sequence[str]) -> Iterator[str]:
    """ATENT's models against the other adversarial methods, a line each, ours from the best on."""
    ours = [name for name in here if measured.objective(known[name]) == "atent"]
    for name in sorted(ours, key=lambda one: -scored[one][0]["n"]):
        for rival in known[name].against:
            if rival in here and defended(known[rival]) and measured.objective(known[rival]) != "atent":
                yield f"- {name} is {compared(scored[name][0], scored[rival][0], rival)}."


def models(known: Mapping[str, Entry], scored: Reports) -> Iterator[str]:
    """A section a data set and threat model: the table of methods, the comparisons, the limits."""
    places: dict[str, list[str]] = {}
    for name in (name for name in known if scored[name]):
        places.setdefault(place(scored[name][0]), []).append(name)
    for where, here in places.items():
        yield f"## {where}\n"
        yield from _methods(known, scored, here, "PGD-40 x 10")
        yield from list(rivals(known, scored, here))[:MOST]
        yield LIMITS[where.partition(" eps")[0]]


def _methods(known: Mapping[str, Entry], scored: Reports, here: Sequence[str], pgd: str) -> Iterator[str]:
    attacks = ("clean", pgd, "AutoAttack")
    rows = [
        [name, method(known[name]), str(one["n"]), *(cell(one, attack) for attack in attacks)]
        for name in here
        for one in scored[name]
    ]
    yield from table(rows, ["model", "method", "images", *attacks])
    yield ""


def digits(known: Known, scored: Reports) -> Iterator[str]:
    """ATENT and PGD-AT over seeds."""
    seeds = comparisons.over_seeds(known, scored)
    names = list(dict.fromkeys(name for pair in seeds for name in reversed(pair)))
    entries = {name: entry for (_, name), entry in known.items() if name in names}
    yield f"## {listed(place(one) for name in names for one in scored[name])}\n"
    rows = [
        [name, method(entries[name]), ", ".join(entries[name].set), *(spread(scored[name], one) for one in SCORES)]
        for name in names
    ]
    yield from table(rows, ["setting", "method", "what is set", *SCORES])
    yield ""
    yield from comparisons.seed_lines(scored, seeds)
    yield DIGITS


def cifar(known: Mapping[str, Entry], scored: Reports) -> Iterator[str]:
    here = [name for name in known if scored[name]]
    yield f"## {listed(place(one) for name in here for one in scored[name])}\n"
    yield from _methods(known, scored, here, "PGD-40")
    yield from rivals(known, scored, here)
    yield ""
    yield fill(CIFAR, epochs=listed(entry.load().epochs for entry in known.values()))


def papers_lines(papers: Sequence[Result]) -> Iterator[str]:
    yield PAPERS
    yield from (line for line in markdown.summary(papers) if line.startswith("- "))


def page(known: Known, scored: Reports, papers: Sequence[Result]) -> str:
    groups: dict[str, dict[str, Entry]] = {kind: {} for kind in get_args(Group)}
    for (group, name), entry in known.items():
        groups[group][name] = entry
    reports = {name: [one | {"n": one["results"][0]["n"]} for one in those] for name, those in scored.items()}
    sections = [
        [HEAD.format(statement=comparisons.statement(known, scored, papers, "log/papers.md"))],
        models(groups["models"], reports),
        digits(known, scored),
        cifar(groups["cifar10"], reports),
        papers_lines(papers),
    ]
    return "\n\n".join("\n".join(lines).strip() for lines in sections) + "\n"


def accuracies(row: comparisons.Row) -> list[str]:
    """How many images; the accuracy of each; how many each alone gets right; p."""
    _, _, _, _, mine, theirs, alone, other, p, _ = row.cells()
    return [str(row.pair.n), mine, theirs, f"{alone} and {other}", p]


def readme(known: Known, scored: Reports, papers: Sequence[Result]) -> str:
    """The results in the README: the statement, and the published pairs of ATENT and PGD-AT."""
    shown = {name for (group, name), _ in known.items() if group in ("models", "cifar10")}
    rows = [
        [place(row.reports[0]).partition(", ")[2].replace(" eps", ""), row.atent, row.pgd_at, *accuracies(row)]
        for row in comparisons.rows(known, scored)
        if {row.atent, row.pgd_at} <= shown
    ]
    head = ["threat", "ATENT", "PGD-AT", "images", "ATENT's", "PGD-AT's", "alone", "p"]
    statement = comparisons.statement(known, scored, papers, "docs/log/papers.md")
    return "\n".join([statement, *table(rows, head), "", README])


def inserted(text: str, results: str) -> str:
    """The README with its results between the comments BEGIN and END. Raises BadInput without these."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        message = f"the README needs the lines {BEGIN!r} and {END!r}, once each; add them"
        raise BadInput(message, code="missing", field="readme")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{results}{END}{rest.partition(END)[2]}"


def results() -> list[Result]:
    """The results of the largest scale that is there, in the order of the studies; smoke shows that the path works."""
    found = []
    for name in study.names():
        paths = [RESULTS / f"{name}-{scale}.json" for scale in ("full", "cpu")]
        found += [measured.read(path) for path in paths if path.is_file()][:1]
    return found


app = typer.Typer(add_completion=False)


@app.command()
def main(docs: Path = DOCS, readme_file: Path = measured.ROOT / "README.md") -> None:
    known, papers = measured.entries(), results()
    scored = measured.reports(known)
    pictures = sorted(f"../img/{path.name}" for path in (DOCS / "img").glob("paper-*.png"))
    written = {
        docs / "results.md": page(known, scored, papers),
        docs / "log" / "comparisons.md": comparisons.page(known, scored, papers),
        docs / "log" / "papers.md": markdown.page(papers, pictures),
        readme_file: inserted(readme_file.read_text(encoding="utf-8"), readme(known, scored, papers)),
    }
    for path, text in written.items():
        files.write(path, text)
        print(f"written: {path}")


if __name__ == "__main__":
    exit.run(app)
