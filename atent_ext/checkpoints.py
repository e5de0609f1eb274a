"""Files on disk: weights as safetensors, training state as tensors only. Nothing here ever runs code from a file."""

import os
import pickle
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atent_ext.errors import BadInput


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: under a temporary name beside it, synced, then renamed."""
    data = content.encode() if isinstance(content, str) else content
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


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state dict as safetensors."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write(path, safetensors.torch.save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` with the weights of a .safetensors, or of a .pt/.pth that holds a plain state dict.

    Raises BadInput for a file that is not there, holds more than tensors, or does not fit the model.
    """
    state = _read_weights(path)
    expected = model.state_dict()
    wrong = sorted(state.keys() ^ expected.keys())
    wrong += [name for name in state.keys() & expected.keys() if state[name].shape != expected[name].shape]
    if wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise BadInput(f"{path} does not fit {type(model).__name__}: missing, unknown or of another shape: {listed}")
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise BadInput(f"{path} is not a file of tensors: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(f"{path} holds no plain state dict (name -> tensor)")
    return dict(state)


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write a training state of tensors, numbers, texts and containers of them."""
    buffer = BytesIO()
    torch.save(dict(state), buffer)
    write(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; raises BadInput for anything else."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError) as error:
        raise BadInput(f"{path} is not a training state: {' '.join(str(error).split())[:200]}") from None
