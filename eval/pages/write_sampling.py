"""Draws from the Gibbs law beside the law itself, in two dimensions: a picture, and the table under it in the guide.

    python eval/pages/write_sampling.py

The network is linear with two classes. Its logits are (0, s) with s = SLOPE . x' + OFFSET, and the label is class 0.
The Gibbs law has the density (1 + exp(s))^(1 / temperature) in ball and box, up to a constant. Points with s > 0 are
adversarial; their mass is integrated on a grid. What was drawn stands in eval/results/sampling.json.
"""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import measured
import torch
import typer
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor, nn

from atent_ext.attacks import gibbs
from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.cli import exit
from atent_ext.core import seeds
from atent_ext.core.version import __version__
from atent_ext.leaderboard import site
from atent_ext.storage import files

CENTER, EPS, SLOPE, OFFSET = (0.3, 0.55), 0.4, (5.0, 2.5), -3.75
"""The box [0, 1] cuts the ball on the left."""
CASES = [(kind, temperature) for kind in (LinfATENTAttack, L2ATENTAttack) for temperature in (2.0, 0.5)]
BURN_IN, THIN = 1000, 10
SHOWN = 400
"""Points in a panel, each of a chain of its own, so that they are independent."""
NAMES = {"Linf": "ℓ∞", "L2": "ℓ2"}
Row = dict[str, Any]


def network() -> nn.Module:
    linear = nn.Linear(2, 2).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([(0.0, 0.0), SLOPE]))
        linear.bias.copy_(torch.tensor([0.0, OFFSET]))
    return linear


def score(points: Tensor) -> Tensor:
    """s of the points (..., 2)."""
    return points @ torch.tensor(SLOPE, dtype=points.dtype) + OFFSET


def integrated(kind: Any, temperature: float, cells: int = 600) -> float:
    """The share of adversarial mass, on a grid of cells."""
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    points = torch.cartesian_prod(*(center - EPS + 2 * EPS * middle for center in CENTER))
    inside = ((points >= 0) & (points <= 1)).all(1) & (
        kind.norm.size(points - torch.tensor(CENTER, dtype=torch.float64)) <= EPS
    )
    exponent = nn.functional.softplus(score(points)) / temperature
    mass = torch.where(inside, (exponent - exponent.max()).exp(), 0.0)
    return float(mass[score(points) > 0].sum() / mass.sum())


def measure(kind: Any, temperature: float, calls: int, draws: int, seed: int) -> tuple[Row, Tensor]:
    """The row of a panel, and its points (k, 2): `calls` calls of `draws`, all of the same image."""
    x = torch.tensor(CENTER, dtype=torch.float64).expand(calls, 2)
    attack = kind(network(), eps=EPS, nb_iter=BURN_IN, generator=seeds.generator(seed), speed="plain")
    found = attack.draws(x, torch.zeros(calls, dtype=torch.long), draws, temperature, THIN)
    assert found.points is not None
    expected = integrated(kind, temperature)
    covered = (found.interval[:, 0] <= expected) & (expected <= found.interval[:, 1])
    row = {
        "norm": kind.norm.name,
        "temperature": temperature,
        "step_size": gibbs.kernel(kind.norm, EPS, 1, temperature, x.shape[1:]).step_size,
        "calls": calls,
        "chains": len(found.losses),
        "draws": found.losses.shape[0] * found.losses.shape[1],
        "drawn": round(float(found.share.mean()), 4),
        "integrated": round(expected, 4),
        "error": round(float((found.share - expected).square().mean().sqrt()), 4),
        "effective": round(float(found.effective.median()), 1),
        "rhat": round(float(found.rhat.median()), 3),
        "mixed": round(float((found.rhat <= gibbs.MIXED).double().mean()), 3),
        "covered": round(float(covered.double().mean()), 3),
    }
    return row, found.points[:, -1].flatten(0, 1)[:SHOWN]


def chart(rows: Sequence[Row], points: Sequence[Tensor]) -> Any:
    """A panel a row: the density in grey, the points over it, and the figures below."""
    figure = Figure(figsize=(7, 8.6), layout="constrained")
    grid = figure.subplots(2, 2, sharey=True)
    for axes, row, drawn, (kind, temperature) in zip(grid.flat, rows, points, CASES, strict=True):
        _density(axes, kind, temperature)
        fooled = score(drawn) > 0
        for chosen, mark, color, name in ((fooled, "x", "C3", "adversarial"), (~fooled, "o", "C0", "classified right")):
            axes.plot(*drawn[chosen].T.numpy(), mark, ms=2.5, mew=0.7, color=color, label=name)
        axes.set_title(f"{NAMES[row['norm']]} ball of {EPS:g}, temperature {temperature:g}", fontsize=10)
        mass = f"adversarial mass {row['integrated']:.3f}, one call is off by {row['error']:.3f}"
        mixing = f"of {row['draws']} draws: effective size {row['effective']:.0f}, split R-hat {row['rhat']:.2f}"
        axes.set_xlabel(f"{mass}\n{mixing}", fontsize=8)
    handles = grid.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _density(axes: Any, kind: Any, temperature: float) -> None:
    """Its levels in ball and box, darker where it is higher, and the decision boundary."""
    (low, high) = (max(0.0, CENTER[0] - EPS), CENTER[0] + EPS), (CENTER[1] - EPS, CENTER[1] + EPS)
    first, second = (torch.linspace(*side, 60, dtype=torch.float64) for side in (low, high))
    values = score(torch.cartesian_prod(first, second)).reshape(60, 60)
    values = (nn.functional.softplus(values) / temperature).exp().T
    filled = axes.contourf(first.numpy(), second.numpy(), values.numpy(), levels=8, cmap="Greys", alpha=0.6)
    if kind is L2ATENTAttack:
        filled.set_clip_path(Circle(CENTER, EPS, transform=axes.transData))
    edge = -(OFFSET + SLOPE[0] * first) / SLOPE[1]
    axes.plot(first.numpy(), edge.numpy(), "k--", linewidth=1, label="decision boundary")
    axes.set(xlim=low, ylim=high, aspect="equal")


def save(figure: Any, path: Path) -> None:
    """As a PNG of few colours, which is a quarter as large."""
    drawn, small = BytesIO(), BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    Image.open(drawn).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    files.write(path, small.getvalue())


def table(found: Row) -> str:
    """The Markdown under the picture."""
    rows, first = found["rows"], found["rows"][0]
    furthest = max(abs(row["drawn"] - row["integrated"]) for row in rows)
    errors, sizes, mixed = ([row[name] for row in rows] for name in ("error", "effective", "mixed"))
    head = [
        "ball",
        "temperature",
        "step",
        "integrated",
        "one call",
        "calls that pass",
        "effective size",
        "split R-hat",
        "covered",
        f"mean of {first['calls']} calls",
    ]
    lines = measured.table(
        [
            [
                NAMES[row["norm"]],
                f"{row['temperature']:g}",
                f"{row['step_size']:.2g}",
                f"{row['integrated']:.3f}",
                f"± {row['error']:.3f}",
                f"{100 * row['mixed']:.0f} %",
                f"{row['effective']:.0f}",
                f"{row['rhat']:.2f}",
                f"{100 * row['covered']:.0f} %",
                f"{row['drawn']:.3f}",
            ]
            for row in rows
        ],
        head,
    )
    intro = (
        f"The share of one call is typically off by {min(errors):.2f} to {max(errors):.2f} (root mean square over "
        f"{first['calls']} calls of {first['draws']} draws each, in {first['chains']} chains, with {found['burn_in']} "
        f"steps dropped first and {found['thin']} steps a draw).\n"
        f"Chains mix slowly: only {100 * min(mixed):.0f} to {100 * max(mixed):.0f} % of the calls pass, with a split "
        f"R-hat of {gibbs.MIXED} or less, and the draws of a call are worth {min(sizes):.0f} to {max(sizes):.0f} "
        f"independent ones.\nThe mean of all {first['calls']} calls differs from the integrated mass by at most "
        f"{furthest:.3f}.\nEffective size and split R-hat are medians of the calls. "
        "Covered: the calls whose interval has the integrated mass."
    )
    return "\n".join([intro, "", *lines, ""])


app = typer.Typer(add_completion=False)


@app.command()
def main(
    calls: Annotated[int, typer.Option(help="of each panel, all of the same image")] = 400,
    draws: Annotated[int, typer.Option(help="a call")] = 400,
    seed: Annotated[int, typer.Option()] = 0,
    results: Annotated[Path, typer.Option()] = measured.ROOT / "eval" / "results" / "sampling.json",
    page: Annotated[Path, typer.Option()] = measured.ROOT / "docs" / "guide" / "attack.md",
    picture: Annotated[Path, typer.Option()] = measured.ROOT / "docs" / "img" / "sampling.png",
) -> None:
    panels = [measure(kind, temperature, calls, draws, seed) for kind, temperature in CASES]
    rows, points = [row for row, _ in panels], [drawn for _, drawn in panels]
    versions = {"atent-ext": __version__, "torch": torch.__version__}
    found = {"seed": seed, "burn_in": BURN_IN, "thin": THIN, "eps": EPS, "versions": versions, "rows": rows}
    files.write(results, json.dumps(found, indent=1) + "\n")
    save(chart(rows, points), picture)
    files.write(page, site.inserted(page.read_text(encoding="utf-8"), table(found)))
    print(f"written: {results}, {picture} and {page}")


if __name__ == "__main__":
    exit.run(app)
