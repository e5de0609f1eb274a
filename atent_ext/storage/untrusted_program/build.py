"""The network of a checked program: a `torch.fx.GraphModule` with names of our own.

Convolutions and batch norms become modules, so that memory formats and the folding of BatchNorm find them; everything
else stays a call of the operator, which runs the same kernels as the network that was exported.
"""

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from atent_ext.core.outputs import Adapted
from atent_ext.storage.untrusted_program.arguments import Device, Ref
from atent_ext.storage.untrusted_program.graph import Call, Graph
from atent_ext.storage.untrusted_program.shapes import Shapes

_CONV = {"torch.ops.aten.conv2d.default", "torch.ops.aten.conv2d.padding", "torch.ops.aten.convolution.default"}
_NORM = {"torch.ops.aten.batch_norm.default", "torch.ops.aten._native_batch_norm_legit_no_training.default"}


class FixedBatch(nn.Module):
    """A program for exactly `size` images, on any number: in slices, the last of which is filled up with zeros."""

    def __init__(self, program: nn.Module, size: int) -> None:
        super().__init__()
        self.program, self.size = program, size

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, ...) to logits (N, classes)."""
        return torch.cat([self._logits(part) for part in torch.split(x, self.size)])

    def _logits(self, part: Tensor) -> Tensor:
        missing = self.size - len(part)
        full = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part
        logits: Tensor = self.program(full)
        return logits[: len(part)]


def network(graph: Graph, shapes: Shapes, held: Mapping[str, Tensor]) -> nn.Module:
    """The network in eval mode: images (N, ...) to logits (N, classes). held: parameters and buffers by name."""
    module: nn.Module = _Builder(graph, shapes, held).module()
    own = None if graph.dtype is torch.float32 else graph.dtype
    if own is not None or shapes.chosen.one:
        module = Adapted(module, own, None, shapes.chosen.one)
    size = graph.shape[0]
    return (module if size is None else FixedBatch(module, size)).eval()


class _Builder:
    def __init__(self, graph: Graph, shapes: Shapes, held: Mapping[str, Tensor]) -> None:
        self.graph, self.shapes, self.held = graph, shapes, held
        self.root, self.fx = nn.Module(), fx.Graph()
        self.uses = Counter(name for call in graph.calls for name in call.refs) + Counter(graph.outputs)
        self.places: dict[int, str] = {}
        images = self.fx.placeholder("x")
        self.device: fx.Node | None = None
        self.images = images
        self.nodes: dict[str, Any] = {graph.input: images}

    def module(self) -> fx.GraphModule:
        for call in self.graph.calls:
            self._add(call)
        self.fx.output(self.nodes[self.shapes.logits])
        return fx.GraphModule(self.root, self.fx, "Program")

    def _add(self, call: Call) -> None:
        layer = self._layer(call)
        if layer is not None:
            name = f"{type(layer).__name__.lower()}{len(self.root._modules)}"
            self.root.add_module(name, layer)
            self.nodes[str(call.outputs[0])] = self.fx.call_module(name, (self._node(call.arguments["input"].name),))
            return
        args = tuple(self._argument(value) for value in call.args)
        kwargs = {name: self._argument(value) for name, value in call.kwargs.items()}
        node = self.fx.call_function(call.function, args, kwargs)
        for place, made in enumerate(call.outputs):
            if made is not None and (self.uses[made] or not call.packed):
                self.nodes[made] = self._call(operator.getitem, node, place) if call.packed else node

    def _call(self, function: Any, *args: Any) -> fx.Node:
        return self.fx.call_function(function, args)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._argument(part) for part in value]
        if isinstance(value, Device):
            if self.device is None:
                with self.fx.inserting_after(self.images):
                    self.device = self._call(getattr, self.images, "device")
            return self.device
        return self._node(value.name) if isinstance(value, Ref) else value

    def _node(self, name: str) -> fx.Node:
        if name not in self.nodes:
            self.nodes[name] = self.fx.get_attr(self._place(self.held[name]))
        node: fx.Node = self.nodes[name]
        return node

    def _place(self, tensor: Tensor) -> str:
        """The attribute of a held tensor; a tensor that several names share has one."""
        if id(tensor) not in self.places:
            kind = "weight" if isinstance(tensor, nn.Parameter) else "buffer"
            place = self.places[id(tensor)] = f"{kind}{len(self.places)}"
            if isinstance(tensor, nn.Parameter):
                self.root.register_parameter(place, tensor)
            else:
                self.root.register_buffer(place, tensor)
        return self.places[id(tensor)]

    # ---- layers

    def _layer(self, call: Call) -> nn.Module | None:
        """The call as a module; None for anything but a plain convolution or batch norm of images."""
        if call.target not in _CONV | _NORM:
            return None
        values = call.arguments
        images = values.get("input")
        if not isinstance(images, Ref) or images.name in self.held or self.shapes.ranks[images.name] != 4:
            return None
        return self._convolution(values) if call.target in _CONV else self._norm(call, values)

    def _tensor(self, value: Any) -> Tensor | None:
        return self.held.get(value.name) if isinstance(value, Ref) else None

    def _convolution(self, values: dict[str, Any]) -> nn.Module | None:
        weight, bias = self._tensor(values.get("weight")), self._tensor(values.get("bias"))
        if weight is None or weight.dim() != 4 or values.get("transposed"):
            return None
        if values.get("bias") is not None and bias is None:
            return None
        options = {name: values.get(name, default) for name, default in _DEFAULTS.items()}
        if not all(isinstance(part, int) for part in _parts(options)) or not _parameters(weight, bias):
            return None
        padding = options.pop("padding")
        layer = nn.Conv2d(
            weight.shape[1] * options["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),  # type: ignore[arg-type]
            padding=padding if isinstance(padding, str) else _pair(padding),
            stride=_pair(options["stride"]),
            dilation=_pair(options["dilation"]),
            groups=options["groups"],
            bias=bias is not None,
            device="meta",
        )
        layer.weight, layer.bias = weight, bias
        return layer

    def _norm(self, call: Call, values: dict[str, Any]) -> nn.Module | None:
        weight, bias, mean, var = (self._tensor(values.get(name)) for name in _STATISTICS)
        if values.get("training") or mean is None or var is None or (weight is None) != (bias is None):
            return None
        if any(name and self.uses[name] for name in call.outputs[1:]) or not _parameters(weight, bias):
            return None
        if any(isinstance(tensor, nn.Parameter) for tensor in (mean, var)) or not isinstance(values.get("eps"), float):
            return None
        layer = nn.BatchNorm2d(len(mean), values["eps"], affine=weight is not None, device="meta")
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
        layer.running_mean, layer.running_var, layer.num_batches_tracked = mean, var, None
        return layer


_DEFAULTS: dict[str, Any] = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_STATISTICS = ("weight", "bias", "running_mean", "running_var")


def _parts(options: Mapping[str, Any]) -> list[Any]:
    """All numbers among the options."""
    values = [value for value in options.values() if not isinstance(value, str)]
    return [part for value in values for part in (value if isinstance(value, list) else [value])]


def _pair(value: int | list[int]) -> tuple[int, int]:
    pair = [value] if isinstance(value, int) else value
    return (pair[0], pair[-1])


def _parameters(*tensors: Tensor | None) -> bool:
    return all(tensor is None or isinstance(tensor, nn.Parameter) for tensor in tensors)
