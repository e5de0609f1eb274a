"""How a command ends: well, interrupted, or refused in one line with exit code 2."""

import os
import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

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
    """Commands that say how to go on where Ctrl-C or SIGTERM ends them, and which of them several processes share."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was asked for; raises BadInput in the first of several processes that it has no work for."""
        found = super().resolve_command(ctx, args)
        if found[0] in _ALONE and _several():
            if os.environ["RANK"] != "0":  # the first one speaks, and its exit code is the launcher's
                raise typer.Exit
            raise BadInput(
                f"{found[0]} works in one process, and {os.environ['WORLD_SIZE']} were started; start it without "
                "torchrun or accelerate launch",
                code="unsupported",
            )
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for; raises Interrupted."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            what = str(ctx.invoked_subcommand)
            told = _GO_ON.get(what, "nothing of it was kept")
            if "--overwrite" in sys.argv and what in _ANEW:  # again, it would begin anew
                told += ", without --overwrite"
            raise Interrupted(f"{what} was interrupted; {told}") from None


def _several() -> bool:
    """Whether a launcher started this process and others."""
    launched = all(os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"))
    return launched and os.environ["WORLD_SIZE"] != "1"


def run(app: typer.Typer) -> None:
    """Run the command line and end the process."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does
    try:
        app()
    except (AtentError, OSError) as error:
        if not (isinstance(error, Interrupted) and _several() and os.environ["RANK"] != "0"):  # the launcher ends all
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
