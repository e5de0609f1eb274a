"""Files on disk: weights as safetensors, training states as tensors only. Nothing here runs code from a file."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from atent_ext.core.errors import BadInput, NotWritten
from atent_ext.storage import signals, untrusted_weights


def write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: to a temporary file in the same folder, synced to disk, then renamed.

    Missing parent folders are created. Ctrl-C and SIGTERM are delayed until the file is written. Raises NotWritten,
    which names the size, if the system refuses; an existing file is then unchanged. Raises BadInput if `path` is a
    folder or a device: renaming would replace /dev/null by a file.
    """
    data = content.encode() if isinstance(content, str) else content
    with signals.held_back():
        try:
            replaceable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
        except OSError as error:
            message = f"{path} cannot be written ({error.strerror or error}); it needs {len(data):,} bytes"
            raise NotWritten(f"{message}; an earlier file is unchanged", field="path") from error


def replaceable(path: Path) -> None:
    """Raise BadInput if `path` is a folder or a device. Call this before long work whose result `write` will save."""
    if path.exists() and not path.is_file():
        message = f"{path} is a {'folder' if path.is_dir() else 'device'}; name a file to write"
        raise BadInput(message, code="exists", field="path")


def folder(path: Path) -> Path:
    """Create a folder and its parents, if missing, and return it. Raises NotWritten if the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{path} cannot be created ({error.strerror or error}); name another --out"
        raise NotWritten(message, field="path") from error
    return path


def _replace(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def mapping(path: Path, remedy: str) -> dict[Any, Any]:
    """The mapping that torch.save wrote to `path`, read without running code from it.

    `remedy`: the end of the error message. Raises BadInput if the file cannot be read as tensors, numbers, texts and
    containers of them, or holds no mapping.
    """
    state = _torch_load(path, path, remedy)
    if not isinstance(state, Mapping):
        raise BadInput(f"{path} holds a {type(state).__name__}; {remedy}", code="unreadable", field="path")
    return dict(state)


def _torch_load(source: Path | BytesIO, path: Path, remedy: str) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch fails in many ways on other files: KeyError, IndexError, struct.error, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{path} cannot be read as tensors ({reason.partition('. ')[0][:200]}); {remedy}"
        raise BadInput(message, code="unreadable", field="path") from None


def tensors(path: Path) -> dict[Any, Any]:
    """The mapping of a checkpoint that torch.save wrote: tensors, numbers, texts and containers of them.

    Raises BadInput if the file is missing or holds anything else, for example a function. No code of it is run.
    """
    if not path.is_file():
        raise BadInput(f"there is no checkpoint {path}", code="missing", field="path")
    return mapping(path, "a checkpoint of tensors, numbers and texts only is needed")


def parse_weights(content: bytes, path: Path) -> Mapping[Any, Any] | Sequence[Any]:
    """Parse the bytes of a weights file, whose content says of which kind it is: safetensors, or torch.save's.

    `path` names the file in errors. Raises BadInput if the bytes are no complete file of these kinds, claim a larger
    size than they have, or name anything but tensors.
    """
    untrusted_weights.check(content, path)
    if not untrusted_weights.is_safetensors(content, path):
        remedy = "a plain state dict of tensors is needed"
        state = _torch_load(BytesIO(content), path, remedy)
        if not isinstance(state, Mapping | list | tuple):
            raise BadInput(f"{path} holds a {type(state).__name__}; {remedy}", code="unreadable", field="path")
        return state
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # SafetensorError, and other errors for a dtype that torch does not have
        reason = " ".join(f"{error}".split())[:200]
        message = f"{path} is not a whole safetensors file ({reason}); download it again"
        raise BadInput(message, code="unreadable", field="path") from None


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state of tensors, numbers, texts and containers of them."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state that `save_state` wrote. Raises BadInput for any other file."""
    return mapping(path, "a training state is needed; --overwrite starts the run anew")
