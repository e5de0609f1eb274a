"""Write docs/results.md: ATENT against PGD-AT and the zoo's other models, then each result of `atent reproduce`.

python eval/pages/write_results.py
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import measured
import typer
from measured import Gain, Known, Pair, Report, Reports, cell, compared, fill, listed, place, table

from atent_ext.cli import exit
from atent_ext.experiments import markdown, study
from atent_ext.experiments.report import Result
from atent_ext.storage import files

DOCS, RESULTS = measured.ROOT / "docs", measured.ROOT / "eval" / "results"

FIRST = """## ATENT against PGD-AT under AutoAttack

**{verdict}** In {all} comparisons of one ATENT with one PGD-AT model on the same images, ATENT is better in {better},
worse in {worse}, and not significantly different in {rest} (McNemar's exact test at {level}, not corrected for the
number of comparisons). Over {seeds} seeds on {place}, in {seeds_all} settings, it is better in {seeds_better}, worse in
{seeds_worse}, and not significantly different in {seeds_rest} ({confidence} t interval of the paired differences). In
the papers' tables below, which are shorter trainings on fewer images, it is better in {papers_better}, worse in
{papers_worse}, and not significantly different in {papers_rest} of {papers_all}.

The table has AutoAttack's accuracies on the images that both models were scored on. "Alone" counts the images that one
model classifies correctly under the attack and the other does not; p is McNemar's. The last column has the same counts
under PGD, by which the papers score: it does not always agree. Rows share models, so they are not independent. A row
is of one training each and says nothing about the spread over seeds.
"""
NOTES = """- `mnist-linf-atent` has the best of the radii that were tried; for PGD-AT only one was tried. The rows
  of `linf-wide-long-eps-0.33` and `linf-wide-long-eps-0.36` are of the images by which that radius was chosen.
- `mnist-l2-atent` is the result of a long search, with another network and budget than its rival. Its row says what
  ATENT can be brought to, and nothing about the methods.
- ATENT's inner loop leaves dropout on and PGD-AT's turns it off. In the rows of `mnist-atent-inner-eval` and
  `mnist-pgd-at-inner-train` both methods treat dropout alike.
- `linf-width-3` on test images and the rows marked "(zoo)" were scored during the search ([zoo.md](zoo.md)).
- Earlier, shorter trainings are in [measurements.md](measurements.md). The story of the search is in
  [log/mnist-search.md](log/mnist-search.md).
"""
OTHERS = """## The zoo's models against their rivals under AutoAttack

[zoo.md](zoo.md) has their accuracies under each attack, their recipes, how they were scored, and AutoAttack's warnings.
Of the {signs} signs of masked gradients that the cards look for, {seen}.
"""
PARTS = """## ATENT's parts, over {seeds} seeds on {place}

Mean differences in percentage points with their {confidence} t intervals. Trainings of the same seed are paired; the
intervals are not corrected for the number of comparisons. [zoo.md](zoo.md#what-atents-parts-do) has the accuracies, and
what stays significant after a correction. `digits-base` is ATENT as printed: it projects after the last step alone. The
zoo's MNIST models project after every step.
"""
ROW = [
    "ATENT",
    "PGD-AT",
    "where",
    "images",
    "ATENT's accuracy",
    "PGD-AT's",
    "ATENT alone",
    "PGD-AT alone",
    "p",
    "by PGD",
]
NO_GAIN = "ATENT shows no gain over PGD-AT."
GAIN = "ATENT is better than PGD-AT in {better} of {all} comparisons."


class Row(NamedTuple):
    """An ATENT and a PGD-AT model with their reports."""

    atent: str
    pgd_at: str
    reports: tuple[Report, Report]

    @property
    def pair(self) -> Pair:
        return measured.pair(*self.reports, "AutoAttack")

    def cells(self) -> list[str]:
        mine, theirs = self.reports
        images = f"{self.pair.n}, {mine['split'].partition(',')[0]}"
        shares = map(measured.share, measured.common(mine, theirs, "AutoAttack"))
        alone = [str(self.pair.own), str(self.pair.other), f"{self.pair.p:.2g}"]
        return [self.atent, self.pgd_at, place(mine), images, *shares, *alone, measured.by_pgd(mine, theirs)]


def rows(known: Known, scored: Reports) -> list[Row]:
    """Every comparison of one ATENT with one PGD-AT training on the same images."""
    pairs = [names for names in measured.atent_and_pgd_at(known) if all(len(scored[name]) == 1 for name in names)]
    found = [Row(mine, theirs, (scored[mine][0], scored[theirs][0])) for mine, theirs in pairs]
    rivals = [
        name for name in measured.PUBLISHED if scored[name] and measured.objective(known["models", name]) == "pgd-at"
    ]
    stages = {name: one for name, one in measured.between().items() if measured.result(one, "AutoAttack")}
    return found + [Row(name, rival, (one, scored[rival][0])) for name, one in stages.items() for rival in rivals]


def over_seeds(known: Known, scored: Reports) -> dict[tuple[str, str], Gain]:
    """(ATENT's setting, PGD-AT's) -> what ATENT has more."""
    pairs = [names for names in measured.atent_and_pgd_at(known) if all(len(scored[name]) > 1 for name in names)]
    return {(mine, theirs): measured.gain(scored[mine], scored[theirs]) for mine, theirs in pairs}


def counts(verdicts: Iterable[str], prefix: str = "") -> dict[str, int]:
    """How often ATENT is better, worse, and neither."""
    kinds = Counter(one.partition(" ")[0] for one in verdicts)
    better, worse = kinds["better"], kinds["worse"]
    return {
        f"{prefix}all": kinds.total(),
        f"{prefix}better": better,
        f"{prefix}worse": worse,
        f"{prefix}rest": kinds.total() - better - worse,
    }


def first(known: Known, scored: Reports, papers: Sequence[Result]) -> Iterator[str]:
    """What AutoAttack says of ATENT and PGD-AT."""
    each, seeds = rows(known, scored), over_seeds(known, scored)
    duels = [one for one in markdown.duels(papers) if one.ours.startswith("ATENT") and one.rival.startswith("PGD")]
    count = counts(one.pair.verdict for one in each) | counts((one.verdict for one in seeds.values()), "seeds_")
    count |= counts((measured.verdict(one.alone[0] - one.alone[1], one.p) for one in duels), "papers_")
    better = count["better"] + count["seeds_better"] + count["papers_better"]
    everything = len(each) + len(seeds) + len(duels)
    those = [one for mine, theirs in seeds for name in (mine, theirs) for one in [scored[name]]]
    yield fill(
        FIRST,
        verdict=GAIN.format(better=better, all=everything) if better else NO_GAIN,
        level=measured.percent(measured.SIGNIFICANT),
        confidence=measured.percent(measured.CONFIDENCE),
        seeds=listed(map(len, those)),
        place=listed(place(one) for reports in those for one in reports),
        **count,
    )
    yield from table([one.cells() for one in each], ROW)
    yield ""
    yield from (
        f"- {mine} is {gain.verdict} {theirs} over {len(scored[mine])} seeds: {gain}."
        for (mine, theirs), gain in seeds.items()
    )
    yield NOTES


def others(known: Known, scored: Reports) -> Iterator[str]:
    """How the published models fare against the others."""
    published = {name: entry for (group, name), entry in known.items() if group == "models" and scored[name]}
    signs = {name: card["signs"] for name in published if (card := measured.read_card(name))}
    seen = [f"{sign['name']} ({name})" for name, those in signs.items() for sign in those if sign["found"]]
    yield fill(
        OTHERS,
        signs=len({sign["name"] for those in signs.values() for sign in those}),
        seen=f"these models have {listed(seen)}" if seen else "these models have none",
    )
    for name, entry in published.items():
        rivals = [rival for rival in entry.against if scored[rival]]
        (mine,) = scored[name]
        yield from [f"- **{name}**, {place(mine)}, {cell(mine, 'AutoAttack')}, is"] if rivals else ()
        for rival in rivals:
            (theirs,) = scored[rival]
            yield f"  - {compared(mine, theirs, rival)}; {rival} has {cell(theirs, 'AutoAttack')}"


def parts(known: Known, scored: Reports) -> Iterator[str]:
    """What the ablation's settings are against each other."""
    entries = {name: entry for (group, name), entry in known.items() if group == "ablation"}
    gains = measured.gains(scored, entries)
    there = [scored[name] for name, _ in gains]
    yield fill(
        PARTS,
        seeds=listed(map(len, there)),
        place=listed(place(one) for reports in there for one in reports),
        confidence=measured.percent(measured.CONFIDENCE),
    )
    yield from table(
        [
            [mine, ", ".join(entries[mine].set), f"{gain.verdict} {theirs}", str(gain), str(clean)]
            for (mine, theirs), gain in gains.items()
            for clean in [measured.gain(scored[mine], scored[theirs], "clean")]
        ],
        ["setting", "what is set", "under AutoAttack", "AutoAttack", "clean"],
    )


def results() -> list[Result]:
    """The results of the largest scale that is there, in the order of the studies; smoke shows that the path works."""
    found = []
    for name in study.names():
        paths = [RESULTS / f"{name}-{scale}.json" for scale in ("full", "cpu")]
        found += [measured.read(path) for path in paths if path.is_file()][:1]
    return found


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Path = DOCS / "results.md") -> None:
    known, papers = measured.entries(), results()
    scored = measured.reports(known)
    sections = (first(known, scored, papers), others(known, scored), parts(known, scored))
    pictures = sorted(f"img/{path.name}" for path in (DOCS / "img").glob("paper-*.png"))
    files.write(out, markdown.page(papers, pictures, ["\n".join(lines).rstrip() + "\n" for lines in sections]))
    print(f"written: {out}")


if __name__ == "__main__":
    exit.run(app)
