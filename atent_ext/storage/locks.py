"""One process at a time in a folder or file, so that no two overwrite each other's work."""

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
    """Be the only process that works on `target`, a folder that exists or a file that may not, for the block.

    The system frees what a process held when that ends, however it ends; a hidden empty file stays. `remedy` ends the
    error. Raises BadInput, which names the process that was first, if there is one, and NotWritten where the system
    lets nothing be written.
    """
    hidden = target / ".lock" if target.is_dir() else target.with_name(f".{target.name}.lock")
    owner = hidden.with_name(f"{hidden.name}-owner")
    lock = FileLock(hidden, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInput(f"{target} is in use by {_told(owner)}; {remedy}") from None
    except OSError as error:
        said = f"{hidden} cannot be written ({error.strerror or error})"
        raise NotWritten(f"{said}; make room there, or name another --out") from error
    try:
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        with suppress(OSError):  # on a full disk: whoever finds the lock held does without the name
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # the folder may be read-only by now
            owner.unlink()
        lock.release()


def _told(owner: Path) -> str:
    try:
        return owner.read_text(encoding="utf-8") or "another process"
    except OSError:  # it has just begun, or just ended
        return "another process"
