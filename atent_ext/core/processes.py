"""Distributed runs: whether a launcher started several processes, the rank of this one, and shared values.

Only `several` decides whether a run is distributed. Importing this module imports neither torch nor accelerate, which
keeps the command line fast.
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
"""Environment variables that torchrun and `accelerate launch` set for each process."""
_TIMEOUT = timedelta(days=30)
"""Processes synchronise only at the end of a run, where some wait for others that have more chunks."""


def several() -> bool:
    """Whether this is one of two or more processes of torchrun or `accelerate launch`.

    WORLD_SIZE must be above 1 and all variables of a launcher must be set: a stray RANK in the shell is ignored.
    """
    values = {name: os.environ.get(name, "") for name in _LAUNCHERS}
    return all(values.values()) and all(values[name].isdecimal() for name in _NUMBERS) and int(values["WORLD_SIZE"]) > 1


def is_main() -> bool:
    """Whether this is the main process (rank 0), or the only one."""
    return not several() or int(os.environ["RANK"]) == 0


@contextmanager
def joining() -> Iterator[bool]:
    """A context in which Accelerate connects to the other processes if `several()` is true, and to none otherwise.

    Yields the value for Accelerate's argument `cpu`. Without a launcher, stray values of RANK, LOCAL_RANK and
    WORLD_SIZE are removed for the block, since Accelerate would wait for processes that do not exist.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    launched = several()
    hidden = {} if launched else {name: os.environ.pop(name) for name in _NUMBERS if name in os.environ}
    # Accelerate connects processes on the CPU only if `cpu` is True.
    on_cpu = launched and not (torch.cuda.is_available() or torch.xpu.is_available())
    try:
        yield on_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
    finally:
        os.environ.update(hidden)


def state() -> "PartialState":
    """Accelerate's state of the launcher's processes, connected on the first call; without one, of this process."""
    from accelerate import PartialState

    with joining() as cpu:
        return PartialState(cpu=cpu, timeout=_TIMEOUT)


def from_main(state: "PartialState", value: T) -> T:
    """The main process's `value` in every process; those of the others are ignored. It has to be picklable."""
    from accelerate.utils import broadcast_object_list

    box = [value]
    if state.num_processes > 1:
        broadcast_object_list(box)
    return box[0]
