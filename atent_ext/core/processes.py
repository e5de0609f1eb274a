"""Whether this is one of several processes that a launcher started, which one, and what they tell each other.

`several` alone decides. Importing this module imports neither torch nor accelerate: the command line asks it first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_LAUNCHERS = (*_NUMBERS, "MASTER_ADDR", "MASTER_PORT")
"""What torchrun and `accelerate launch` set for each of their processes."""
_PATIENCE = timedelta(days=30)
"""Processes wait for each other only at the end, and one may have a chunk less to do than another."""


def several() -> bool:
    """Whether this is one of two or more processes of torchrun or `accelerate launch`.

    WORLD_SIZE must be above 1 and all else that a launcher sets be there: a RANK that a shell has left makes none.
    """
    given = {name: os.environ.get(name, "") for name in _LAUNCHERS}
    return all(given.values()) and all(given[name].isdecimal() for name in _NUMBERS) and int(given["WORLD_SIZE"]) > 1


def is_main() -> bool:
    """Whether this is the first of the processes, or the only one."""
    return not several() or int(os.environ["RANK"]) == 0


@contextmanager
def joining() -> Iterator[bool]:
    """For the block in which Accelerate looks for other processes: it finds those that `several` knows of, or none.

    Yields its argument `cpu`. A RANK, LOCAL_RANK or WORLD_SIZE of no launcher is hidden for the block: Accelerate would
    wait for the processes that it promises.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    launched = several()
    hidden = {} if launched else {name: os.environ.pop(name) for name in _NUMBERS if name in os.environ}
    # Accelerate joins processes on the CPU only where it is told that they are to use it.
    on_cpu = launched and not (torch.cuda.is_available() or torch.xpu.is_available())
    try:
        yield on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    finally:
        os.environ.update(hidden)


def state() -> "PartialState":
    """The processes of the launcher as Accelerate knows them, joined where they were not; without one, this alone."""
    from accelerate import PartialState

    with joining() as cpu:
        return PartialState(cpu=cpu, timeout=_PATIENCE)


def from_main(team: "PartialState", value: T) -> T:
    """What the main process gives as `value`, in every process; what the others give does not count."""
    from accelerate.utils import broadcast_object_list

    box = [value]
    if team.num_processes > 1:
        broadcast_object_list(box)
    return box[0]
