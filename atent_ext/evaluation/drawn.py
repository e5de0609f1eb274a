"""The random order, drawn from the seed, in which an evaluation that may stop early scores its images."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from atent_ext.core import seeds
from atent_ext.core.schema import Readable, Section
from atent_ext.data.splits import Split

AS_MANY = "as many as it takes, in random order"
"""What the setting of such an evaluation has for the number of images."""
Points = Annotated[float, Field(gt=0, le=100)]


class Drawn(Section):
    """How far an evaluation went whose images are the first n of a random order of all, drawn from the seed.

    width: the points at which the interval of the worst case was narrow enough; tolerance: the points within which
    claims were confirmed; None where that was not asked. ended: why it stopped, as text.
    """

    width: Points | None = None
    tolerance: Points | None = None
    ended: Readable

    def note(self, n: int, total: int) -> str:
        """What was not scored, and why."""
        text = f"{n} of {total} images, drawn at random, were scored, and {total - n} were not: {self.ended}"
        return f"{text}; the intervals hold whenever one stops"


def order(total: int, seed: int) -> Tensor:
    """The random order of `total` images, (total,) int64."""
    return torch.randperm(total, generator=seeds.generator(seed))


def first(split: Split, n: int | None, seed: int) -> Split:
    """The first `n` images (None: all) of `split` in random order; those in files are read as they are needed.

    Raises BadInput as `Split.take`.
    """
    rows = order(len(split), seed)[: len(split.take(n))]
    return split.pick(rows)
