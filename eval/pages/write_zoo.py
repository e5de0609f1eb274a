"""Write docs/zoo.md from registry/cards/ and eval/results/zoo/: the zoo's models, comparisons, search and ablation.

python eval/pages/write_zoo.py
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, get_args

import typer
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
from zoo import Entry, Group, Known, digest, entries
from zoo_texts import ABLATION, CIFAR, HEAD, SEARCH

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.core.statistics import paired
from atent_ext.storage import files
from atent_ext.training import recipes

HERE = Path(__file__).resolve().parents[1]
CARDS, REPORTS = HERE.parent / "registry" / "cards", HERE / "results" / "zoo"
ATTACKS = ("clean", "PGD-20", "PGD-40 x 10", "ATENT-40 x 3, every iterate", "AutoAttack")
WHAT = "recipe and what is set"
TRAINING = ("held-out PGD", "seconds")
SCORES = ("clean", "PGD-40", "AutoAttack")
SIGNIFICANT = 0.05

Report = dict[str, Any]
Reports = dict[str, list[Report]]


def reports(known: Known) -> Reports:
    """What was measured of each entry, a report a seed; none where its last seed was not scored yet."""
    found: Reports = {}
    for (group, name), entry in known.items():
        those = _measured(group, name, entry)
        found[name] = those if len(those) == entry.seeds else []
    return found


def _measured(group: Group, name: str, entry: Entry) -> list[Report]:
    """Raises BadInput for a report of another recipe than the entry's; a card does not say by which it was trained."""
    if group == "models":
        path = next(CARDS.glob(f"*/*/{name}.json"), None)
        return [json.loads(path.read_text(encoding="utf-8"))["report"]] if path else []
    found = []
    for seed, stem in enumerate(entry.files(name)):
        path = REPORTS / group / f"{stem}.json"
        if path.is_file():
            one = json.loads(path.read_text(encoding="utf-8"))
            if digest(recipes.parse(one["recipe"], str(path))) != digest(entry.load(seed)):
                raise BadInput(f"{path} is of another recipe than the entry {name}; score it anew")
            found.append(one)
    return found


def result(found: Report, attack: str) -> Report | None:
    return next((one for one in found["results"] if one["attack"] == attack), None)


def training(name: str, entry: Entry) -> list[str]:
    """Held-out accuracy under PGD of the epoch that it chose, and the seconds of the training; "" where unknown."""
    path = REPORTS / "metrics" / f"{name}.jsonl"
    if not path.is_file():
        return ["", ""]
    epochs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [epoch for epoch in epochs if epoch["selected"]][-1]
    robust = f"{100 * kept['robust']:.1f}" if entry.load().validation.select == "robust" else ""
    return [robust, f"{sum(epoch['seconds'] for epoch in epochs):.0f}"]


def what(entry: Entry) -> str:
    return f"{entry.recipe}: {', '.join(entry.set)}" if entry.set else entry.recipe


def cell(found: Report, attack: str) -> str:
    one = result(found, attack)
    if one is None:
        return ""
    low, high = (100 * bound for bound in one["interval95_wilson"])
    return f"{100 * one['accuracy']:.1f} ({low:.1f}-{high:.1f})"


def check_images(mine: Report, theirs: Report) -> None:
    """Raise BadInput for scores of other data or another part of them."""
    parts = [(found["data"], found["split"].partition(",")[0]) for found in (mine, theirs)]
    if parts[0] != parts[1]:
        raise BadInput(f"scores on {parts[0]} and on {parts[1]} are of other images; compare neither")


def alone(mine: Report, theirs: Report, attack: str) -> tuple[int, int, int, float]:
    """Images that both were scored on; those right under `attack` by the first alone, by the second alone; p."""
    check_images(mine, theirs)
    flags = [result(found, attack)["flags"] for found in (mine, theirs)]
    n = min(map(len, flags))
    return n, *paired(*(one[:n] for one in flags))


def compared(mine: Report, theirs: Report, name: str) -> str:
    """In words: who is right alone how often under AutoAttack, and under the PGD that both met."""
    n, own, other, p = alone(mine, theirs, "AutoAttack")
    verdict = "not told apart from" if p >= SIGNIFICANT else "better than" if own > other else "worse than"
    said = f"{verdict} {name}: {own} of {n} images right by it alone, {other} by the other alone, p {p:.2g}"
    for attack in (one for one in ("PGD-40 x 10", "PGD-40") if result(mine, one) and result(theirs, one)):
        _, own, other, p = alone(mine, theirs, attack)
        said += f" (under {attack} {own} and {other}, p {p:.2g})"
    return said


def table(rows: list[list[str]], head: list[str]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]] if rows else []


def scored(there: Reports) -> Iterator[str]:
    """How the entries of a table were scored, those alike together, and what their scores have to say."""
    alike: dict[str, list[str]] = {}
    for name, (one, *_) in there.items():
        attack, machine = result(one, "AutoAttack"), one["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
        how = (
            f"{one['split']}; AutoAttack {attack['version']}; seed {one['seed']}, chunks of {one['chunk']} images; "
            f"speed {one['speed']}; {machine['device']}, Python {machine['python']}, {versions}"
        )
        alike.setdefault(how, []).append(name)
    yield from (f"\nScored ({', '.join(names)}): {how}." for how, names in alike.items())
    for name, (one, *_) in there.items():
        yield from (f"\n{name}, {score['attack']}: {note}" for score in one["results"] for note in score["notes"])


def against(there: Reports, known: Mapping[str, Entry]) -> Iterator[str]:
    for name in there:
        rivals = (rival for rival in known[name].against if rival in there)
        yield from (f"\n{name} is {compared(there[name][0], there[rival][0], rival)}." for rival in rivals)


def models(found: Reports, known: Mapping[str, Entry], searched: Mapping[str, Entry]) -> Iterator[str]:
    """One table per data set and threat model, and below it what its ATENT models are against the others."""
    trials = {digest(entry.load()): name for name, entry in searched.items()}
    places: dict[str, Reports] = {}
    for name in (name for name in known if found[name]):
        (one,) = found[name]
        place = f"{one['data']}, {one['threat']['norm']} eps {one['threat']['eps']:g}"
        places.setdefault(place, {})[name] = found[name]
    for place, here in places.items():
        yield f"## {place}\n"
        yield from table(
            [
                [name, what(known[name]), *training(name, known[name]), *(cell(one, attack) for attack in ATTACKS)]
                for name, (one,) in here.items()
            ],
            ["model", WHAT, *TRAINING, *ATTACKS],
        )
        yield from against(here, known)
        yield from scored(here)
        for name in here:
            if trial := trials.get(digest(known[name].load())):
                yield f"\n{name} is the network of the search's {trial}, trained once."
        yield ""
    yield from missing(found, known)


def missing(found: Reports, known: Mapping[str, Entry]) -> Iterator[str]:
    if names := [name for name in known if not found[name]]:
        yield f"\nNot done yet: {', '.join(names)}.\n"


def search(found: Reports, known: Mapping[str, Entry]) -> Iterator[str]:
    """What each entry of the search sets, and how it did on held-out images; one may be trained and not scored."""
    here = {name: found[name] for name in known if found[name]}
    logs = {name: training(name, entry) for name, entry in known.items()}
    rows = [
        [name, what(known[name]), *log, *(cell(found[name][0], attack) if name in here else "" for attack in SCORES)]
        for name, log in logs.items()
        if name in here or any(log)
    ]
    yield from table(rows, ["name", WHAT, *TRAINING, *SCORES])
    yield from against(here, known)
    yield from scored(here)
    if unscored := [name for name, log in logs.items() if name not in here and any(log)]:
        yield f"\nTrained and not scored here: {', '.join(unscored)}.\n"
    yield from missing(found, {name: entry for name, entry in known.items() if not any(logs[name])})


def chains() -> str:
    """How often chains broke the images that APGD had broken, as eval/experiments/starts.py wrote it."""
    found = json.loads((REPORTS / "held_out" / "linf-eps-0.4-tune-starts.json").read_text(encoding="utf-8"))
    told = ("start", "starts", "steps", "step", "broken", "left_by_all")
    averaged = ({**chain, "broken": f"{mean(chain['broken']):.1f}"} for chain in found["chains"])
    rows = [[str(chain[key]) for key in told] for chain in averaged]
    left = f"left by all {found['repeats']}"
    head = [*told[:4], f"broken, of {found['broken_images']}", left]
    return "\n".join(table(rows, head))


def accuracies(found: list[Report], attack: str) -> list[float]:
    return [100 * result(one, attack)["accuracy"] for one in found]


def spread(found: list[Report], attack: str) -> str:
    """The mean over seeds with the lowest and the highest; the interval of one network where there is one."""
    if len(found) == 1:
        return cell(found[0], attack)
    each = accuracies(found, attack)
    return f"{mean(each):.1f} ({min(each):.1f} to {max(each):.1f})"


def gain(mine: list[Report], theirs: list[Report], name: str) -> str:
    """What an entry has more than another: over seeds the mean difference with its t interval, else McNemar's words."""
    if len(mine) == 1:
        return compared(mine[0], theirs[0], name)
    for own, other in zip(mine, theirs, strict=True):
        check_images(own, other)
    apart = [own - other for own, other in zip(*(accuracies(one, "AutoAttack") for one in (mine, theirs)), strict=True)]
    if not stdev(apart):
        return f"{mean(apart):+.1f} points against {name}, in every seed"
    half = float(t.ppf(0.975, len(apart) - 1)) * stdev(apart) / len(apart) ** 0.5
    return f"{mean(apart):+.1f} points ({mean(apart) - half:+.1f} to {mean(apart) + half:+.1f}) against {name}"


def ablation(found: Reports, known: Mapping[str, Entry]) -> Iterator[str]:
    """What each entry sets, its mean over seeds, and what that is beside the entries that it is compared with."""
    here = {name: found[name] for name in known if found[name]}
    rows = []
    for name, mine in here.items():
        gains = "; ".join(gain(mine, found[one], one) for one in known[name].against if found[one])
        rows.append([name, what(known[name]), str(len(mine)), *(spread(mine, attack) for attack in SCORES), gains])
    yield from table(rows, ["name", WHAT, "seeds", *SCORES, "difference under AutoAttack"])
    yield from scored(here)
    yield from missing(found, known)


def duels(known: Known) -> Iterator[str]:
    """How the published ATENT models fare against the others, for docs/results.md."""
    found = reports(known)
    for name, entry in ((name, entry) for (group, name), entry in known.items() if group == "models" and found[name]):
        (mine,) = found[name]
        rivals = [rival for rival in entry.against if found[rival]]
        threat = f"{mine['threat']['norm']} eps {mine['threat']['eps']:g}"
        yield from [f"- **{name}**, {threat}, {cell(mine, 'AutoAttack')}, is"] if rivals else ()
        for rival in rivals:
            (theirs,) = found[rival]
            yield f"  - {compared(mine, theirs, rival)}; it has {cell(theirs, 'AutoAttack')}"


def page(known: Known) -> str:
    found = reports(known)
    groups: dict[str, dict[str, Entry]] = {kind: {} for kind in get_args(Group)}
    for (group, name), entry in known.items():
        groups[group][name] = entry
    lines = [HEAD, *models(found, groups["models"], groups["search"])]
    lines += [
        SEARCH.format(chains=chains()),
        *search(found, groups["search"]),
        "",
        ABLATION,
        *ablation(found, groups["ablation"]),
    ]
    lines += ["", CIFAR, *ablation(found, groups["cifar10"])]
    return "\n".join(lines).rstrip() + "\n"


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Path = HERE.parent / "docs" / "zoo.md") -> None:
    files.write(out, page(entries()))
    print(f"written: {out}")


if __name__ == "__main__":
    exit.run(app)
