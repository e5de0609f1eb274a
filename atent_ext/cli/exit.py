"""How a command ends: well, interrupted, or refused in one line with exit code 2."""

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
_ANEW = ("train", "quickstart")
_ALONE = ("certify", "export", "quickstart", "reproduce", "plot", "board", "submit", "submission")
"""Commands that write and share no work: of several processes each would do all of it, into the same files."""
_INTERRUPTED = 130
"""The exit code that shells give what Ctrl-C ended."""


class Commands(TyperGroup):
    """Commands that end as described above, say how to go on where Ctrl-C or SIGTERM ends them, and know which of them
    several processes share.

    `ctx.obj` holds the words of the command line.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command that was asked for and end the process, by SystemExit."""
        words = list(sys.argv[1:] if args is None else args)
        with _ended():
            return super().main(words, *rest, obj=words, **options)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was asked for; raises BadInput in the first of several processes that it has no work for."""
        command = super().resolve_command(ctx, args)
        if command[0] in _ALONE and processes.several():
            if not processes.is_main():  # the first one speaks, and its exit code is the launcher's
                raise typer.Exit
            message = f"{command[0]} works in one process, and {os.environ['WORLD_SIZE']} were started; "
            message += "start it without torchrun or accelerate launch"
            raise BadInput(message, code="unsupported", field="WORLD_SIZE")
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for; raises Interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            what = str(ctx.invoked_subcommand)
            how = _GO_ON.get(what, "nothing of it was kept")
            if "--overwrite" in ctx.obj and what in _ANEW:  # again, it would begin anew
                how += ", without --overwrite"
            raise Interrupted(f"{what} was interrupted; {how}") from None


def run(app: typer.Typer) -> None:
    """Run an app of other commands and end the process in the same way."""
    with _ended():
        app()


@contextmanager
def _ended() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        yield
    except (AtentError, OSError) as error:
        if not isinstance(error, Interrupted) or processes.is_main():  # the launcher ends all
            print(f"atent: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_INTERRUPTED if isinstance(error, Interrupted) else 2)
    except SystemExit as end:  # how typer ends a command, one that went well too
        if not end.code:
            _leave_the_others()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave_the_others() -> None:
    """End the process group: a thread of it that outlives the interpreter may abort the process."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
