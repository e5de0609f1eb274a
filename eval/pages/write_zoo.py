"""Write docs/log/zoo.md from registry/cards/ and eval/results/zoo/: the zoo's models, comparisons, search and ablation.

python eval/pages/write_zoo.py
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import get_args

import measured
import typer
from measured import Entry, Group, Known, Report, Reports, cell, compared, digest, fill, listed, place, result, table
from zoo_texts import ABLATION, APGD, BETWEEN, CHAINS, CIFAR, HEAD, SEARCH

from atent_ext.cli import exit
from atent_ext.storage import files

ATTACKS = ("clean", "PGD-20", "PGD-40 x 10", "ATENT-40 x 3, every iterate", "AutoAttack")
WHAT = "recipe and what is set"
TRAINING = ("precision", "held-out PGD", "seconds")
SCORES = ("clean", "PGD-40", "AutoAttack")
PRECISION = {"no": "float32", "bf16": "bfloat16"}

Entries = Mapping[str, Entry]


# ---- cells and lines


def precision(entry: Entry) -> str:
    return PRECISION[entry.load().mixed_precision]


def training(name: str, entry: Entry) -> list[str]:
    """Precision; held-out accuracy under PGD of the epoch that it chose, and the seconds; "" where unknown."""
    path = measured.REPORTS / "metrics" / f"{name}.jsonl"
    if not path.is_file():
        return [precision(entry), "", ""]
    epochs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [epoch for epoch in epochs if epoch["selected"]][-1]
    robust = f"{100 * kept['robust']:.1f}" if entry.load().validation.select == "robust" else ""
    return [precision(entry), robust, f"{sum(epoch['seconds'] for epoch in epochs):.0f}"]


def proven(report: Report) -> str:
    """The share of images that interval bounds prove robust; "" if there are none."""
    count = max(one.get("proven", 0) for one in report["results"])
    return f"{100 * count / report['n']:.2f}" if count else ""


def trained(row: list[str]) -> bool:
    return bool(row[-1])


def what(entry: Entry) -> str:
    return f"{entry.recipe}: {', '.join(entry.set)}" if entry.set else entry.recipe


def against(there: Reports, known: Entries) -> Iterator[str]:
    for name in there:
        rivals = (rival for rival in known[name].against if rival in there)
        yield from (f"- {name} is {compared(there[name][0], there[rival][0], rival)}." for rival in rivals)


def settings(there: Reports) -> Iterator[str]:
    """How the entries of a table were scored, those alike together, and the notes of their scores."""
    alike: dict[str, list[str]] = {}
    for name, (one, *_) in there.items():
        alike.setdefault(setting(one), []).append(name)
    yield from (f"- Scored ({', '.join(names)}): {how}." for how, names in alike.items())
    for name, (one, *_) in there.items():
        yield from (f"- {name}, {score['attack']}: {note}" for score in one["results"] for note in score["notes"])


def setting(report: Report) -> str:
    attack, machine = result(report, "AutoAttack"), report["machine"]
    packages = {"Python": machine.get("python"), **report["versions"]}
    return "; ".join(
        [
            report["split"],
            *([f"AutoAttack {attack['version']}"] if attack else []),
            f"seed {report['seed']}, chunks of {report['chunk']} images",
            f"speed {report['speed']}",
            f"{machine['device']}, {', '.join(f'{name} {version}' for name, version in packages.items() if version)}",
        ]
    )


def used(known: Iterable[Entry]) -> Iterator[str]:
    """The recipes of entries in their own words, which say what was changed and what the budget is."""
    for name, recipe in {entry.recipe: entry.load() for entry in known}.items():
        yield f"- Recipe {name}: {' '.join(f'{recipe.description} {recipe.differs}'.split())}"


def missing(scored: Reports, known: Entries) -> Iterator[str]:
    if names := [name for name in known if not scored[name]]:
        yield f"\nNot done yet: {', '.join(names)}.\n"


# ---- sections


def head(scored: Reports, known: Entries, searched: Entries) -> str:
    validations = [entry.load().validation for entry in [*known.values(), *searched.values()]]
    robust = [one for one in validations if one.select == "robust"]
    return fill(
        HEAD,
        confidence=measured.percent(measured.CONFIDENCE),
        level=measured.percent(measured.SIGNIFICANT),
        factor=listed(_factors(scored, known)),
        seed=listed(entry.load().seed for entry in known.values()),
        steps=listed(one.steps for one in robust),
        held_out=listed(f"{one.count:,}" for one in validations),
    )


def _factors(scored: Reports, known: Entries) -> Iterator[str]:
    """step size x steps / eps, of every PGD on the cards."""
    for report in (report for name in known for report in scored[name]):
        for one in (one for one in report["results"] if one["attack"].startswith("PGD")):
            yield f"{one['step_size'] * one['steps'] / report['threat']['eps']:.4g}"


def models(scored: Reports, known: Entries, searched: Entries) -> Iterator[str]:
    """One table per data set and threat model, and below it what its ATENT models are against the others."""
    trials = {digest(entry.load()): name for name, entry in searched.items()}
    places: dict[str, Reports] = {}
    for name in (name for name in known if scored[name]):
        places.setdefault(place(scored[name][0]), {})[name] = scored[name]
    for where, here in places.items():
        yield f"## {where}\n"
        yield from table(
            [
                [
                    name,
                    what(known[name]),
                    *training(name, known[name]),
                    *(cell(one, attack) for attack in ATTACKS),
                    cell(one, "worst case"),
                    proven(one),
                ]
                for name, (one,) in here.items()
            ],
            ["model", WHAT, *TRAINING, *ATTACKS, "worst case", "proven"],
        )
        yield ""
        yield from against(here, known)
        yield from settings(here)
        for name in here:
            if trial := trials.get(digest(known[name].load())):
                yield f"- {name} is the same network as {trial} of the search."
        yield from used(known[name] for name in here)
        yield ""
    yield from missing(scored, known)


def search(scored: Reports, known: Entries) -> Iterator[str]:
    """What each entry of the search sets, and how it did on held-out images; one may be trained and not scored."""
    here = {name: scored[name] for name in known if scored[name]}
    logs = {name: training(name, entry) for name, entry in known.items()}
    rows = [
        [name, what(known[name]), *log, *(cell(scored[name][0], attack) if name in here else "" for attack in SCORES)]
        for name, log in logs.items()
        if name in here or trained(log)
    ]
    yield from table(rows, ["name", WHAT, *TRAINING, *SCORES])
    yield ""
    yield from against(here, known)
    yield from settings(here)
    if unscored := [name for name, log in logs.items() if name not in here and trained(log)]:
        yield f"- Trained and not scored here: {', '.join(unscored)}."
    yield from used(entry for name, entry in known.items() if name in here or trained(logs[name]))
    yield from missing(scored, {name: entry for name, entry in known.items() if not trained(logs[name])})


def one_attack() -> Iterator[str]:
    """What eval/experiments/held_out.py wrote: how many images one attack of AutoAttack leaves."""
    reports = {
        path.stem: measured.read(path) for path in sorted((measured.REPORTS / "held_out").glob("*apgd-ce*.json"))
    }
    how = (f"{one['package']}, seed {one['seed']}, batches of {one['batch_size']}" for one in reports.values())
    yield fill(APGD, attack=listed(one["attack"] for one in reports.values()), settings=listed(how))
    yield from table(
        [
            [stem.partition("-apgd-ce")[0], one["images"], str(one["robust_after"]["clean"]), str(one["correct"])]
            for stem, one in reports.items()
        ],
        ["name", "images", "right when clean", "left"],
    )


def chains(name: str = "linf-eps-0.4-tune") -> Iterator[str]:
    """How often chains broke the images that APGD had broken, as eval/experiments/starts.py wrote it."""
    report = measured.read(measured.REPORTS / "held_out" / f"{name}-starts.json")
    repeats, broken = report["repeats"], report["broken_images"]
    fields = {key: report[key] for key in ("attack", "images", "eps", "torch")}
    yield fill(CHAINS, name=name, repeats=repeats, broken=broken, radius=report["threat"]["eps"], **fields)
    shown = ("start", "starts", "steps", "step")
    yield from table(
        [
            [*(str(one[key]) for key in shown), f"{mean(one['broken']):.1f}", str(one["left_by_all"])]
            for one in report["chains"]
        ],
        [*shown, f"broken, of {broken}", f"left by all {repeats}"],
    )


def between(scored: Reports) -> Iterator[str]:
    """The test scores in eval/results/zoo/between/."""
    reports = measured.between()
    yield fill(BETWEEN)
    yield from table(
        [
            [name, str(result(one, "clean")["n"]), *(cell(one, attack) for attack in ATTACKS)]
            for name, one in reports.items()
        ],
        ["name", "images", *ATTACKS],
    )
    yield ""
    for name, one in ((name, one) for name, one in reports.items() if result(one, "AutoAttack")):
        yield from (
            f"- {name} is {compared(one, scored[rival][0], rival)}." for rival in measured.PUBLISHED if scored[rival]
        )
    yield from settings({name: [one] for name, one in reports.items()})


def spread(those: list[Report], attack: str) -> str:
    """The mean over seeds with the lowest and the highest; the interval of one network where there is one."""
    if len(those) == 1:
        return cell(those[0], attack)
    each = measured.accuracies(those, attack)
    return f"{mean(each):.1f} ({min(each):.1f} to {max(each):.1f})"


def difference(mine: list[Report], theirs: list[Report], name: str) -> str:
    """What an entry has more than another: over seeds the mean difference with its t interval, else McNemar's words."""
    if len(mine) == 1:
        return compared(mine[0], theirs[0], name)
    return f"{measured.gain(mine, theirs)} against {name}"


def ablation(scored: Reports, known: Entries) -> Iterator[str]:
    """What each entry sets, its mean over seeds, and what that is beside the entries that it is compared with."""
    here = {name: scored[name] for name in known if scored[name]}
    rows = []
    for name, mine in here.items():
        gains = "; ".join(difference(mine, scored[one], one) for one in known[name].against if scored[one])
        rows.append([name, what(known[name]), str(len(mine)), *(spread(mine, attack) for attack in SCORES), gains])
    yield from table(rows, ["name", WHAT, "seeds", *SCORES, "difference under AutoAttack"])
    yield ""
    yield from settings(here)
    yield from missing(scored, known)


def ablation_text(scored: Reports, known: Entries) -> str:
    several = {name: scored[name] for name, entry in known.items() if entry.seeds > 1 and scored[name]}
    alone = [scored[name][0] for name, entry in known.items() if entry.seeds == 1 and scored[name]]
    gains = measured.gains(scored, known)
    kept = measured.holm({names: one.p for names, one in gains.items()})
    return fill(
        ABLATION,
        place=listed(place(one) for those in several.values() for one in those),
        seeds=listed(map(len, several.values())),
        split=listed(one["split"] for those in several.values() for one in those),
        confidence=measured.percent(measured.CONFIDENCE),
        level=measured.percent(measured.SIGNIFICANT),
        comparisons=len(gains),
        significant=listed(f"`{mine}` against `{theirs}`" for mine, theirs in kept),
        next=f"{min((one.p for names, one in gains.items() if names not in kept), default=1.0):.2g}",
        mnist=listed(map(place, alone)),
    )


def cifar_text(scored: Reports, known: Entries) -> str:
    loaded = [entry.load() for entry in known.values()]
    return fill(
        CIFAR,
        place=listed(place(one) for name in known for one in scored[name]),
        model=listed(one.model.name for one in loaded),
        precision=listed(map(precision, known.values())),
        epochs=listed(one.epochs for one in loaded),
        held_out=listed(f"{one.validation.count:,}" for one in loaded),
        seed=listed(one.seed for one in loaded),
    )


def page(known: Known) -> str:
    scored = measured.reports(known)
    groups: dict[str, dict[str, Entry]] = {kind: {} for kind in get_args(Group)}
    for (group, name), entry in known.items():
        groups[group][name] = entry
    published, searched = groups["models"], groups["search"]
    sections = [
        [head(scored, published, searched)],
        models(scored, published, searched),
        [fill(SEARCH), *search(scored, searched)],
        one_attack(),
        chains(),
        between(scored),
        [ablation_text(scored, groups["ablation"]), *ablation(scored, groups["ablation"])],
        [
            cifar_text(scored, groups["cifar10"]),
            *ablation(scored, groups["cifar10"]),
            *used(groups["cifar10"].values()),
        ],
    ]
    return "\n\n".join("\n".join(lines).strip() for lines in sections) + "\n"


app = typer.Typer(add_completion=False)


@app.command()
def main(out: Path = measured.ROOT / "docs" / "log" / "zoo.md") -> None:
    files.write(out, page(measured.entries()))
    print(f"written: {out}")


if __name__ == "__main__":
    exit.run(app)
