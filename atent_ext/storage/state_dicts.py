"""Load the usual layouts of state dicts: inside checkpoints, with wrappers' prefixes, in other precisions.

Each function appends to `notes` what it did. No tensor is computed with before its shape is known to be the network's.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.core.errors import BadInput

_AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema")
_RAW = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_PREFIXES = ("module.", "model.", "_orig_mod.", "network.", "net.", "1.")
"""Of DataParallel and AveragedModel, Lightning and others, torch.compile, and a network behind a normalisation."""
_LISTED = 12
"""How many names an error or a note lists."""
_DEPTH = 4
"""How many mappings may be nested around a state dict."""


def unwrap(checkpoint: Mapping[Any, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The state dict of a checkpoint: the checkpoint itself, or the mapping under one of the usual keys.

    Averaged weights (EMA) are preferred to raw ones, because authors who average report the averaged weights.
    Raises BadInput if there are no tensors with names.
    """
    for _ in range(_DEPTH):
        keys = [key for key in (*_AVERAGED, *_RAW) if _holds_weights(checkpoint.get(key))]
        if not keys:
            break
        notes.append(f"the weights under {keys[0]!r} are read" + _left_aside(keys, checkpoint))
        checkpoint = checkpoint[keys[0]]
    tensors = {name: value for name, value in checkpoint.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        message = f"{path} holds no tensors by name, but {_names(checkpoint)}; a plain state dict is needed"
        raise BadInput(message, code="unreadable", field="path")
    left = [name for name in checkpoint if name not in tensors]
    if left:
        notes.append(f"left aside, no tensors: {_names(left)}")
    return tensors


def _holds_weights(value: Any) -> bool:
    """Whether it is a mapping that contains a tensor, or such a mapping (timm's ema contains a module)."""
    inner = list(value.values()) if isinstance(value, Mapping) else []
    return any(isinstance(part, Tensor) for part in inner) or any(
        isinstance(part, Tensor) for mapping in inner if isinstance(mapping, Mapping) for part in mapping.values()
    )


def _left_aside(keys: list[str], checkpoint: Mapping[Any, Any]) -> str:
    others = [key for key in checkpoint if key != keys[0]]
    averaged = keys[0] in _AVERAGED and len(keys) > 1
    why = "; they are averaged, which is what is reported" if averaged else ""
    return f"{why}; left aside: {_names(others)}" if others else why


def rename(state: Mapping[str, Tensor], expected: Collection[str], notes: list[str]) -> dict[str, Tensor]:
    """The tensors under the names of the network: wrappers' prefixes and the counter of AveragedModel are removed."""
    named = {name: tensor for name, tensor in state.items() if name in expected or name != "n_averaged"}
    if len(named) < len(state):
        notes.append("left aside: 'n_averaged', the counter of torch's AveragedModel")
    while prefix := next((prefix for prefix in _PREFIXES if _is_wrapper(prefix, named, expected)), None):
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        notes.append(f"the prefix {prefix!r} is taken off all names")
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in named.items()}
    if plain.keys() != named.keys() and len(plain) == len(named):
        notes.append("'_orig_mod.' of torch.compile is taken out of the names")
        return plain
    return named


def _is_wrapper(prefix: str, names: Collection[str], expected: Collection[str]) -> bool:
    every = bool(names) and all(name.startswith(prefix) for name in names)
    return every and not any(name.startswith(prefix) for name in expected)


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, notes: list[str]) -> None:
    """Load the tensors into the network, converted to its precision.

    Raises BadInput if tensors are missing, unknown, of another shape or not finite; the message lists the first twelve.
    The network is then unchanged.
    """
    expected = network.state_dict()
    counters = [name for name in expected if name.endswith(".num_batches_tracked") and name not in state]
    if counters:  # torch before 0.4.1 had none; eval mode never reads them
        notes.append(f"{len(counters)} BatchNorm counters (num_batches_tracked) are not in the file and start at 0")
    tensors = {**{name: torch.zeros_like(expected[name]) for name in counters}, **state}
    differences = _differences(tensors, expected)
    if differences:
        more = f" and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
        listed = ", ".join(differences[:_LISTED]) + more
        remedy = "correct the architecture in card.yaml, or the file"
        message = f"{path} does not fit {type(network).__name__}: {listed}; {remedy}"
        raise BadInput(message, code="bad-shape", field="path")
    converted = {name: tensors[name].to(value.dtype) for name, value in expected.items()}
    dtypes = Counter((tensors[name].dtype, value.dtype) for name, value in expected.items())
    for (old, new), count in dtypes.items():
        if old != new:
            notes.append(f"{count} tensors converted from {_dtype(old)} to {_dtype(new)}")
    broken = [name for name, value in converted.items() if not bool(value.isfinite().all())]
    if broken:
        message = f"{path} has NaN or infinite weights in {_names(broken)}; send the weights of a healthy epoch"
        raise BadInput(message, code="bad-value", field="path")
    network.load_state_dict(converted)


def _differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing {name}" for name in expected if name not in tensors]
    unknown = [f"unknown {name[:100]!a}" for name in tensors if name not in expected]
    common = [(name, tensors[name], value) for name, value in expected.items() if name in tensors]
    shapes = [
        f"wrong shape {name} {tuple(tensor.shape)} for {tuple(value.shape)}"
        for name, tensor, value in common
        if tensor.shape != value.shape
    ]
    dtypes = [f"wrong type {name} {_dtype(tensor.dtype)}" for name, tensor, _ in common if tensor.dtype.is_complex]
    return [*missing, *unknown, *shapes, *dtypes]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(names: Collection[Any]) -> str:
    """The first names of a collection on one line; names that are no texts are listed by their type."""
    shown = [ascii(name[:100]) if isinstance(name, str) else type(name).__name__ for name in list(names)[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(shown) or "nothing") + more
