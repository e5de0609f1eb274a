"""Write docs/attacks.md and its curves from the results of eval/benchmarks/attacks.py and beyond_autoattack.py.

    python eval/pages/write_attacks.py

They are eval/results/attacks.jsonl, attacks-broken.jsonl and attacks-beyond.jsonl.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.figure import Figure
from scipy.stats import binomtest

from atent_ext.attacks import uphill
from atent_ext.core.statistics import holm
from atent_ext.experiments.markdown import SIGNIFICANT
from atent_ext.figures.plots import save
from atent_ext.storage import files

ROOT = Path(__file__).resolve().parents[2]
OURS = "ATENT annealed"
RIVALS = ("APGD-CE", "PGD x ", "torchattacks ")
SPLITS = ("PGD x 1", "PGD x 2", "PGD x 5", "PGD x 10")
COLORS = {OURS: "C3", "ATENT as printed": "C1", "APGD-CE": "C0", "APGD-T": "C9", "Square": "C7"}
Row = dict[str, Any]
Rows = Sequence[Row]

HEAD = """# Attacks at equal prices

<!-- Written by eval/pages/write_attacks.py from attacks.jsonl, attacks-broken.jsonl and attacks-beyond.jsonl in
eval/results. Do not edit. -->

Use `LinfATENTAttack` or `L2ATENTAttack` where a gradient attack belongs and passes are few: in a training loop, in a
first score, or beside AutoAttack. One chain of K steps costs K passes forward and backward, `restarts=R` R times as
much for the images that withstand; `atent_ext.attacks.uphill.divided(passes)` divides a budget between the two. For the
score that you publish take AutoAttack: it also has an attack that needs no gradient.

Cells: images left, and in brackets the passes that an image took in the mean. A pass is one forward of one image,
counted by hooks; the budget bounds the passes of one image. Backward passes per image, and CPU seconds where they were
measured, are those of the largest budget. `n` is the number of images; a dash was not measured. "ATENT as printed" is
`.paper()`; "PGD x R" and "split" divide the budget between R restarts and their steps.

Some networks hide their gradients on purpose (`MASKS` in `eval/benchmarks/attacks.py`). A robust network for digits
gets inputs rounded to a few levels ("rounding"), a detached input ("detach"), noise or dropout; or it answers with
large multiples of its logits ("scaled logits"), or with a softmax of such multiples ("saturated softmax").
"""

BROKEN = """## Beside AutoAttack

Annealed ATENT with at most {budget:,} passes per image ({restarts} restarts of {steps} steps), on the images that
AutoAttack broke when the network's card was made, and on those that it left (a dash: not attacked, they count as left,
and the last column is an upper bound). "ATENT leaves in all" joins these two runs, each with its own draws.

AutoAttack's columns are of one seed. The images that it left were chosen by what this seed missed, which selects
against AutoAttack. So AutoAttack attacked those of them that ATENT broke once more, and only those, with {seeds}further
seeds; the table counts what at least one of these seeds breaks. A card's AutoAttack adds the number of the chunk to its
seed, which may give one of these; the draws differ all the same, as the batch does. What ATENT broke is evidence on the
card.

AutoAttack begins with APGD-CE; most of its passes go to the images that withstand, above all Square's. The settings of
ATENT were chosen on other test images of mnist-l2-atent and mnist-linf-atent, but also on these of mnist-linf-mart,
mnist-linf-trades and quickstart-digits-linf-pgd-at; the other networks had no part in it.
"""


def read(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def of(rows: Rows, **wanted: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def budgets(rows: Rows) -> list[int]:
    return sorted({row["budget"] for row in rows})


def table(rows: Rows) -> Iterator[str]:
    """One network: attacks by budgets."""
    limits = budgets(rows)
    counts = {limit: "/".join(sorted({str(row["n"]) for row in of(rows, budget=limit)})) for limit in limits}
    columns = " | ".join(f"{limit} passes, n {counts[limit]}" for limit in limits)
    yield f"| attack | {columns} | backward | CPU seconds |"
    yield "| --- |" + " ---: |" * (len(limits) + 2)
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = {row["budget"]: row for row in of(rows, attack=attack)}
        cells = [f"{c['left']} ({c['mean_passes']:.0f})" if (c := mine.get(limit)) else "–" for limit in limits]
        last = mine[max(mine)]
        seconds = f"{last['cpu_seconds']:.1f}" if "cpu_seconds" in last else "–"
        yield f"| {attack} | {' | '.join(cells)} | {last['mean_backward']:.0f} | {seconds} |"


def worse(mine: str, theirs: str) -> float:
    """One-sided exact p-value of: mine leaves more images than theirs, of the same images."""
    pairs = list(zip(mine, theirs, strict=True))
    only_mine, only_theirs = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    both = only_mine + only_theirs
    return float(binomtest(only_mine, both, alternative="greater").pvalue) if both else 1.0


def comparisons(rows: Rows) -> list[tuple[Row, Row, float]]:
    """ATENT annealed and each rival on the same images at the same budget, with the p-value of `worse`."""
    found = []
    for mine in of(rows, attack=OURS):
        same = of(rows, network=mine["network"], budget=mine["budget"], n=mine["n"])
        rivals = [row for row in same if row["attack"].startswith(RIVALS)]
        found += [(mine, rival, worse(mine["flags"], rival["flags"])) for rival in rivals]
    return found


def verdict(rows: Rows) -> Iterator[str]:
    pairs = comparisons(rows)
    corrected = holm([p for _, _, p in pairs])
    bad = [(mine, rival, p) for (mine, rival, _), p in zip(pairs, corrected, strict=True) if p < SIGNIFICANT]
    yield (
        f"Of {len(pairs)} comparisons at the same network, images and budget with PGD (each split), APGD-CE and "
        f"torchattacks' attacks, annealed ATENT leaves significantly more images in {len(bad)} (one-sided exact paired "
        f"test, Holm over all, {SIGNIFICANT:.0%})."
    )
    for mine, rival, p in bad:
        against = f"{mine['left']} against {rival['attack']}'s {rival['left']}"
        yield f"- {mine['network']}, {mine['budget']} passes: {against}, p {p:.3g}"
    for limit in budgets(rows):
        both = [(m, r) for m, r, _ in pairs if r["attack"] == "APGD-CE" and m["budget"] == limit]
        if both:
            ours, theirs, n = (sum(x) for x in zip(*((m["left"], r["left"], m["n"]) for m, r in both), strict=True))
            where = f"{limit} passes, pooled over {len(both)} networks ({n} images)"
            yield f"- {where}: ATENT annealed {ours}, APGD-CE {theirs}"
        bests = [(m["left"], splits(rows, m)) for m in of(rows, attack=OURS, budget=limit)]
        wins = [left < min(best) for left, best in bests if len(best) == len(SPLITS)]
        if wins:
            yield f"- {limit} passes: fewer left than by the best split of PGD on {sum(wins)} of {len(wins)} networks"


def splits(rows: Rows, mine: Row) -> list[int]:
    same = of(rows, network=mine["network"], budget=mine["budget"], n=mine["n"])
    return [row["left"] for row in same if row["attack"] in SPLITS]


def curve(rows: Rows, name: str) -> Figure:
    """Share of images left against the budget of passes, a line an attack."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = sorted(of(rows, attack=attack), key=lambda row: row["budget"])
        points = [row["budget"] for row in mine], [100 * row["left"] / row["n"] for row in mine]
        strong = attack in COLORS
        axes.plot(*points, marker="o", ms=3, label=attack if strong else None, color=COLORS.get(attack, "lightgray"))
    axes.set(xscale="log", xlabel="budget of passes an image", ylabel="images left, %", title=name)
    axes.legend(fontsize=8)
    return figure


def on_broken(rows: Rows, beyond: Rows) -> Iterator[str]:
    """Annealed ATENT on the images that AutoAttack broke and on those that it left, beside the counts of the cards."""
    heads = (
        "network",
        "images",
        "APGD-CE",
        "AutoAttack leaves",
        "of these ATENT breaks",
        "of those AutoAttack breaks with further seeds",
        "AutoAttack breaks",
        "of these ATENT leaves",
        "ATENT leaves in all",
    )
    yield f"| {' | '.join(heads)} |"
    yield "| --- |" + " ---: |" * (len(heads) - 1)
    for row in rows:
        same = {"passes": row["budget"]} | {name: row[name] for name in ("network", "seed", "autoattack")}
        whole = [found for found in of(beyond, **same) if found["n"] == row["autoattack"]]
        more = len(whole[0]["broken"]) if whole else 0
        left = f"{'' if whole else 'at most '}{row['autoattack'] + row['left'] - more}"
        further = (more, again(whole[0])) if whole else ("–", "–")
        shown = row["network"], row["card_n"], row["apgd_ce"], row["autoattack"], *further, row["n"], row["left"], left
        yield f"| {' | '.join(map(str, shown))} |"


def again(found: Row) -> int | str:
    """How many of the images that ATENT broke AutoAttack breaks with further seeds; a dash if that was not tried."""
    if found["broken"] and "autoattack_again" not in found:
        return "–"
    return sum(map(bool, found.get("autoattack_again", {}).values()))


def page(rows: Rows, broken: Rows, beyond: Rows = ()) -> str:
    parts = [HEAD]
    if broken:
        budget = broken[0]["budget"]
        restarts, steps = uphill.divided(budget)
        tried = len({seed for found in beyond for seed in found.get("autoattack_seeds", ())})
        parts += [
            BROKEN.format(budget=budget, restarts=restarts, steps=steps, seeds=f"{tried} " if tried else ""),
            "\n".join(on_broken(broken, beyond)) + "\n",
        ]
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = of(rows, network=network)
        parts += [f"## {network}, {mine[0]['norm']} eps {mine[0]['eps']:.4g}\n", "\n".join(table(mine)) + "\n"]
        parts.append(f"![Images left by {network}](img/attacks-{slug(network)}.svg)\n")
    parts += ["## In sum\n", "\n".join(verdict(rows)) + "\n"]
    return "\n".join(parts)


def slug(name: str) -> str:
    return name.replace(" ", "-")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    results: Annotated[Path, typer.Option()] = ROOT / "eval" / "results" / "attacks.jsonl",
    out: Annotated[Path, typer.Option()] = ROOT / "docs" / "attacks.md",
    pictures: Annotated[bool, typer.Option()] = True,
) -> None:
    rows, broken, beyond = (
        read(results.with_name(f"{results.stem}{more}.jsonl")) for more in ("", "-broken", "-beyond")
    )
    files.write(out, page([row for row in rows if "flags" in row], broken, beyond))
    if pictures:
        for network in dict.fromkeys(row["network"] for row in rows):
            save(curve(of(rows, network=network), network), out.parent / "img" / f"attacks-{slug(network)}.svg")
    print(f"written: {out}")


if __name__ == "__main__":
    app()
