"""A test set in chunks, each scored with its own seed.

Chunk k of size s holds the images k s to (k + 1) s - 1 of the test set and is scored with `seed + k`. Therefore no flag
depends on the other chunks, on the number of processes, or on interruptions, and each chunk can be repeated alone.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import torch

from atent_ext.attacks.spec import Note, Outcome
from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split
from atent_ext.evaluation.run import total, worst_case

FIRST = 10
"""Size of the first growing chunk: a claim of 60 % for a network that is always wrong is refuted after 6 images."""


@dataclass(frozen=True)
class Chunk:
    """Chunk `number` of a test set: the images [start, stop), scored with `seed`."""

    number: int
    start: int
    stop: int
    seed: int

    def of(self, split: Split) -> Split:
        """The images and labels of the chunk."""
        return split[self.start : self.stop]


def cut(count: int, size: int, seed: int = 0, growing: bool = False) -> list[Chunk]:
    """`count` images in chunks of `size`; the last may be smaller. Chunk k has the seed `seed + k`.

    growing: the first chunks are smaller, from `FIRST` images on each as large as all before it, so that little is
    scored where little decides. Raises BadInput for a size below 1 and for an invalid seed.
    """
    validate.steps("chunk", size)
    validate.seed(seed)
    starts = list(_growing(count, size)) if growing else list(range(0, count, size))
    return [
        Chunk(number, start, stop, seeds.derived(int(seed) + number))
        for number, (start, stop) in enumerate(pairwise([*starts, count]))
    ]


def _growing(count: int, size: int) -> Iterator[int]:
    start = 0
    while start < count:
        yield start
        start += min(size, max(start, FIRST))


# ---- the outcomes of all chunks


def merge(parts: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """Merge the outcomes of consecutive chunks; append the worst case if the protocol has several attacks.

    Flags are concatenated; seconds and AutoAttack's counts are added. Notes that differ only in their numbers become
    one note with the number of chunks. Raises BadInput if the chunks were scored by different attacks or settings.
    """
    merged = [_joined(same) for same in zip(*parts, strict=True)]
    return [*merged, worst_case(merged)] if len(merged) > 1 else merged


def _joined(parts: Sequence[Outcome]) -> Outcome:
    first = parts[0]
    for part in parts:
        if (part.attack, part.settings) != (first.attack, first.settings):
            message = f"chunks were scored by {first.attack} and by {part.attack} of other settings; start anew"
            raise BadInput(message, code="conflict")
    return Outcome(
        first.kind,
        first.attack,
        first.settings,
        torch.cat([part.flags for part in parts]),
        sum(part.seconds for part in parts),
        _united([part.notes for part in parts]),
        {name: sum(part.robust_after[name] for part in parts) for name in first.robust_after},
        {name: [value for part in parts for value in part.per_image[name]] for name in first.per_image},
        total([part.passes for part in parts]),
        sum(part.proven for part in parts),
    )


def _united(notes: Sequence[Sequence[Note]]) -> tuple[Note, ...]:
    common = [note for note in dict.fromkeys(chain(*notes)) if all(note in some for some in notes)]
    alike: dict[tuple[str, str], list[Note]] = {}
    for some in notes:
        mine = {_without_numbers(note): note for note in reversed(some) if note not in common}
        for key, note in mine.items():
            alike.setdefault(key, []).append(note)
    others = (_of_several(same, len(notes)) for same in alike.values())
    return (*common, *others)


def _of_several(alike: Sequence[Note], chunks: int) -> Note:
    first = alike[0]
    return Note(kind=first.kind, text=f"in {len(alike)} of {chunks} chunks; first: {first.text}")


def _without_numbers(note: Note) -> tuple[str, str]:
    return note.kind, re.sub(r"[\d.]+", "", note.text)
