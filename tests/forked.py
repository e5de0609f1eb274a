"""Two processes that find each other as torchrun's do, forked from one, which imports once what both need.

As a program it takes the arguments of torchrun, parsed by torchrun itself, and runs their module or file.
"""

import os
import runpy
import socket
import sys
from collections.abc import Callable
from multiprocessing import get_context

import torch
import torch._dynamo  # which every optimizer imports
from torch.distributed.run import parse_args

import atent_ext.cli.app
import atent_ext.training.loop  # noqa: F401 -- for the processes
from atent_ext.cli import options
from atent_ext.core import processes


def forked(program: Callable[..., object], *arguments: object) -> list[int | None]:
    """Run a program in two processes: the exit code of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    started = [get_context("fork").Process(target=_run, args=(rank, program, arguments)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def _run(rank: int, program: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    options.console.quiet = not processes.is_main()  # as at the import, which was before
    program(*arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # a thread of it that outlives the interpreter may abort the process


if __name__ == "__main__":
    given = parse_args(sys.argv[1:])
    assert given.nproc_per_node == "2"
    sys.argv = ["", *given.training_script_args]
    run, how = (runpy.run_module, {"alter_sys": True}) if given.module else (runpy.run_path, {})
    codes = forked(lambda: run(given.training_script, run_name="__main__", **how))
    sys.exit(codes != [0, 0])
