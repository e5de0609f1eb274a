"""The loss around a test image, in the plane of the adversarial direction and of a random one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import predict
from atent_ext.core import losses, seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import gaussian, norm
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.figures import plots

_REACH = 2.0
"""Half the width of the figure, in units of eps."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """Maps over x + a u + b v; a and b run over `offsets` (M,), b down the rows, a along the columns.

    loss: cross-entropy in nats. margin: of the best other class over the true one, positive where the model is wrong.
    size: the norm of a u + b v, at most eps inside the threat model. All (M, M). reach: size of PGD's displacement.
    """

    name: str
    offsets: Tensor
    loss: Tensor
    margin: Tensor
    size: Tensor
    reach: float
    threat: Threat
    label: int


def directions(
    model: nn.Module, split: Split, index: int, threat: Threat, steps: int = 40, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """(u, v, size of PGD's displacement): the directions are (1, ...) and have size 1 in the norm of the threat model.

    u is PGD's displacement; v a random sign vector for ℓ∞, for ℓ2 a random vector orthogonal to u.
    Raises BadInput for an index outside the split, for an eps of 0, and for an attack that does not move the image.
    """
    if not 0 <= index < len(split):
        message = f"index is {index}; it must lie in [0, {len(split) - 1}], the images there are"
        raise BadInput(message, code="bad-value", field="index")
    if not threat.eps:
        raise BadInput("eps is 0; a landscape needs a threat model with eps > 0", code="bad-value", field="eps")
    shown = plots.portrait(model, split, index, threat, steps, seed)
    change = (shown.adversarial - shown.clean)[None]
    size = norm(threat.norm).size(change)
    if not size > 0:
        message = f"the attack does not move image {index}; choose another image"
        raise BadInput(message, code="bad-value", field="index")
    u = change / size
    return u, _other(u, threat, seeds.generator(seed)), float(size)


def _other(u: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    random = gaussian(u, generator)
    if threat.norm == "L2":
        random = random - (random * u).sum() * u
    return norm(threat.norm).steepest(random)


def around(
    name: str,
    model: nn.Module,
    split: Split,
    index: int,
    threat: Threat,
    *,
    points: int = 41,
    steps: int = 40,
    seed: int = 0,
) -> Landscape:
    """The landscape of image `index` of `split`, `points` × `points` over ±2 eps, attacked with PGD of `steps` steps.

    Points of the plane are not clamped to [0, 1]: the maps are those of the plane. Raises BadInput as `directions`.
    """
    validate.steps("points", points)
    u, v, reach = directions(model, split, index, threat, steps, seed)
    offsets = _REACH * threat.eps * torch.linspace(-1, 1, points, dtype=u.dtype)
    b, a = (part.reshape(-1, *[1] * (u.dim() - 1)) for part in torch.meshgrid(offsets, offsets, indexing="ij"))
    moves = a * u + b * v
    logits = predict(model, split.images[index : index + 1] + moves)
    labels = split.labels[index].expand(len(logits))
    values = (losses.cross_entropy(logits, labels), losses.margin(logits, labels), norm(threat.norm).size(moves))
    loss, margin, size = (value.reshape(points, points) for value in values)
    return Landscape(name, offsets, loss, margin, size, reach, threat, int(labels[0]))


def chart(maps: Sequence[Landscape]) -> Any:
    """A matplotlib Figure: one panel per model with labelled contours of the loss.

    Thick line: the decision boundary. Dashed line: the edge of the eps ball. Dot: the image. Cross: its adversarial
    example.
    """
    figure, grid = plots._figure(0.8 + 4.1 * len(maps), 5.7, 1, len(maps), sharey=False)
    for axes, shown in zip(grid[0], maps, strict=True):
        _panel(axes, shown)
    grid[0][0].set_ylabel(f"random direction ({plots._pretty(maps[0].threat.norm)} length)")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw(maps: Sequence[Landscape], path: Path) -> list[Path]:
    """Save `chart(maps)` to `path` and the `.svg` beside it; returns both."""
    return plots.save(chart(maps), path)


_CHANGE = {"colors": "black", "linewidths": 2.6}
_BALL = {"colors": "black", "linewidths": 1.2, "linestyles": "--"}


def _panel(axes: Any, shown: Landscape) -> None:
    offsets = shown.offsets
    low, high = float(shown.loss.min()), float(shown.loss.max())
    if low < high:  # matplotlib warns of a flat map
        grid = (offsets.numpy(), offsets.numpy(), shown.loss.numpy())
        axes.contourf(*grid, levels=9, cmap="Greys", vmin=low, vmax=low + 2.5 * (high - low))
        lines = axes.contour(*grid, levels=9, colors="0.35", linewidths=0.7)
        axes.clabel(lines, fontsize=7, fmt="%.3g")
    plots.level_line(axes, offsets, offsets, shown.margin, 0.0, **_CHANGE)
    plots.level_line(axes, offsets, offsets, shown.size, shown.threat.eps, **_BALL)
    axes.plot([0], [0], "o", color="black", markersize=6)
    axes.plot([shown.reach], [0], "X", color="white", markeredgecolor="black", markersize=9)
    axes.set(xlabel=f"adversarial direction ({plots._pretty(shown.threat.norm)} length)", aspect="equal")
    axes.locator_params(nbins=5)
    axes.set_title(f"{shown.name}\ncross-entropy (nats), eps {shown.threat.eps:.3g}", fontsize=9)


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"linestyle": "none", "color": "black"}
    return [
        Line2D([], [], color="black", linewidth=2.6, label="prediction turns wrong"),
        Line2D([], [], color="black", linewidth=1.2, linestyle="--", label="edge of the eps ball"),
        Line2D([], [], marker="o", label="test image", **dot),
        Line2D([], [], marker="X", markerfacecolor="white", markersize=8, label="its adversary (PGD)", **dot),
    ]
