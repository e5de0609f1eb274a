"""Runs a program on the meta device, which computes shapes and no numbers, before anything else is computed.

It finds out whether the program fits in memory, whether its sizes grow with the number of images alone, whether it
writes to weights or images, and which of its results are logits.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from atent_ext.core.outputs import Logits, Unclear, logits_among
from atent_ext.storage.untrusted import line
from atent_ext.storage.untrusted_program import limits, operators
from atent_ext.storage.untrusted_program.arguments import Device, Ref, refs
from atent_ext.storage.untrusted_program.graph import Call, Graph
from atent_ext.storage.untrusted_program.refused import Refused

_COUNTS = (2, 3, 5, 8, 31, 64, 100, 250, 257, 1000)
"""Numbers of images that an open program is checked with: the usual sizes of batches, and some that divide none."""
_LARGEST = 2**40
"""The largest whole number among the sizes."""
_ELEMENTS = 2**28
"""Numbers of one tensor for five images, at most; more images may take as much more."""
_BYTES = 4 * 2**30
"""Bytes of all results together for one image, at most."""
_PARTS = 10_000
"""The longest side that may be split: each part may become a tensor."""
_CUTTING = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind")


@dataclass(frozen=True)
class Shapes:
    """What the shapes of a program say.

    logits: the name of the result that is read as logits. chosen: its position, as a name. classes: how many logits.
    ranks: of each tensor.
    """

    logits: str
    chosen: Logits
    classes: int
    ranks: Mapping[str, int]


def propagate(graph: Graph, held: Mapping[str, Tensor], output: str | None = None) -> Shapes:
    """Check the shapes of a graph whose held tensors are `held`, by name. output: position of the logits, if named.

    Raises Refused.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if graph.shape[0] is not None:
            run = _Run(graph, held, graph.shape[0])
            _check_bytes(run.bytes / graph.shape[0], 0)
            return _logits(graph, run, output)
        runs = [_Run(graph, held, count) for count in _COUNTS]
    for later in runs[2:]:
        _check_line(runs[0], runs[1], later)
    slope = runs[1].bytes - runs[0].bytes
    _check_bytes(slope, runs[0].bytes - _COUNTS[0] * slope)
    return _logits(graph, runs[0], output)


def _check_line(first: "_Run", second: "_Run", later: "_Run") -> None:
    """Refuse sizes and memory that do not grow linearly with the number of images: other numbers were not tried."""
    steps = later.count - first.count
    for name, low, middle, high in zip(first.labels, first.sizes, second.sizes, later.sizes, strict=True):
        if any(a + steps * (b - a) != c for a, b, c in zip(low, middle, high, strict=True)):
            message = f"has sizes that do not grow linearly with the number of images, in {name}"
            raise Refused(f"{message}; export it for one fixed number of images", "unsupported")
    if later.bytes > first.bytes + steps * (second.bytes - first.bytes):
        message = (
            f"takes memory that grows faster than the number of images ({later.bytes:,.0f} bytes for {later.count})"
        )
        raise Refused(f"{message}; export it for one fixed number of images", "too-large")


def _check_bytes(each: float, once: float) -> None:
    for what, size in (("an image", each), ("every call", once)):
        if size > _BYTES:
            raise Refused(f"makes tensors of {size:,.0f} bytes for {what}; at most {_BYTES:,} are allowed", "too-large")


class _Run:
    """One run for `count` images.

    sizes: the shape of each result, or the number itself. labels: the operators that made them. bytes: of all results.
    """

    def __init__(self, graph: Graph, held: Mapping[str, Tensor], count: int) -> None:
        self.count = count
        self.values: dict[str, Any] = {name: tensor.to("meta") for name, tensor in held.items()}
        self.values[graph.input] = torch.empty((count, *graph.shape[1:]), dtype=graph.dtype, device="meta")  # type: ignore[arg-type]
        self.foreign = set(self.values)
        """Names of tensors that may lie in the memory of weights or images."""
        self.memory = {_memory(value) for value in self.values.values()}
        self.sizes: list[tuple[int, ...]] = []
        self.labels: list[str] = []
        self.bytes = 0.0
        for number, call in enumerate(graph.calls):
            self._call(call, f"operator {number}, {operators.named(call.target)}")

    def _call(self, call: Call, where: str) -> None:
        self._check_writes(call, where)
        args, kwargs = self._resolved(list(call.args)), {name: self._resolved(v) for name, v in call.kwargs.items()}
        self._check_parts(call, [*args, *kwargs.values()], where)
        if isinstance(call.function, OpOverload):
            names = (argument.name for argument in call.function._schema.arguments)
            values = dict(zip(names, args, strict=False)) | kwargs
            limits.check(operators.named(call.target).split(".")[1], values, where)
        try:
            result = call.function(*args, **kwargs)
        except Exception as error:  # operators raise anything for arguments that they do not take
            raise Refused(f"cannot be run: {where}, fails ({line(error)[:200]})", "unsupported") from None
        results = list(result) if call.packed else [result]
        if len(results) < len(call.outputs):
            raise Refused(f"is broken: {where}, has {len(results)} results, not {len(call.outputs)}")
        for name, value in zip(call.outputs, results, strict=False):
            self._keep(call, name, value, where)

    def _keep(self, call: Call, name: str | None, value: Any, where: str) -> None:
        if isinstance(value, Tensor):
            sizes, amount = tuple(value.shape), value.numel()
            self.bytes += amount * value.element_size()
            if amount > _ELEMENTS * max(1, self.count / 5):
                raise Refused(f"makes a tensor of {amount:,} numbers: {where}", "too-large")
            if value.device.type != "meta":
                raise Refused(f"computes before it is checked: {where}", "unsafe")
        elif type(value) is int and abs(value) <= _LARGEST:
            sizes = (value,)
        elif value is None:
            return
        else:
            raise Refused(f"cannot be run: {where}, gives {type(value).__name__}", "unsupported")
        self.sizes.append(sizes)
        self.labels.append(where)
        if name is None:
            return
        self.values[name] = value
        if isinstance(value, Tensor) and (_memory(value) in self.memory or self._shares(call)):
            self.foreign.add(name)

    def _shares(self, call: Call) -> bool:
        """Whether the result may lie in foreign memory, also where a layout decides whether it is copied."""
        return isinstance(call.function, OpOverload) and self._foreign(call, operators.viewed(call.function))

    def _foreign(self, call: Call, names: list[str]) -> bool:
        values = [value for name, value in call.arguments.items() if name in names]
        return any(name in self.foreign for name in refs(values))

    def _check_writes(self, call: Call, where: str) -> None:
        if isinstance(call.function, OpOverload) and self._foreign(call, operators.written(call.function)):
            remedy = "export it in eval mode: model.eval()"
            raise Refused(f"writes to its weights or to the images: {where}; {remedy}", "unsafe")

    def _check_parts(self, call: Call, values: list[Any], where: str) -> None:
        if call.packed and operators.named(call.target).split(".")[1] in _CUTTING:
            longest = max((side for value in values if isinstance(value, Tensor) for side in value.shape), default=0)
            if longest > _PARTS:
                raise Refused(f"splits a side of {longest:,}: {where}", "too-large")

    def _resolved(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._resolved(part) for part in value]
        if isinstance(value, Device):
            return torch.device("meta")
        return self.values[value.name] if isinstance(value, Ref) else value


def _memory(tensor: Tensor) -> int:
    place: int = tensor.untyped_storage()._cdata
    return place


def _logits(graph: Graph, run: _Run, output: str | None) -> Shapes:
    """The result that is read as logits, by the rule for all networks; results are called by their positions."""
    try:
        results = {str(place): run.values[name] for place, name in enumerate(graph.outputs)}
        chosen = logits_among(results, run.count, output)
    except Unclear as error:
        raise Refused(str(error), error.code) from None
    shape = results[chosen.name].shape
    ranks = {name: value.dim() for name, value in run.values.items() if isinstance(value, Tensor)}
    return Shapes(graph.outputs[int(chosen.name)], chosen, 2 if chosen.one else shape[1], ranks)
