"""Files on disk: weights as safetensors, training state as tensors only. Nothing here ever runs code from a file."""

import os
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from atent_ext.core.errors import BadInput, NotWritten
from atent_ext.storage import signals, untrusted_weights


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: under a temporary name beside it, synced, then renamed.

    Its folder is made where there is none. Ctrl-C and SIGTERM wait until it is written. Raises NotWritten, which says
    how much room it needs, where the system refuses; what was there before is then as it was. Raises BadInput where a
    folder or a device lies there: a rename would put a file in place of /dev/null.
    """
    data = content.encode() if isinstance(content, str) else content
    with signals.held_back():
        try:
            replaceable(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            _replaced(path, data)
        except OSError as error:
            said = f"{path} cannot be written ({error.strerror or error}); it needs {len(data):,} bytes"
            raise NotWritten(f"{said}; what lay there is unchanged") from error


def replaceable(path: Path) -> None:
    """Raise BadInput where a folder or a device lies: to be asked before hours of work whose result `write` refuses."""
    if path.exists() and not path.is_file():
        raise BadInput(f"{path} is a {'folder' if path.is_dir() else 'device'}; name a file to write")


def folder(path: Path) -> Path:
    """Make a folder where there is none. Raises NotWritten where the system refuses."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(f"{path} cannot be made ({error.strerror or error}); name another --out") from error
    return path


def _replaced(path: Path, data: bytes) -> None:
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


def mapping(path: Path, remedy: str, content: bytes | None = None) -> dict[Any, Any]:
    """The mapping that torch.save wrote to `path` (whose bytes may be given), without running code from it."""
    try:
        found = torch.load(path if content is None else BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what is not a torch file fails in many ways: KeyError, IndexError, struct.error, ...
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadInput(f"{path} cannot be read as tensors ({reason.partition('. ')[0][:200]}); {remedy}") from None
    if not isinstance(found, Mapping):
        raise BadInput(f"{path} holds a {type(found).__name__}; {remedy}")
    return dict(found)


def tensors(path: Path) -> dict[Any, Any]:
    """The mapping that torch.save wrote to `path`: tensors, numbers, texts and containers of them.

    Raises BadInput for a file that is not there or holds anything else, a function say; no code of it is run.
    """
    if not path.is_file():
        raise BadInput(f"there is no checkpoint {path}")
    return mapping(path, "a checkpoint of tensors, numbers and texts only is needed")


def parse_weights(content: bytes, path: Path) -> dict[Any, Any]:
    """What the bytes of a stranger's .safetensors, .pt or .pth file hold; `path` names the file in errors.

    Raises BadInput for what is no whole file of that kind, claims more than it has, or names anything but tensors.
    """
    untrusted_weights.check(content, path)
    if path.suffix != ".safetensors":
        return mapping(path, "a plain state dict of tensors is needed", content)
    try:
        return dict(safetensors.torch.load(content))
    except Exception as error:  # SafetensorError, and for a dtype that torch lacks whatever comes
        reason = " ".join(f"{error}".split())[:200]
        raise BadInput(f"{path} is not a whole safetensors file ({reason}); download it again") from None


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state of tensors, numbers, texts and containers of them."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raises BadInput for anything else."""
    return mapping(path, "a training state is needed; --overwrite starts the run anew")
