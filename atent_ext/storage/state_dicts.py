"""Find a network among groups of tensors: under prefixes, with wrappers inside the names, or as parameters in order.

Everything goes by names, shapes and kinds of numbers. No tensor is computed with.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.core.errors import BadInput
from atent_ext.storage.checkpoints import Contents, Group, Keys, is_averaged, scale_kind

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that DataParallel and AveragedModel, torch.compile and FSDP add, around a network or a part of it."""
_COUNTERS = {"n_averaged", "num_updates", "decay", "step", "initted", "n_classes"}
"""Single numbers that AveragedModel, libraries of moving averages and MAIR store beside the weights."""
_PARTS, _LENGTH = 64, 1000
"""The most parts and letters of a name that is looked at."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """The names that a network needs.

    network: its class. state: its state dict. parameters: the names of its parameters, in order. shared: name -> the
    first name of the same tensor, for tensors that the network has under several names.
    """

    network: str
    state: Mapping[str, Tensor]
    parameters: tuple[str, ...]
    shared: Mapping[str, str]

    @classmethod
    def of(cls, network: nn.Module) -> "Wanted":
        """The names of `network`. Raises BadInput if its state dict holds more than tensors."""
        state = network.state_dict()
        tensors_only(state, network)
        first: dict[Any, str] = {}
        same = {name: first.setdefault(_place(tensor) or name, name) for name, tensor in state.items()}
        shared = {name: other for name, other in same.items() if name != other}
        return cls(type(network).__name__, state, tuple(name for name, _ in network.named_parameters()), shared)


def tensors_only(state: Mapping[str, Any], network: nn.Module) -> None:
    """Raise BadInput unless all values are tensors: `get_extra_state` of a module may return anything."""
    for name, value in state.items():
        if not isinstance(value, Tensor):
            message = f"{type(network).__name__} has {name!r} of type {type(value).__name__} in its state dict"
            message += " (get_extra_state); weights files hold tensors only: return a tensor, or leave it out"
            raise BadInput(message, code="unsupported", field="model")


def _place(tensor: Tensor) -> Any:
    """Where the numbers of a tensor lie; None for a tensor without numbers or memory."""
    if tensor.device.type == "meta" or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


@dataclass(frozen=True, eq=False)
class Fit:
    """Tensors of a group under the names of a network.

    prefix: what stands before the network's names. names: the network's name -> the name in the group. missing, wrong:
    the network's names that the group lacks, or has in another shape or kind of number.
    """

    group: Group
    prefix: Keys
    names: Mapping[str, str]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name of these weights in the file: the keys and the prefix with dots, "." for the file itself."""
        return ".".join((*self.group.path, *self.prefix)) or "."

    @property
    def averaged(self) -> bool:
        """Whether the names say that the weights are averaged over the training."""
        return is_averaged(self.prefix, self.group.averaged)

    @property
    def right(self) -> int:
        """How many tensors have a name of the network and its shape."""
        return len(self.names) - len(self.wrong)

    def has_all(self, names: Sequence[str]) -> bool:
        """Whether these names of the network are there, and nothing has another shape."""
        return not self.wrong and not set(self.missing) & set(names)


def fits(found: Contents, wanted: Wanted) -> list[Fit]:
    """Every place in a checkpoint where tensors have names of the network, the best ones first.

    A place may lack tensors or have others. Names are compared without the parts that wrappers add.
    """
    return sorted((fit for group in found.groups for fit in _fits(group, wanted)), key=lambda fit: -fit.right)


def _fits(group: Group, wanted: Wanted) -> Iterator[Fit]:
    if group.ordered:
        for order in {wanted.parameters, tuple(wanted.state)}:
            if len(order) == len(group.tensors):
                yield _fit(group, (), dict(zip(order, group.tensors, strict=True)), wanted)
        return
    places: dict[Keys, dict[str, str]] = {}
    twice = set[tuple[Keys, str]]()
    wrappers, known, undotted = _known(wanted)
    for stored in group.tensors:
        parts = tuple(stored.split("."))
        if len(parts) > _PARTS or len(stored) > _LENGTH:
            continue
        for start in range(len(parts)):
            if parts[start] in wrappers:  # it belongs to the prefix
                continue
            tail = ".".join(part for part in parts[start:] if part not in wrappers)
            name = known.get(tail) or (undotted.get(tail) if start == len(parts) - 1 else None)
            if name is not None and places.setdefault(parts[:start], {}).setdefault(name, stored) != stored:
                twice.add((parts[:start], name))
    for prefix, names in places.items():
        yield _fit(group, prefix, {name: names[name] for name in names if (prefix, name) not in twice}, wanted)


def _known(wanted: Wanted) -> tuple[set[str], dict[str, str], dict[str, str]]:
    """The parts of names to skip, the network's names without them, and its names without dots (as LitEma has them)."""
    wrappers, known = _WRAPPERS, {".".join(_unwrapped(name)): name for name in wanted.state}
    if len(known) < len(wanted.state):  # wrappers tell names of this network apart
        wrappers, known = set(), {name: name for name in wanted.state}
    flat = [text.replace(".", "") for text in known]
    undotted = {text: name for text, name in zip(flat, known.values(), strict=True) if flat.count(text) == 1}
    return wrappers, known, undotted


def _unwrapped(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in _WRAPPERS]


def _fit(group: Group, prefix: Keys, names: Mapping[str, str], wanted: Wanted) -> Fit:
    present = {wanted.shared.get(name, name) for name in names}
    missing = tuple(name for name in wanted.state if wanted.shared.get(name, name) not in present)
    wrong = tuple(name for name, stored in names.items() if not _suits(group.tensors[stored], wanted.state[name]))
    return Fit(group, prefix, names, missing, wrong)


def _suits(stored: Tensor, expected: Tensor) -> bool:
    """Whether a tensor has the expected shape, and numbers that the expected kind of number can hold."""
    kind, needed = _kind(stored.dtype), _kind(expected.dtype)
    return stored.shape == expected.shape and (kind == needed or (kind, needed) == ("real", "complex"))


def _kind(dtype: torch.dtype) -> str:
    return "complex" if dtype.is_complex else "real" if dtype.is_floating_point else "whole"


def unknown(fit: Fit, used: Set[str]) -> list[str]:
    """Tensors that seem to belong to the network of a fit, and do not: below its prefix, or in the same Sequential.

    used: the names in the group that belong to some network. Means and deviations of images are not listed.
    """
    below = "".join(f"{part}." for part in fit.prefix)
    numbered = bool(fit.prefix) and fit.prefix[-1].isdigit()
    above = "".join(f"{part}." for part in fit.prefix[:-1])
    return [
        stored
        for stored in fit.group.tensors
        if stored not in used
        and not (scale_kind(stored) or stored.rpartition(".")[2] in _COUNTERS)
        and (
            stored.startswith(below)
            or (numbered and stored.startswith(above) and stored[len(above) :].partition(".")[0].isdigit())
        )
    ]


def inner_wrappers(fit: Fit) -> list[str]:
    """The parts that wrappers added inside the names: DataParallel or torch.compile around a part of the network."""
    parts = {
        part
        for name, stored in fit.names.items()
        if not fit.group.ordered
        for part in stored.split(".")[len(fit.prefix) :]
        if part in _WRAPPERS and part not in name.split(".")
    }
    return sorted(parts)


def is_counter(name: str) -> bool:
    """Whether it is BatchNorm's number of batches: torch before 0.4.1 had none, and eval mode never reads it."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def only_wrappers(prefix: Keys) -> bool:
    """Whether a prefix is of DataParallel, torch.compile and the like alone, which change nothing."""
    return all(part in _WRAPPERS for part in prefix)
