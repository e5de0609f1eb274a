"""Class probabilities of several models for a test image and its adversarial examples (v1 Fig. 4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import predict
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.figures import plots


@dataclass(frozen=True, eq=False)
class Row:
    """One model: images (2, C, H, W), clean and adversarial; probabilities (2, classes); label: the true class."""

    name: str
    images: Tensor
    probabilities: Tensor
    label: int
    threat: Threat
    steps: int


def attacked(
    name: str, model: nn.Module, split: Split, index: int, threat: Threat, steps: int = 40, seed: int = 0
) -> Row:
    """Attack image `index` of `split` with PGD of `steps` steps. Raises BadInput for an index outside the split."""
    if not 0 <= index < len(split):
        message = f"index is {index}; it must lie in [0, {len(split) - 1}], the images there are"
        raise BadInput(message, code="bad-value", field="index")
    shown = plots.portrait(model, split, index, threat, steps, seed)
    images = torch.stack([shown.clean, shown.adversarial])
    return Row(name, images, predict(model, images).softmax(1), int(split.labels[index]), threat, steps)


def chart(rows: Sequence[Row], classes: Sequence[str]) -> Any:
    """A matplotlib Figure: per row the clean image, the adversary, and a pair of bars for each class.

    The bars of the adversary are hatched; the name of the true class is bold and in brackets.
    """
    wide = max(3.6, 0.42 * len(classes))
    figure, grid = plots._figure(3.4 + wide, 1.75 * len(rows) + 0.7, len(rows), 3, width_ratios=(1.3, 1.3, wide))
    for line, row in zip(grid, rows, strict=True):
        for axes, image, caption, values in zip(
            line, row.images, ("clean", "adversary"), row.probabilities, strict=False
        ):
            plots._show(axes, image, 0, 1, f"{caption}: {classes[int(values.argmax())]}")
        _bars(line[2], row, classes)
    grid[-1][2].set_xlabel("class [true class in brackets]")
    figure.legend(*grid[0][2].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False)
    return figure


def draw(rows: Sequence[Row], classes: Sequence[str], path: Path) -> list[Path]:
    """Save `chart(rows, classes)` to `path` and the `.svg` beside it; returns both."""
    return plots.save(chart(rows, classes), path)


def _bars(axes: Any, row: Row, classes: Sequence[str]) -> None:
    places = torch.arange(len(classes))
    clean, adversarial = row.probabilities.numpy()
    edge = {"edgecolor": "black", "linewidth": 0.6}
    axes.bar(places - 0.2, clean, 0.4, color="0.35", label="clean", **edge)
    axes.bar(places + 0.2, adversarial, 0.4, color="white", hatch="/////", label="adversary", **edge)
    names = [f"[{name}]" if place == row.label else name for place, name in enumerate(classes)]
    axes.set_xticks(places, names, fontsize=8, rotation=45 if max(map(len, names)) > 4 else 0)
    axes.get_xticklabels()[row.label].set_fontweight("bold")
    axes.set(ylim=(0, 1.02), ylabel="probability")
    attack = f"PGD-{row.steps}, {plots._pretty(row.threat.norm)} eps {row.threat.eps:.3g}"
    axes.set_title(f"{row.name}: {attack}", fontsize=9)
