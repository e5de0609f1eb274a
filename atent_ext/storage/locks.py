"""Locks: one process at a time in a folder or file, so that no two overwrite each other's results."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from atent_ext.core.errors import BadInput, NotWritten


@contextmanager
def held(target: Path, remedy: str) -> Iterator[None]:
    """Hold the lock of `target` for the block: an existing folder, or a file that may not exist yet.

    The system releases the lock when the process ends, also after a kill; a hidden empty file stays. `remedy` is the
    end of the error message. Raises BadInput if another process holds the lock, and names that process if it is known.
    Raises NotWritten if the system refuses to write the lock file.
    """
    hidden = target / ".lock" if target.is_dir() else target.with_name(f".{target.name}.lock")
    owner = hidden.with_name(f"{hidden.name}-owner")
    lock = FileLock(hidden, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        message = f"{target} is in use by {_owner_name(owner)}; {remedy}"
        raise BadInput(message, code="in-use", field="target") from None
    except OSError as error:
        message = f"{hidden} cannot be written ({error.strerror or error}); make room there, or name another --out"
        raise NotWritten(message, field="target") from error
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with suppress(OSError):  # on a full disk the lock is held without the name of its owner
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # the folder may be read-only by now
            owner.unlink()
        lock.release()


def _owner_name(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:  # the other process has just started, or has just ended
        return "another process"
