"""The adversaries that an evaluation finds: collected chunk by chunk, and written as one .npz file at the end.

x_adv: the first adversary of each image, or the image itself where none was found. y: the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split
from atent_ext.storage import files


class Found:
    """The first adversary of each image of a chunk, (N, ...); the image itself where no attack found one."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.clone()
        self._broken = torch.zeros(len(split), dtype=torch.bool)

    def __call__(self, rows: Tensor, adversaries: Tensor) -> None:
        """Keep the adversaries (k, ...) of those of the images `rows` (k,) that have none yet."""
        new = ~self._broken[rows]
        self.images[rows[new]] = adversaries[new].to(self.images)
        self._broken[rows[new]] = True


@dataclass(frozen=True)
class Kept:
    """The place of a chunk's adversaries: a file of the folder, or without one an entry of `memory`."""

    name: str
    folder: Path | None
    memory: dict[str, bytes]

    def has(self) -> bool:
        """Whether they are there."""
        return self.name in self.memory if self.folder is None else (self.folder / self.name).is_file()

    def write(self, found: Found) -> None:
        """Write them, atomically."""
        content = packed(x_adv=found.images)
        if self.folder is None:
            self.memory[self.name] = content
        else:
            files.write(self.folder / self.name, content)

    def read(self) -> Tensor:
        """The images of the chunk, (N, ...)."""
        content = self.memory[self.name] if self.folder is None else (self.folder / self.name).read_bytes()
        with np.load(BytesIO(content), allow_pickle=False) as archive:
            return torch.from_numpy(archive["x_adv"])


def check_place(path: Path | None, *, stops: bool) -> None:
    """Raise BadInput if the file `path` cannot be written, or if the evaluation `stops` early, in a drawn order."""
    if path is not None:
        files.replaceable(path)
    if path is not None and stops:
        message = "adversaries are of all images in their order, and --until stops early, in a drawn one; drop one"
        raise BadInput(message, code="conflict", field="adversaries")


def write(path: Path, chunks: Sequence[Kept], split: Split) -> None:
    """Write the adversaries of all chunks and the labels of their images as one .npz file, atomically."""
    files.write(path, packed(x_adv=torch.cat([chunk.read() for chunk in chunks]), y=split.labels))


def found_earlier(path: Path | None, report: Path) -> None:
    """Raise BadInput if the adversaries of a finished report are wanted and not there."""
    if path is not None and not path.is_file():
        message = f"{report} is finished, and {path} is not there: adversaries are kept while the images are scored; "
        raise BadInput(f"{message}give --overwrite to score anew", code="missing", field="adversaries")


def packed(**arrays: Tensor) -> bytes:
    """The bytes of an .npz file of these arrays."""
    buffer = BytesIO()
    plain: dict[str, Any] = {name: array.cpu().contiguous().numpy() for name, array in arrays.items()}
    np.savez_compressed(buffer, **plain)
    return buffer.getvalue()
