"""What decides a network's outputs besides the tensors of its state dict, as a short hash."""

import hashlib
import types
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, str, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


class Structure:
    """The classes of all modules, their settings, loose tensors, functions and hooks; not the code of the classes.

    Two networks with the same state dict can differ in them: in an activation, say, or in an attribute of their own.
    Objects of other kinds count by their class alone.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.before = network, _lines(network)

    def digest(self) -> str:
        """Eight hex digits of what has not changed since: a counter, which a forward pass changes, is no setting."""
        after = _lines(self.network)
        same = [f"{key} = {value}" for key, value in self.before.items() if after.get(key) == value]
        return hashlib.sha256("\n".join(same).encode()).hexdigest()[:8]


def _lines(network: nn.Module) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, module in network.named_modules():
        lines[f"{name} class"] = f"{_name(type(module))}({module.extra_repr()})"
        for key, value in vars(module).items():
            if key not in _OF_TORCH:
                lines[f"{name}.{key}"] = _text(value)
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        lines[f"{name} hooks"] = ", ".join(map(_text, hooks))
    return lines


def _text(value: object) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)} {_bytes(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_text(key)}: {_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, Callable) and not isinstance(value, nn.Module):  # type: ignore[arg-type]
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        return f"{_name(value)} {hashlib.sha256(_code(code)).hexdigest() if code else ''}"
    return _name(type(value))


def _code(code: types.CodeType) -> bytes:
    return code.co_code + b"".join(map(_constant, code.co_consts)) + repr(code.co_names).encode()


def _constant(value: object) -> bytes:
    if isinstance(value, types.CodeType):
        return _code(value)
    ordered = sorted(map(repr, value)) if isinstance(value, frozenset) else value  # a set has another order each time
    return repr(ordered).encode()


def _bytes(value: Tensor) -> str:
    plain = value.detach()
    if plain.is_meta or plain.layout is not torch.strided or plain.is_quantized:
        return ""
    real = torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain
    return hashlib.sha256(real.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _name(thing: object) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"
