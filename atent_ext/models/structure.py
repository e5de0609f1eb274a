"""What decides a network's outputs besides the tensors of its state dict, as a short hash."""

import hashlib
from collections.abc import Iterator

from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))


def structure(network: nn.Module) -> str:
    """Eight hex digits of the classes of all modules, their settings, loose tensors and hooks; not of their code.

    Two networks with the same state dict can differ in them: in an activation, say, or in an attribute of their own.
    """
    lines = (f"{name}\n{line}" for name, module in network.named_modules() for line in _lines(module))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def _lines(module: nn.Module) -> Iterator[str]:
    yield f"{type(module).__module__}.{type(module).__qualname__}({module.extra_repr()})"
    for key, value in sorted(vars(module).items()):
        if isinstance(value, Tensor):
            yield f"{key}: {hashlib.sha256(value.detach().cpu().float().numpy().tobytes()).hexdigest()}"
        elif key != "training" and not key.startswith("_") and _plain(value):
            yield f"{key} = {value!r}"
        elif key == "forward":
            yield f"forward = {_name(value)}"
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        yield ", ".join(map(_name, hooks.values()))


def _plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple | list) and all(map(_plain, value)))


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))
