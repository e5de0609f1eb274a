"""Programs from others: .pt2 files of `torch.export.save`, read without running anything of the file.

`torch.export.load` runs pickles, `sympy.sympify` and guard code of a file. This reader takes the JSON graph and the raw
tensors, refuses whatever is not on a list, and builds a network of operators of `aten`.

archive     the zip, its JSON and its tensors
graph       the graph: inputs, calls of operators, results
arguments   the arguments of calls, and text that is never evaluated
operators   which operators may be called
limits      arguments that kernels do not check
shapes      shapes on the meta device: memory, writes, logits
build       the network
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from atent_ext.core import outputs
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.storage.untrusted import line
from atent_ext.storage.untrusted_program import archive, build, graph, shapes
from atent_ext.storage.untrusted_program.archive import Archive
from atent_ext.storage.untrusted_program.graph import Graph
from atent_ext.storage.untrusted_program.refused import Refused

MOST = 4 * 2**30
"""Bytes of a program's file, at most."""


@dataclass(frozen=True)
class Program:
    """A program that was read.

    network: maps images (N, *shape) to logits (N, classes); on the CPU, in eval mode. batch: the number of images that
    it was exported for, None for any. random: operators that draw random numbers or mix the images of a batch.
    operators: how many it calls. notes: what is to be said about it.
    """

    network: nn.Module
    shape: tuple[int, ...]
    classes: int
    batch: int | None
    random: tuple[str, ...]
    operators: int
    notes: tuple[str, ...]


def read(content: bytes, path: Path, output: str | None = None) -> Program:
    """The program in the bytes of a .pt2 file; `path` names the file in errors. output: as in `outputs.logits_among`.

    Results are called "0", "1", ...
    Raises BadInput for a file that is no program, holds a pickle, guards or other code, calls an operator that is not
    allowed, writes to its weights, needs too much memory, or does not map images (N, ...) to logits (N, classes).
    """
    try:
        with seeded(0):  # operators that draw random numbers do so on the meta device, too
            return _program(archive.read(content), output)
    except Refused as error:
        raise BadInput(f"{path} {error.text}", code=error.code, field="program") from None
    except Exception as error:  # JSON of another structure fails in many ways
        message = f"{path} is a broken program ({line(error)}); export it again"
        raise BadInput(message, code="unreadable", field="program") from None


def _program(held: Archive, output: str | None) -> Program:
    parsed = graph.parse(held)
    tensors = _tensors(parsed, held)
    found = shapes.propagate(parsed, tensors, output)
    batch = parsed.shape[0]
    return Program(
        build.network(parsed, found, tensors),
        tuple(size for size in parsed.shape[1:] if size is not None),
        found.classes,
        batch,
        parsed.random,
        len(parsed.calls),
        tuple(note for note in _notes(parsed, found) if note),
    )


def _tensors(parsed: Graph, held: Archive) -> dict[str, Tensor]:
    """The tensors of the graph as parameters and buffers. Names of one tensor of the file share it."""
    made: dict[tuple[int, bool], Tensor] = {}
    tensors = {}
    for name, (place, source) in parsed.held.items():
        tensor = getattr(held, place)[source]
        parameter = source in held.parameters and place == "weights" and tensor.is_floating_point()
        key = (id(tensor), parameter)
        if key not in made:
            if parameter and not bool(tensor.isfinite().all()):
                raise Refused(f"holds infinite weights in {source}; send the weights of a healthy epoch", "bad-value")
            made[key] = nn.Parameter(tensor) if parameter else tensor
        tensors[name] = made[key]
    return tensors


def _notes(parsed: Graph, found: shapes.Shapes) -> list[str]:
    batch, kind = parsed.shape[0], parsed.dtype
    fixed = f"the program is for {batch} images at once: others are scored in slices, filled up with zeros"
    return [
        fixed if batch is not None else "",
        *outputs.notes_on("program", len(parsed.outputs), found.chosen, kind),
        f"the program draws at random or follows the batch: {_counted(parsed.random)}" if parsed.random else "",
    ]


def _counted(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} ({count} times)" if count > 1 else name for name, count in Counter(names).items())
