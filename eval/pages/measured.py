"""What was measured of the zoo's entries, and how two of them compare: shared by write_zoo.py and write_results.py."""

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
from zoo import Entry, Group, Known, digest, entries

from atent_ext.core.errors import BadInput
from atent_ext.core.statistics import interval, paired
from atent_ext.evaluation import report as typed_report
from atent_ext.experiments.markdown import CONFIDENCE, SIGNIFICANT
from atent_ext.leaderboard.ranking import eps_text
from atent_ext.training import recipes

__all__ = ["Entry", "Group", "Known", "digest", "entries"]  # of zoo.py; only this module looks into that folder
ROOT = Path(__file__).resolve().parents[2]
CARDS, REPORTS = ROOT / "registry" / "cards", ROOT / "eval" / "results" / "zoo"
PUBLISHED = ("mnist-linf-atent", "mnist-linf-pgd-at-best")
"""What the test scores under AutoAttack of the search are compared with."""

Report = dict[str, Any]
Reports = dict[str, list[Report]]


def reports(known: Known) -> Reports:
    """Name -> its reports, one a seed; none of an entry whose last seed has not been scored."""
    scored: Reports = {}
    for (group, name), entry in known.items():
        those = _reports(group, name, entry)
        scored[name] = those if len(those) == entry.seeds else []
    return scored


def _reports(group: Group, name: str, entry: Entry) -> list[Report]:
    """Raises BadInput for a report of another recipe than the entry's; a card does not hold its recipe."""
    if group == "models":
        card = read_card(name)
        return [plain(card["report"], name)] if card else []
    paths = [REPORTS / group / f"{stem}.json" for stem in entry.files(name)]
    scored = {seed: path for seed, path in enumerate(paths) if path.is_file()}
    for seed, path in scored.items():
        if digest(recipes.parse(read(path)["recipe"], str(path))) != digest(entry.load(seed)):
            raise BadInput(
                f"{path} is of another recipe than the entry {name}; score it anew",
                code="other-content",
                field="recipe",
            )
    return [read_report(path) for path in scored.values()]


def read(path: Path) -> Report:
    return json.loads(path.read_text(encoding="utf-8"))


def read_report(path: Path) -> Report:
    return plain(read(path), str(path))


def plain(raw: Any, source: str) -> Report:
    """A report of any version as these pages read it: settings beside figures, notes as texts."""
    typed = typed_report.Report.parse(raw, source)
    results = [
        {**one.settings, **one.model_dump(exclude={"settings", "notes"}), "notes": [note.text for note in one.notes]}
        for one in typed.results
    ]
    return typed.model_dump(mode="json") | {"split": typed.split, "results": results}


def read_card(name: str) -> Report | None:
    path = next(CARDS.glob(f"*/*/{name}.json"), None)
    return read(path) if path else None


def result(report: Report, attack: str) -> Report | None:
    return next((one for one in report["results"] if one["attack"] == attack), None)


def objective(entry: Entry) -> str:
    return entry.load().objective["name"]


def place(report: Report) -> str:
    return f"{report['data']}, {report['threat']['norm']} eps {eps_text(report['threat']['eps'])}"


# ---- figures as text


def percent(share: float) -> str:
    return f"{100 * share:g} %"


def listed(values: Iterable[object]) -> str:
    """Each value once, in the order given: "10", "10 and 8", "10, 8 and 6"; "none" where there is none."""
    *most, last = dict.fromkeys(map(str, values)) or ("none",)
    return f"{', '.join(most)} and {last}" if most else last


def cell(report: Report, attack: str) -> str:
    """Accuracy in % with its Wilson interval, "" where the attack was not run."""
    one = result(report, attack)
    return _accuracy(one["accuracy"], *(one.get("interval95_wilson") or one["interval95_anytime"])) if one else ""


def share(flags: str) -> str:
    """The same of flags."""
    right, n = sum(map(int, flags)), len(flags)
    return _accuracy(right / n, *interval(right, n))


def _accuracy(accuracy: float, low: float, high: float) -> str:
    return f"{100 * accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def fill(template: str, **fields: object) -> str:
    """A text of paragraphs with its fields, each paragraph wrapped anew."""
    paragraphs = template.format(**fields).strip().split("\n\n")
    return (
        "\n\n".join(textwrap.fill(one, 120, break_long_words=False, break_on_hyphens=False) for one in paragraphs)
        + "\n"
    )


def table(rows: list[list[str]], head: list[str]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]] if rows else []


# ---- two models on the same images


class Pair(NamedTuple):
    """Of `n` images the one model alone gets `own` right and the other alone `other`; p of McNemar's exact test."""

    n: int
    own: int
    other: int
    p: float

    @property
    def verdict(self) -> str:
        return verdict(self.own - self.other, self.p)


def verdict(difference: float, p: float) -> str:
    if p >= SIGNIFICANT:
        return "not significantly different from"
    return "better than" if difference > 0 else "worse than"


def check_images(mine: Report, theirs: Report) -> None:
    """Raise BadInput for scores of other data or another part of them."""
    parts = [(report["data"], report["split"].partition(",")[0]) for report in (mine, theirs)]
    if parts[0] != parts[1]:
        raise BadInput(
            f"scores on {parts[0]} and on {parts[1]} are of other images; compare neither",
            code="other-content",
            field="split",
        )


def common(mine: Report, theirs: Report, attack: str) -> list[str]:
    """The flags of both under `attack`, of the images that both were scored on."""
    check_images(mine, theirs)
    flags = [result(report, attack)["flags"] for report in (mine, theirs)]
    n = min(map(len, flags))
    return [one[:n] for one in flags]


def pair(mine: Report, theirs: Report, attack: str) -> Pair:
    flags = common(mine, theirs, attack)
    return Pair(len(flags[0]), *paired(*flags))


def by_pgd(mine: Report, theirs: Report) -> str:
    """What PGD, which both were scored by, says of the two; "" where there is none."""
    attack = next((one for one in ("PGD-40 x 10", "PGD-40") if result(mine, one) and result(theirs, one)), None)
    if attack is None:
        return ""
    _, own, other, p = pair(mine, theirs, attack)
    return f"{attack}: {own} and {other}, p {p:.2g}"


def compared(mine: Report, theirs: Report, name: str) -> str:
    """In words: which images each alone keeps under AutoAttack, and under the PGD that both were scored by."""
    there = pair(mine, theirs, "AutoAttack")
    pgd = by_pgd(mine, theirs)
    return (
        f"{there.verdict} {name}: of {there.n} images it alone keeps {there.own} and {name} alone {there.other}, "
        f"p {there.p:.2g}{pgd and f' ({pgd})'}"
    )


# ---- two settings over seeds


class Gain(NamedTuple):
    """Percentage points that one setting has more than another: the mean over seeds, half its t interval, p.

    Where every seed has the same difference there is no t test: p is 1.
    """

    mean: float
    half: float
    p: float

    @property
    def verdict(self) -> str:
        return verdict(self.mean, self.p)

    def __str__(self) -> str:
        if not self.half:
            return f"{self.mean:+.1f} points in every seed"
        return f"{self.mean:+.1f} points ({self.mean - self.half:+.1f} to {self.mean + self.half:+.1f})"


def accuracies(those: list[Report], attack: str) -> list[float]:
    return [100 * result(one, attack)["accuracy"] for one in those]


def gain(mine: list[Report], theirs: list[Report], attack: str = "AutoAttack") -> Gain:
    """Trainings of one seed are paired."""
    for own, other in zip(mine, theirs, strict=True):
        check_images(own, other)
    apart = [own - other for own, other in zip(*(accuracies(one, attack) for one in (mine, theirs)), strict=True)]
    error, free = stdev(apart) / len(apart) ** 0.5, len(apart) - 1
    if not error:
        return Gain(mean(apart), 0.0, 1.0)
    half = float(t.ppf((1 + CONFIDENCE) / 2, free)) * error
    return Gain(mean(apart), half, float(2 * t.sf(abs(mean(apart)) / error, free)))


def holm(ps: Mapping[Any, float]) -> list[Any]:
    """Those of `ps` that are significant if all of them are to hold together (Holm's correction)."""
    kept = []
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        if p * (len(ps) - rank) >= SIGNIFICANT:
            break
        kept.append(name)
    return kept


def atent_and_pgd_at(known: Known) -> Iterator[tuple[str, str]]:
    """The entries that are compared with each other, one trained by ATENT and one by PGD-AT, in this order."""
    named = {name: entry for (_, name), entry in known.items()}
    for name, entry in named.items():
        for rival in entry.against:
            methods = {objective(named[one]): one for one in (name, rival)}
            if methods.keys() == {"atent", "pgd-at"}:
                yield methods["atent"], methods["pgd-at"]


def gains(scored: Reports, known: Mapping[str, Entry]) -> dict[tuple[str, str], Gain]:
    """(entry, what it is compared with) -> the gain, of entries of several seeds."""
    return {
        (name, rival): gain(scored[name], scored[rival])
        for name, entry in known.items()
        for rival in entry.against
        if entry.seeds > 1 and scored[name] and scored[rival]
    }


# ---- test images that were scored between the stages of the search


def between() -> dict[str, Report]:
    """Name -> report, of eval/results/zoo/between/: reports, and evaluations that were stopped, as their chunks."""
    folder = REPORTS / "between"
    whole = {path.stem: read_report(path) for path in sorted(folder.glob("*.json")) if "-zoo-" not in path.stem}
    for path in sorted(folder.glob("*-zoo-setting.json")):
        name = path.stem.removesuffix("-zoo-setting")
        chunks = [read(chunk) for chunk in folder.glob(f"{name}-zoo-*-*.json")]
        whole[f"{name} (zoo)"] = _joined(read(path), sorted(chunks, key=lambda chunk: chunk["start"]))
    return whole


def _joined(setting: Report, chunks: list[Report]) -> Report:
    """The report of an evaluation that has the chunks [0, n) of it."""
    n, total = chunks[-1]["stop"], setting["test_images"]
    if [chunk["start"] for chunk in chunks] != [0, *(chunk["stop"] for chunk in chunks[:-1])]:
        raise BadInput("a chunk is missing between two others", code="missing", field="chunks")
    keep = {key: setting[key] for key in ("data", "threat", "seed", "chunk", "speed", "versions")}
    results = [_outcome(those) for those in zip(*(chunk["outcomes"] for chunk in chunks), strict=True)]
    machine = {"device": setting["device"]}
    return {**keep, "split": f"test, the first {n} of {total}", "machine": machine, "results": results}


def _outcome(those: tuple[Report, ...]) -> Report:
    flags = "".join(one["flags"] for one in those)
    right, n = sum(map(int, flags)), len(flags)
    return {
        **those[0]["settings"],
        "attack": listed(one["attack"] for one in those),
        "flags": flags,
        "n": n,
        "accuracy": right / n,
        "interval95_wilson": interval(right, n),
        "notes": [note for one in those for note in one["notes"]],
    }
