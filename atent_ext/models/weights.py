"""Save and load the weights of a network: one reader for all commands, of files of other trainers, too."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import StatedNormalisation
from atent_ext.models import stated_normalisation, which_weights
from atent_ext.storage import checkpoints, files, state_dicts
from atent_ext.storage.state_dicts import Wanted


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's state dict as a safetensors file. Raises what `serialised` raises."""
    files.write(path, serialised(model))


def serialised(model: nn.Module) -> bytes:
    """The model's state dict as safetensors. A tensor that the model has under several names is written under each.

    Raises BadInput for a model whose state dict holds something else (`get_extra_state`) or numbers that safetensors
    lacks, such as complex128.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    state_dicts.tensors_only(state, model)
    tensors: dict[str, Tensor] = {}
    memory = set[int]()
    for name, tensor in state.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if place in memory else own  # safetensors refuses tensors that share memory
        memory.add(place)
    try:
        return safetensors.torch.save(tensors)
    except (KeyError, RuntimeError, ValueError, SafetensorError) as error:
        message = f"the weights of {type(model).__name__} cannot be written as safetensors ({_line(error)}); "
        message += "use dense tensors of float, whole or complex64 numbers"
        raise BadInput(message, code="unsupported", field="model") from None


def check_saved(model: nn.Module) -> None:
    """Raise BadInput unless the model's weights can be saved and loaded again. Call this before training."""
    serialised(model)
    try:
        model.load_state_dict(model.state_dict())
    except Exception as error:  # set_extra_state is the network's own code
        message = f"{type(model).__name__} does not load its own state dict ({_line(error)}); correct set_extra_state"
        raise BadInput(message, code="unsupported", field="model") from None


def load_weights(
    model: nn.Module, path: Path, *, key: str | None = None, normalisation: StatedNormalisation = None
) -> tuple[str | None, tuple[str, ...]]:
    """Load a weights file into `model`, as `fill` does; returns the name of the weights in it, and the notes."""
    if not path.is_file():
        raise BadInput(f"there is no weights file {path}", code="missing", field="path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}", code="unreadable", field="path") from None
    notes: list[str] = []
    key = fill(model, content, path, notes, key=key, normalisation=normalisation)
    return key, tuple(notes)


def fill(
    model: nn.Module,
    content: bytes,
    path: Path,
    notes: list[str],
    *,
    key: str | None = None,
    normalisation: StatedNormalisation = None,
) -> str | None:
    """Load the bytes of a weights file into `model`, converted to its precision; each guess is appended to `notes`.

    The file: safetensors or torch.save's, of tensors alone. The weights may be nested, prefixed, wrapped, averaged, or
    a list of parameters in order. key: the name of the weights in the file, such as "ema.shadow", where it holds
    several networks; without it the averaged ones are taken. normalisation: what is stated of the images that the
    weights were trained on; here it is compared with the file, and not applied. Returns the name of the weights where
    there was a choice, else None.

    Raises BadInput, and leaves the model as it is: for a file of another kind; for weights that do not fit or are not
    finite; where weights differ and nothing says which are meant (`field` is "weights_key"); where the file speaks of a
    normalisation that is not stated ("normalisation").
    """
    found = checkpoints.contents(files.parse_weights(content, path), path)
    wanted = Wanted.of(model)
    chosen = which_weights.choose(found, wanted, key, path, notes)
    stated_normalisation.check(found, chosen.fit, normalisation, path, notes)
    counters = [name for name in wanted.state if state_dicts.is_counter(name) and name not in chosen.tensors]
    if counters:
        notes.append(f"{len(counters)} BatchNorm counters (num_batches_tracked) are not in the file and start at 0")
    tensors = {**chosen.tensors, **{name: torch.zeros_like(wanted.state[name]) for name in counters}}
    converted = {name: tensors[name].to(value.dtype) for name, value in wanted.state.items()}
    dtypes = Counter((tensors[name].dtype, value.dtype) for name, value in wanted.state.items())
    for (old, new), count in dtypes.items():
        if old != new:
            notes.append(f"{count} tensors converted from {_dtype(old)} to {_dtype(new)}")
    broken = [name for name, value in converted.items() if not bool(value.isfinite().all())]
    if broken:
        message = f"{path} has NaN or infinite weights in {checkpoints.listed(broken)}; use those of a healthy epoch"
        raise BadInput(message, code="bad-value", field="path")
    model.load_state_dict(converted)
    return chosen.key


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
