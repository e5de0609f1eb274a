"""The graph of a program, from JSON that may hold anything to calls of known operators in an order that can be run.

Names of the file are only compared with each other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

from atent_ext.storage.untrusted_program import operators
from atent_ext.storage.untrusted_program.archive import Archive, checked_name, dtype
from atent_ext.storage.untrusted_program.arguments import (
    Device,
    Ref,
    argument,
    check_expressions,
    check_guards,
    is_symbol,
    refs,
    tensor_name,
)
from atent_ext.storage.untrusted_program.refused import Refused, field, only, short, whole

_MAJOR = 8
"""The major version of the schema that is read."""
_NODES = 20_000
_KEYWORD = 2
_SAVE = "export it with one batch of images as its input: torch.export.export(model.eval(), (x,))"


@dataclass(frozen=True)
class Call:
    """A call of an operator. target: its name. outputs: names of the results, None for those that nothing uses.

    packed: whether `function` returns a list or tuple of the outputs instead of one.
    """

    target: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[str | None, ...]
    packed: bool = False

    @property
    def refs(self) -> Iterable[str]:
        """The names of all arguments that are results."""
        return refs([*self.args, *self.kwargs.values()])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments by the names that the operator has for them."""
        known = self.function._schema.arguments if isinstance(self.function, OpOverload) else ()
        return dict(zip((argument.name for argument in known), self.args, strict=False)) | self.kwargs


@dataclass(frozen=True)
class Graph:
    """A checked graph. held: name -> (which of weights, constants; the name there). inputs: the name of the images.

    shape: of one batch; its first entry is None if any number of images can be passed. dtype: of the images.
    outputs: the names of all results. random: operators that draw random numbers or mix the images of a batch.
    """

    held: dict[str, tuple[str, str]]
    input: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    random: tuple[str, ...] = ()


def parse(archive: Archive) -> Graph:
    """Check the graph of an archive. Raises Refused, which names what is not allowed."""
    model = archive.model
    version = field(field(model, "schema_version", dict, "the program"), "major", int, "schema_version")
    if version != _MAJOR:
        raise Refused(f"has schema version {version}, and {_MAJOR} is read; write it with another torch", "unsupported")
    check_guards(model.get("guards_code") or [])
    module = field(model, "graph_module", dict, "the program")
    graph, signature = (field(module, name, dict, "graph_module") for name in ("graph", "signature"))
    _check_declared(graph)
    held, images = _inputs(field(signature, "input_specs", list, "the signature"), archive)
    shape, kind = _shape(graph, images)
    reader = _Nodes({*held, images}, images)
    calls = reader.read(field(graph, "nodes", list, "the graph"))
    outputs = tuple(_outputs(field(signature, "output_specs", list, "the signature"), reader.known))
    return Graph(held, images, shape, kind, calls, outputs, tuple(reader.random))


# ---- inputs and outputs


def _inputs(specs: list[Any], archive: Archive) -> tuple[dict[str, tuple[str, str]], str]:
    """The held tensors by name, and the name of the images."""
    held: dict[str, tuple[str, str]] = {}
    images: list[str] = []
    for spec in specs:
        kind, value = only(spec, "an input")
        if kind == "custom_obj":
            raise Refused(f"holds an object, {short(value)}, which could run code; only tensors are read", "unsafe")
        if kind not in ("user_input", "parameter", "buffer", "tensor_constant"):
            raise Refused(f"takes an input of the kind {short(kind)}; {_SAVE}", "unsupported")
        if kind == "user_input":
            what, images_name = only(field(value, "arg", dict, "an input"), "an input")
            if what != "as_tensor":
                raise Refused(f"takes an input that is no tensor but {short(what)}; {_SAVE}", "unsupported")
            images.append(tensor_name(images_name))
            continue
        name = tensor_name(field(value, "arg", dict, "an input"))
        label = {"tensor_constant": "tensor_constant_name"}.get(kind, f"{kind}_name")
        source = field(value, label, str, "an input")
        place = "weights" if source in archive.weights else "constants"
        if source not in getattr(archive, place):
            raise Refused(f"lacks the tensor {short(source)}")
        if name in held:
            raise Refused(f"is broken: {short(name)} is made twice")
        held[name] = place, source
    if len(images) != 1 or images[0] in held:
        raise Refused(f"takes {len(images)} inputs; {_SAVE}", "unsupported")
    return held, images[0]


def _outputs(specs: list[Any], known: set[str]) -> Iterable[str]:
    for spec in specs:
        kind, value = only(spec, "an output")
        if kind != "user_output":
            message = f"changes what it holds in every call ({short(kind)}); export it in eval mode: model.eval()"
            raise Refused(message, "unsupported")
        what, name = only(field(value, "arg", dict, "an output"), "an output")
        if what == "as_tensor":
            found = tensor_name(name)
            if found not in known:
                raise Refused(f"returns {short(found)}, which nothing makes")
            yield found


def _shape(graph: dict[str, Any], images: str) -> tuple[tuple[int | None, ...], torch.dtype]:
    """The shape of a batch of images and their type; the first size is None if it is a symbol."""
    meta = field(field(graph, "tensor_values", dict, "the graph"), images, dict, "tensor_values")
    sizes: list[int | None] = []
    for part in field(meta, "sizes", list, "the images"):
        kind, value = only(part, "a size of the images")
        if kind == "as_expr" and not sizes and is_symbol(value.get("expr_str")):
            sizes.append(None)
        elif kind == "as_int":
            sizes.append(whole(value, "a size of the images", 2**20))
        else:
            raise Refused("takes images of several sizes; only the number of images may be left open", "unsupported")
    kind_of = dtype(meta.get("dtype"), "the input")
    if len(sizes) < 2 or 0 in sizes or any(size is not None and size < 0 for size in sizes):
        raise Refused(f"takes inputs of shape {tuple(sizes)}; a batch of images (N, ...) is needed", "unsupported")
    if not kind_of.is_floating_point:
        raise Refused(f"takes inputs of {kind_of}, which have no gradient; images in [0, 1] are needed", "unsupported")
    return tuple(sizes), kind_of


def _check_declared(graph: dict[str, Any]) -> None:
    """Refuse objects, and expressions that are no sizes, among the values that the graph declares."""
    if graph.get("custom_obj_values"):
        raise Refused("holds objects, which could run code; only tensors are read", "unsafe")
    for group in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values"):
        values = graph.get(group) or {}
        if not isinstance(values, dict):
            raise Refused(f"is broken: {group} has no fields")
        for name in values:
            checked_name(name, "name")
        check_expressions(values)


# ---- nodes


def _device(function: OpOverload, args: tuple[Any, ...]) -> dict[str, Any]:
    """The device of the images, for an operator that makes a tensor from numbers alone."""
    makes = any(argument.name == "device" for argument in function._schema.arguments)
    return {"device": Device()} if makes and not any(refs(args)) else {}


def _numbers(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of arithmetic: Python would multiply texts and lists as well, to any length."""
    if not all(type(value) is int or isinstance(value, Ref) for value in args):
        raise Refused(f"is broken: it calculates with {short(args)}, and sizes are whole numbers")
    return args


class _Nodes:
    """Reads nodes in their order.

    known: the names that were made. seen: those that depend on the images. dropped: of checks, which nothing may use.
    """

    def __init__(self, known: set[str], images: str) -> None:
        self.known = known
        self.seen = {images}
        self.dropped: set[str] = set()
        self.random: list[str] = []

    def read(self, nodes: list[Any]) -> tuple[Call, ...]:
        if len(nodes) > _NODES:
            raise Refused(f"has {len(nodes):,} operators; at most {_NODES:,} are read", "too-large")
        calls = (self._node(node) for node in nodes)
        return tuple(call for call in calls if call is not None)

    def _node(self, node: Any) -> Call | None:
        target = field(node, "target", str, "an operator")
        outputs = self._made(field(node, "outputs", list, short(target)))
        if target in operators.DROPPED:
            self.dropped.update(name for name in outputs if name)
            return None
        target = operators.REPLACED.get(target, target)
        args, kwargs = self._arguments(field(node, "inputs", list, short(target)))
        if target in operators.ARITHMETIC:
            call = Call(target, operators.ARITHMETIC[target], _numbers((*args, *kwargs.values())), {}, outputs)
        elif target == operators.SIZE:
            call = Call(target, torch.ops.aten.sym_size.int, args, kwargs, outputs)
        else:
            call = self._operator(target, args, kwargs, outputs)
        made = {name for name in outputs if name}
        self.known |= made
        self.seen |= made if self.seen.intersection(call.refs) else set()
        return call

    def _operator(
        self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: tuple[str | None, ...]
    ) -> Call:
        function = operators.overload(target) if target in operators.ALLOWED else None
        if function is None:
            where = "of this torch" if target in operators.ALLOWED else "that are allowed"
            raise Refused(f"calls {short(target)}, which is none of the operators {where}; it was not run", "unsafe")
        call = Call(target, function, args, kwargs | _device(function, args), outputs, operators.packed(function))
        if len(outputs) != 1 and not call.packed:
            raise Refused(f"is broken: {operators.named(target)} has {len(outputs)} results")
        if call.arguments.get("dropout_p") or (target in operators.RANDOM and call.arguments.get("train") is not False):
            self.random.append(operators.named(target))
        return self._without_writes(call)

    def _without_writes(self, call: Call) -> Call:
        """Statistics of the batch are computed without those that the program holds, which the operator would write."""
        name, values = operators.named(call.target), call.arguments
        trains = {"aten.batch_norm.default": "training", "aten.instance_norm.default": "use_input_stats"}.get(name)
        if trains is None or not values.get(trains):
            return call
        if name == "aten.batch_norm.default" and self.seen.intersection(call.refs):  # not of weights alone
            self.random.append(f"{name} in training mode")
        return Call(call.target, call.function, (), values | {"running_mean": None, "running_var": None}, call.outputs)

    def _made(self, outputs: list[Any]) -> tuple[str | None, ...]:
        """The names of a node's results. Raises Refused for a name that is there already."""
        names: list[str | None] = []
        for output in outputs:
            kind, value = only(output, "a result")
            if kind == "as_tensors" and isinstance(value, list):
                names += [tensor_name(part) for part in value]
            elif kind == "as_tensor":
                names.append(tensor_name(value))
            elif kind in ("as_sym_int", "as_sym_bool"):
                names.append(checked_name(field(value, "as_name", str, "a size"), "name"))
            elif kind == "as_none":
                names.append(None)
            else:
                raise Refused(f"has a result of the kind {short(kind)}; only tensors and sizes are read", "unsupported")
        made = [name for name in names if name is not None]
        twice = len(set(made)) < len(made) or any(name in self.known or name in self.dropped for name in made)
        if twice:
            raise Refused(f"is broken: one of {short(made)} is made twice")
        return tuple(names)

    def _arguments(self, inputs: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments: in torch's files all up to the first keyword are positional."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for given in inputs:
            kind, value = only(field(given, "arg", dict, "an argument"), "an argument")
            read = argument(kind, value, self.known)
            if given.get("kind") != _KEYWORD and not kwargs:
                args.append(read)
            else:
                kwargs[checked_name(given.get("name"), "argument")] = read
        return tuple(args), kwargs
