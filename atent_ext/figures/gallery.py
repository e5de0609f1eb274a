"""The picture of a card: the first test images, their perturbations by PGD, and the predictions."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from atent_ext.core.model_state import seeded
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.figures.plots import draw_portraits, portrait

STEPS = 40
_ROWS, _IN_A_ROW = 2, 3


def draw(
    network: nn.Module, split: Split, threat: Threat, classes: Sequence[str], title: str, path: Path, seed: int = 0
) -> None:
    """Draw the first images of `split`, at most 6, as a picture to `path` (.png), under PGD of `STEPS` steps.

    The state of the network and the global random state are restored. Random layers of the network draw from `seed`.
    """
    beside = min(_IN_A_ROW, len(split))
    count = beside * min(_ROWS, len(split) // beside)
    with seeded(seed):
        portraits = [portrait(network, split, position, threat, STEPS, seed) for position in range(count)]
    starts = range(0, count, beside)
    rows = {f"images {first} to {first + beside - 1}": portraits[first : first + beside] for first in starts}
    draw_portraits(rows, classes, title, path)
