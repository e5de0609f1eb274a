"""State dicts as people save them: inside checkpoints, under wrappers' prefixes, in other precisions, into a network.

Each step says in `notes` what it did. Nothing is computed from a tensor before its shape is known to be the network's.
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
"""Of DataParallel and AveragedModel, Lightning and many more, torch.compile, and what stands behind a normalisation."""
_LISTED = 12
_DEPTH = 4


def unwrap(found: Mapping[Any, Any], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The state dict in what a checkpoint holds: itself, or what lies under one of the usual names.

    Where averaged and raw weights are both there, the averaged ones are taken: who averages reports those.
    Raises BadInput where there are no tensors by name.
    """
    for _ in range(_DEPTH):
        inside = [key for key in (*_AVERAGED, *_RAW) if _holds_weights(found.get(key))]
        if not inside:
            break
        notes.append(f"the weights under {inside[0]!r} are read" + _also(inside, found))
        found = found[inside[0]]
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise BadInput(f"{path} holds no tensors by name, but {_names(found)}; a plain state dict is needed")
    left = [name for name in found if name not in tensors]
    if left:
        notes.append(f"left aside, no tensors: {_names(left)}")
    return tensors


def _holds_weights(value: Any) -> bool:
    """Whether it is a mapping with a tensor in it, or one that holds such a mapping (timm's ema has a module)."""
    inner = list(value.values()) if isinstance(value, Mapping) else []
    return any(isinstance(one, Tensor) for one in inner) or any(
        isinstance(one, Tensor) for part in inner if isinstance(part, Mapping) for one in part.values()
    )


def _also(inside: list[str], found: Mapping[Any, Any]) -> str:
    others = [key for key in found if key != inside[0]]
    averaged = inside[0] in _AVERAGED and len(inside) > 1
    why = "; they are averaged, which is what is reported" if averaged else ""
    return f"{why}; left aside: {_names(others)}" if others else why


def rename(found: Mapping[str, Tensor], expected: Collection[str], notes: list[str]) -> dict[str, Tensor]:
    """The tensors under the names that the network has: prefixes of wrappers are taken off, counters left out."""
    named = {name: tensor for name, tensor in found.items() if name in expected or name != "n_averaged"}
    if len(named) < len(found):
        notes.append("left aside: 'n_averaged', the counter of torch's AveragedModel")
    while prefix := next((one for one in _PREFIXES if _is_wrapper(one, named, expected)), None):
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


def fill(network: nn.Module, found: Mapping[str, Tensor], path: Path, notes: list[str]) -> None:
    """Load the tensors into the network, in its precision.

    Raises BadInput that lists what is missing, unknown or of another shape, a dozen of them; or the tensors that are
    not finite. The network is then as it was.
    """
    expected = network.state_dict()
    counters = [name for name in expected if name.endswith(".num_batches_tracked") and name not in found]
    if counters:  # torch before 0.4.1 had none; eval mode never reads them
        notes.append(f"{len(counters)} BatchNorm counters (num_batches_tracked) are not in the file and start at 0")
    given = {**{name: torch.zeros_like(expected[name]) for name in counters}, **found}
    differences = _differences(given, expected)
    if differences:
        more = f" and {len(differences) - _LISTED} more" if len(differences) > _LISTED else ""
        raise BadInput(
            f"{path} does not fit {type(network).__name__}: {', '.join(differences[:_LISTED])}{more}; "
            "correct the architecture in card.yaml, or the file"
        )
    converted = {name: given[name].to(value.dtype) for name, value in expected.items()}
    kinds = Counter((given[name].dtype, value.dtype) for name, value in expected.items())
    for (old, now), count in kinds.items():
        if old != now:
            notes.append(f"{count} tensors converted from {_dtype(old)} to {_dtype(now)}")
    broken = [name for name, value in converted.items() if not bool(value.isfinite().all())]
    if broken:
        raise BadInput(f"{path} has NaN or infinite weights in {_names(broken)}; send the weights of a healthy epoch")
    network.load_state_dict(converted)


def _differences(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing {name}" for name in expected if name not in given]
    unknown = [f"unknown {name[:100]!a}" for name in given if name not in expected]
    both = [(name, given[name], value) for name, value in expected.items() if name in given]
    shapes = [
        f"wrong shape {name} {tuple(one.shape)} for {tuple(value.shape)}"
        for name, one, value in both
        if one.shape != value.shape
    ]
    kinds = [f"wrong type {name} {_dtype(one.dtype)}" for name, one, value in both if one.dtype.is_complex]
    return [*missing, *unknown, *shapes, *kinds]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(names: Collection[Any]) -> str:
    """The first of some names, which may be anything, on one line."""
    shown = [ascii(name[:100]) if isinstance(name, str) else type(name).__name__ for name in list(names)[:_LISTED]]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(shown) or "nothing") + more
