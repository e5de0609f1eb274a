"""Save and load the weights of a network."""

from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atent_ext.core.errors import BadInput
from atent_ext.storage import files


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state dict as a safetensors file."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    files.write(path, safetensors.torch.save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights into `model` from a .safetensors file, or from a .pt or .pth file that holds a plain state dict.

    Raises BadInput if the file is missing, holds more than tensors, or does not fit the model.
    """
    state = _read_weights(path)
    expected = model.state_dict()
    wrong = sorted(state.keys() ^ expected.keys())
    wrong += [name for name in state if name in expected and state[name].shape != expected[name].shape]
    if wrong:
        listed = ", ".join(wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        message = f"{path} does not fit {type(model).__name__}: missing, unknown or of another shape: {listed}"
        raise BadInput(message, code="bad-shape", field="path")
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}", code="missing", field="path")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            message = f"{path} is not a whole safetensors file: {error}"
            raise BadInput(message, code="unreadable", field="path") from None
    state = files.mapping(path, "a plain state dict, as torch.save(model.state_dict(), ...) writes it, is needed")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        message = f"{path} holds more than a plain state dict (name -> tensor)"
        raise BadInput(message, code="unreadable", field="path")
    return state
