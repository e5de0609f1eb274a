"""The processes of a launcher that share an evaluation."""

import os
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

T = TypeVar("T")
_PATIENCE = timedelta(days=30)
"""Processes wait for each other only at the end, and one may have a chunk less to do than another."""


def processes() -> PartialState:
    """The processes that torchrun or `accelerate launch` started, this one alone without them."""
    launched = "LOCAL_RANK" in os.environ
    # Accelerate joins processes on the CPU only where it is told that they are to use it.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (launched and not torch.cuda.is_available())
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def told(team: PartialState, value: T) -> T:
    """What the main process gives as `value`, in every process."""
    box = [value]
    if team.num_processes > 1:
        broadcast_object_list(box)
    return box[0]
