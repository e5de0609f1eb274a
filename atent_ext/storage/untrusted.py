"""Untrusted folders and YAML: only plain files and plain values, of bounded size and depth, are read."""

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from atent_ext.core.errors import BadInput, Code

_NESTED = 20
"""Largest number of levels of a YAML file; cards and recipes have four."""
# O_NONBLOCK: opening a named pipe must not block. Windows has neither flag.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


# ---- files


def files(folder: Path, *, most: int = 100, depth: int = 2) -> list[Path]:
    """List all files of a folder and its subfolders, sorted.

    Raises BadInput if the folder does not exist, contains a symbolic link or a device, has more than `most` entries,
    or has more than `depth` levels.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}", code="missing", field="folder")
    paths: list[Path] = []
    pending, left = [(folder, 1)], most
    while pending:
        current, level = pending.pop()
        if level > depth:
            message = f"{str(current)!r} lies deeper than {depth} levels in {folder}; keep it flat"
            raise BadInput(message, code="too-large", field="folder")
        with os.scandir(current) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    message = f"{folder} has more than {most} files; leave in it what the submission needs"
                    raise BadInput(message, code="too-large", field="folder")
                if _is_folder(entry, folder):
                    pending.append((Path(entry.path), level + 1))
                else:
                    paths.append(Path(entry.path))
    return sorted(paths)


def _is_folder(entry: os.DirEntry[str], folder: Path) -> bool:
    """Whether an entry is a folder. Raises BadInput for what is neither a folder nor a plain file."""
    if not entry.name.isprintable():
        message = f"{entry.name!a} in {folder} has a name that cannot be printed; rename it"
        raise BadInput(message, code="unsafe", field="folder")
    if entry.is_symlink():
        message = f"{entry.name!r} in {folder} is a symbolic link; put the file itself there"
        raise BadInput(message, code="unsafe", field="folder")
    is_folder = entry.is_dir(follow_symlinks=False)
    if not is_folder and not entry.is_file(follow_symlinks=False):
        message = f"{entry.name!r} in {folder} is neither a file nor a folder; remove it"
        raise BadInput(message, code="unsafe", field="folder")
    return is_folder


def read(path: Path, most: int) -> bytes:
    """Read a plain file of at most `most` bytes; it is opened once, so that the checked bytes are those returned.

    Raises BadInput if the file is missing, a symbolic link or a device, is too large, or changes in the meantime.
    """
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        if path.is_symlink():
            message = f"{path} is a symbolic link; put the file itself there"
            raise BadInput(message, code="unsafe", field="path") from None
        code: Code = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        message = f"{path} cannot be read: {error.strerror}; put the file there"
        raise BadInput(message, code=code, field="path") from None
    try:
        size = _size(handle, path, most)
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(size + 1)
    finally:
        os.close(handle)
    if len(content) != size:
        raise BadInput(f"{path} changed while it was read; try again", code="unreadable", field="path")
    return content


def start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a plain file, fewer if it is shorter; none of a link, a device or a file of others."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError:
        return b""
    with os.fdopen(handle, "rb") as file:
        return file.read(count) if stat.S_ISREG(os.fstat(handle).st_mode) else b""


def _size(handle: int, path: Path, most: int) -> int:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{path} is not a plain file; put the file itself there", code="unsafe", field="path")
    if status.st_size > most:
        message = f"{path} has {status.st_size:,} bytes; at most {most:,} are read"
        raise BadInput(message, code="too-large", field="path")
    return status.st_size


# ---- YAML


def plain_yaml(content: bytes, source: Path) -> Any:
    """Parse the bytes of a YAML file into mappings, lists, texts and numbers; `source` names the file in errors.

    Raises BadInput for tags (they name objects to build), for aliases (ten lines of them can expand to a billion
    entries), for more than 20 levels, and for bytes that are not YAML.
    """
    depth = 0
    try:
        text = content.decode("utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # one at a time: a forbidden event ends the parsing
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _check_event(event, depth, source)
        return yaml.safe_load(text)
    except BadInput:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or an impossible date
        raise BadInput(f"{source} is not YAML: {line(error)}", code="unreadable", field="source") from None


def _check_event(event: Any, depth: int, source: Path) -> None:
    if depth > _NESTED:
        message = f"{source} is nested deeper than {_NESTED} levels; write it flat"
        raise BadInput(message, code="too-large", field="source")
    if isinstance(event, yaml.AliasEvent):
        message = f"{source} has the YAML alias {str(event.anchor)[:50]!r}; write the value out"
        raise BadInput(message, code="unsafe", field="source")
    tag = getattr(event, "tag", None)
    if tag is not None:
        message = f"{source} has the YAML tag {tag[:100]!r}; only plain values are read, remove the tag"
        raise BadInput(message, code="unsafe", field="source")


def line(error: Exception) -> str:
    """An exception as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
