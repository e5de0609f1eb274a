"""A stranger's folder and YAML, looked at before they are read: plain files and values, bounded in size and depth."""

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from atent_ext.core.errors import BadInput

_NESTED = 20
"""Levels of a YAML file: a card has four, a recipe four."""


# ---- files


def files(folder: Path, *, most: int = 100, depth: int = 2) -> list[Path]:
    """All files of a folder and of the folders in it, sorted.

    Raises BadInput for a folder that is not there, for a symbolic link or a device in it, and for more than `most`
    entries or `depth` levels.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}")
    found: list[Path] = []
    open_folders, left = [(folder, 1)], most
    while open_folders:
        here, level = open_folders.pop()
        if level > depth:
            raise BadInput(f"{str(here)!r} lies deeper than {depth} levels in {folder}; keep it flat")
        with os.scandir(here) as entries:
            for entry in entries:
                left -= 1
                if left < 0:
                    raise BadInput(f"{folder} has more than {most} files; leave in it what the submission needs")
                if _kind(entry, folder) == "folder":
                    open_folders.append((Path(entry.path), level + 1))
                else:
                    found.append(Path(entry.path))
    return sorted(found)


def _kind(entry: os.DirEntry[str], folder: Path) -> str:
    if not entry.name.isprintable():
        raise BadInput(f"{entry.name!a} in {folder} has a name that cannot be printed; rename it")
    if entry.is_symlink():
        raise BadInput(f"{entry.name!r} in {folder} is a symbolic link; put the file itself there")
    if entry.is_dir(follow_symlinks=False):
        return "folder"
    if not entry.is_file(follow_symlinks=False):
        raise BadInput(f"{entry.name!r} in {folder} is neither a file nor a folder; remove it")
    return "file"


def read(path: Path, most: int) -> bytes:
    """The bytes of a plain file, all of them from one opening, so that what was checked is what is used.

    Raises BadInput for a file that is not there, a symbolic link, a device, and more than `most` bytes.
    """
    # O_NONBLOCK: a named pipe must not keep us waiting. Windows has neither flag.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        handle = os.open(path, flags)
    except OSError as error:
        if path.is_symlink():
            raise BadInput(f"{path} is a symbolic link; put the file itself there") from None
        raise BadInput(f"{path} cannot be read: {error.strerror}; put the file there") from None
    try:
        size = _size(handle, path, most)
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(size + 1)
    finally:
        os.close(handle)
    if len(content) != size:
        raise BadInput(f"{path} changed while it was read; try again")
    return content


def _size(handle: int, path: Path, most: int) -> int:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(f"{path} is not a plain file; put the file itself there")
    if found.st_size > most:
        raise BadInput(f"{path} has {found.st_size:,} bytes; at most {most:,} are read")
    return found.st_size


# ---- YAML


def plain_yaml(content: bytes, source: Path) -> Any:
    """What a YAML file holds: mappings, lists, texts, numbers.

    Raises BadInput for tags (which would name objects), for aliases (ten lines of them make a billion entries), for
    more than 20 levels, and for what is not YAML.
    """
    depth = 0
    try:
        text = content.decode("utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # one by one: the first bad one ends it
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _check_event(event, depth, source)
        return yaml.safe_load(text)
    except BadInput:
        raise
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, a date that does not exist
        raise BadInput(f"{source} is not YAML: {line(error)}") from None


def _check_event(event: Any, depth: int, source: Path) -> None:
    if depth > _NESTED:
        raise BadInput(f"{source} is nested deeper than {_NESTED} levels; write it flat")
    if isinstance(event, yaml.AliasEvent):
        raise BadInput(f"{source} has the YAML alias {str(event.anchor)[:50]!r}; write the value out")
    tag = getattr(event, "tag", None)
    if tag is not None:
        raise BadInput(f"{source} has the YAML tag {tag[:100]!r}; only plain values are read, remove the tag")


def line(error: Exception) -> str:
    """An exception on one line, of 300 characters at most."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
