"""How commands end: exit codes, one-line error messages, and hints after an interruption."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from atent_ext.core import processes
from atent_ext.core.errors import AtentError, BadInput, Interrupted

_GO_ON = {
    "train": "go on with the same command and --resume",
    **dict.fromkeys(("eval", "certify", "quickstart", "reproduce", "verify"), "the same command goes on from here"),
}
_OVERWRITING = ("train", "quickstart")
_SINGLE_PROCESS = ("certify", "export", "quickstart", "reproduce", "plot", "board", "submit", "submission")
"""Commands that write files and do not share work: under torchrun every process would write the same files."""
_INTERRUPTED = 130
"""The shells' exit code for a command that Ctrl-C ended."""


class Group(TyperGroup):
    """A group whose help lists its commands with their first sentences, which are folded and never cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands (called by click)."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, command.get_short_help_str(1000)) for name, command in commands.items() if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Commands(Group):
    """The group of all commands. `ctx.obj` is the list of the command line's arguments.

    An AtentError or OSError is printed as one line, with exit code 2. Ctrl-C and SIGTERM print how to resume, with exit
    code 130. Commands that cannot share work refuse to run in several processes.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command and end the process, by SystemExit."""
        arguments = list(sys.argv[1:] if args is None else args)
        with _exit_codes():
            return super().main(arguments, *rest, obj=arguments, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command; in several processes, raises BadInput in the main one if the command cannot share work."""
        command = super().resolve_command(ctx, args)
        if command[0] in _SINGLE_PROCESS and processes.several():
            if not processes.is_main():  # the main process reports; the launcher takes its exit code
                raise typer.Exit
            message = f"{command[0]} works in one process, and {os.environ['WORLD_SIZE']} were started; "
            message += "start it without torchrun or accelerate launch"
            raise BadInput(message, code="unsupported", field="WORLD_SIZE")
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises Interrupted after Ctrl-C or SIGTERM."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            what = str(ctx.invoked_subcommand)
            how = _GO_ON.get(what, "nothing was saved")
            if "--overwrite" in ctx.obj and what in _OVERWRITING:  # the option would delete the progress
                how += ", without --overwrite"
            raise Interrupted(f"{what} was interrupted; {how}") from None


def run(app: typer.Typer) -> None:
    """Run an app of other commands and end the process in the same way."""
    with _exit_codes():
        app()


@contextmanager
def _exit_codes() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        yield
    except (AtentError, OSError) as error:
        if not isinstance(error, Interrupted) or processes.is_main():  # the launcher interrupts every process
            print(f"atent: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_INTERRUPTED if isinstance(error, Interrupted) else 2)
    except SystemExit as end:  # typer also ends successful commands by it
        if not end.code:
            _destroy_process_group()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _destroy_process_group() -> None:
    """End the process group of torch.distributed; its threads could abort the process at exit otherwise."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
