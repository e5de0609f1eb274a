"""Training curves from the metrics of a run folder: loss, clean, robust and proven validation accuracy (v2 Fig. 3)."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from atent_ext.core.errors import BadInput
from atent_ext.figures import plots
from atent_ext.training.run_folder import RunFolder

History = Sequence[dict[str, Any]]
"""One dict per epoch: epoch (from 1), loss, clean and robust in [0, 1], lr, selected, and proven in [0, 1] or None."""

_FIELDS = ("epoch", "loss", "clean", "robust", "lr", "selected")


def read(folder: Path) -> list[dict[str, Any]]:
    """The epochs of a run folder. Raises BadInput if there are none, or if a line of metrics.jsonl is invalid."""
    path = RunFolder(folder).path / "metrics.jsonl"
    if not path.is_file():
        message = f"{folder} holds no finished epoch: there is no metrics.jsonl in it; name a run folder"
        raise BadInput(message, code="missing", field="folder")
    lines = path.read_text(encoding="utf-8").splitlines()
    epochs = [_epoch(path, number, line) for number, line in enumerate(lines, 1)]
    if not epochs:
        raise BadInput(f"{path} is empty; train at least one epoch", code="missing", field="folder")
    return epochs


def _epoch(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        epoch: dict[str, Any] = json.loads(line)
        return {**{name: epoch[name] for name in _FIELDS}, "proven": epoch.get("proven")}
    except (ValueError, TypeError, KeyError) as error:
        message = f"{path}, line {number}, is no epoch of {', '.join(_FIELDS)}: {error!r}"
        raise BadInput(message, code="unreadable", field="folder") from error


def decays(history: History) -> list[tuple[int, float]]:
    """(epoch, learning rate) of each epoch with a lower rate than the epoch before; empty for a smooth schedule.

    A schedule is smooth if its rate ever changes other than by a division by 10 or 100 (one or two milestones).
    """
    rates = [epoch["lr"] for epoch in history]
    if _smooth(rates):
        return []
    return [
        (epoch["epoch"], now) for epoch, before, now in zip(history[1:], rates, rates[1:], strict=False) if now < before
    ]


def _smooth(rates: Sequence[float]) -> bool:
    tens = [math.log10(before / now) if now > 0 else math.inf for before, now in pairwise(rates)]
    return not all(math.isfinite(ten) and 0 <= round(ten) <= 2 and abs(ten - round(ten)) < 1e-6 for ten in tens)


def selected(history: History) -> dict[str, Any] | None:
    """The epoch whose weights were kept: the last selected epoch; None if there is none."""
    return next((epoch for epoch in reversed(history) if epoch["selected"]), None)


def chart(runs: Sequence[tuple[str, History]]) -> Any:
    """A matplotlib Figure: one column per (name, history), accuracy in % above the training loss.

    A vertical line between two epochs marks a learning-rate decay and names the new rate; a dotted line and a star mark
    the selected epoch.
    """
    width = 1.2 + 4.2 * len(runs)
    figure, grid = plots._figure(width, 5.0, 2, len(runs), sharex="col", sharey="row", height_ratios=(3, 2))
    for column, (name, history) in enumerate(runs):
        _accuracy(grid[0][column], history)
        _loss(grid[1][column], history)
        grid[0][column].set_title(_heading(name, history), fontsize=9, pad=24)
    grid[0][0].set_ylabel("validation accuracy (%)")
    grid[1][0].set_ylabel("training loss")
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in grid[0]]
    named = {label: handle for column in pairs for handle, label in column}
    figure.legend(
        list(named.values()), list(named), loc="outside lower center", ncols=2 * min(len(runs), 2), frameon=False
    )
    return figure


def draw(runs: Sequence[tuple[str, History]], path: Path) -> list[Path]:
    """Save `chart(runs)` to `path` and the `.svg` beside it; returns both."""
    return plots.save(chart(runs), path)


def _accuracy(axes: Any, history: History) -> None:
    epochs = [epoch["epoch"] for epoch in history]
    size = {"markersize": 3, "color": "black"}
    axes.plot(epochs, [100 * e["clean"] for e in history], "o-", label="clean", fillstyle="none", **size)
    axes.plot(epochs, [100 * e["robust"] for e in history], "s--", label="robust (PGD)", **size)
    proven: list[Any] = [epoch.get("proven") for epoch in history]
    if None not in proven:
        axes.plot(epochs, [100 * share for share in proven], "v:", label="proven (interval bounds)", **size)
    axes.set(ylim=(0, 101))
    axes.grid(alpha=0.3)
    _mark(axes, history)
    kept = selected(history)
    if kept:
        heights = [100 * kept[name] for name in ("clean", "robust", "proven") if kept.get(name) is not None]
        style = {"markersize": 9, "markerfacecolor": "white", "markeredgecolor": "black", "linestyle": "none"}
        axes.plot([kept["epoch"]] * len(heights), heights, "*", label="selected epoch", **style)
    for position, (epoch, rate) in enumerate(decays(history)):
        place = {"xytext": (0, 2 + 9 * (position % 2)), "textcoords": "offset points", "ha": "center", "fontsize": 7}
        axes.annotate(f"lr {rate:.2g}", (epoch - 0.5, 1), xycoords=("data", "axes fraction"), **place)


def _loss(axes: Any, history: History) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot([e["epoch"] for e in history], [e["loss"] for e in history], "^-", color="black", markersize=3)
    axes.set(xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    _mark(axes, history)


def _mark(axes: Any, history: History) -> None:
    for epoch, _ in decays(history):
        axes.axvline(epoch - 0.5, color="0.5", linewidth=1, gid="decay")
    kept = selected(history)
    if kept:
        axes.axvline(kept["epoch"], color="0.3", linewidth=1, linestyle=":", gid="selected")


def _heading(name: str, history: History) -> str:
    kept, rates = selected(history), [epoch["lr"] for epoch in history]
    parts = [f"selected: epoch {kept['epoch']}"] if kept else []
    parts += [f"learning rate {min(rates):.2g} to {max(rates):.2g}"] if _smooth(rates) else []
    return "\n".join([name, "; ".join(parts)])
