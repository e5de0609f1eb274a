"""Mutated programs (.pt2), and what may come out of each: a network that is run, or one line of an error.

`tests/storage/test_fuzz_programs.py` and `eval/stress/fuzz_programs.py` share this.
"""

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from programs import Draft, node
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.models import programs
from atent_ext.storage import untrusted_program
from atent_ext.storage.untrusted_program import operators

Members = dict[str, bytes]
_ODD: tuple[Any, ...] = (None, True, 0, 1, -1, 2, 3, 7, 2**31, 2**40, 2**63 - 1, -(2**63), 10**30, 0.5, 1e300)
_ODD += ("", "x", "w", "a b", "__import__('os')", [], {}, [0], [1, 1], [-1], {"as_int": -1}, {"as_none": True})
_JSON = ("models/model.json", "data/weights/model_weights_config.json")


def drafted() -> bytes:
    """A convolution, a norm, an attention and a linear layer on images (3, 6, 6)."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "g": (4,), "h": (4,), "stat_mean": (4,), "v": (5, 4)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"stat_var": np.ones(4)}
    nodes = [
        node("conv2d", "%x", "%w", "%b", [1, 1], [1, 1], out="c"),
        node("batch_norm", "%c", "%g", "%h", "%stat_mean", "%stat_var", False, 0.1, 1e-5, True, out="n"),
        node("relu_", "%n", out="r"),
        node("aten.max_pool2d.default", "%r", [2, 2], [2, 2], out="m"),
        node("aten.sym_size.int", "%m", 0, out="s"),
        node("aten.view.default", "%m", ["$s", 4, 9], out="f"),
        node("aten.transpose.int", "%f", 1, 2, out="t"),
        node("scaled_dot_product_attention", "%t", "%t", "%t", out="a"),
        node("aten.split.Tensor", "%a", 3, 1, out="k")
        | {"outputs": [{"as_tensors": [{"name": f"k{number}"} for number in range(3)]}]},
        node("cat", ["%k0", "%k2"], 1, out="q"),
        node("aten.mean.dim", "%q", [1], out="p"),
        node("aten.full.default", [1, 4], 0.5, out="e"),
        node("aten.add.Tensor", "%p", "%e", out="z"),
        node("linear", "%z", "%v"),
    ]
    return Draft(nodes, weights, shape=(3, 6, 6)).content()


def exported(folder: Path) -> bytes:
    """A small network as `atent export` writes it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network = nn.Sequential(*layers, nn.LayerNorm(4), nn.Linear(4, 5)).eval()
    programs.export(network, torch.rand(2, 3, 6, 6), folder / "base.pt2", overwrite=True)
    return (folder / "base.pt2").read_bytes()


def members(content: bytes) -> Members:
    """The members of a program's zip, without its root folder."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def packed(held: Members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in held.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


# ---- mutations


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a piece of JSON."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in pairs] + [place for _, inner in pairs for place in _places(inner)]


def _change_json(draw: random.Random, held: Members) -> None:
    name = draw.choice(_JSON)
    content = json.loads(held[name])
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        places = _places(content)
        if not places:
            break
        container, key = draw.choice(places)
        other, there = draw.choice(places)
        kind = draw.choice(("odd", "odd", "number", "swap", "copy", "remove"))
        if kind == "swap":
            container[key], other[there] = json.loads(json.dumps([other[there], container[key]]))
        elif kind == "copy":
            container[key] = json.loads(json.dumps(other[there]))
        elif kind == "remove" and isinstance(container, dict):
            del container[key]
        elif kind == "number" and type(container[key]) is int:
            container[key] += draw.choice((-2, -1, 1, 2, 100))
        else:
            container[key] = copy.deepcopy(draw.choice(_ODD))
    held[name] = json.dumps(content).encode()


def _change_operator(draw: random.Random, held: Members) -> None:
    """Another operator for one or two nodes, with the arguments that are there or with numbers beside them."""
    content = json.loads(held[_JSON[0]])
    nodes = content["graph_module"]["graph"]["nodes"]
    known = sorted(operators.ALLOWED | operators.DROPPED) + sorted(operators.ARITHMETIC)
    for chosen in draw.sample(nodes, draw.choice((1, 1, 2))):
        chosen["target"] = draw.choice(known)
        for _ in range(draw.choice((0, 0, 1, 2, 3))):
            value = draw.choice(({"as_int": draw.choice((0, 1, -1, 2, 5))}, {"as_ints": [0]}, {"as_ints": [2, 2]}))
            value = draw.choice((value, {"as_float": 0.5}, {"as_bool": True}, {"as_tensor": {"name": "x"}}))
            place = draw.randrange(len(chosen["inputs"]) + 1)
            chosen["inputs"].insert(place, {"name": "given", "arg": value, "kind": 1})
        if draw.random() < 0.3:
            chosen["inputs"] = chosen["inputs"][: draw.randrange(1, 4)]
    held[_JSON[0]] = json.dumps(content).encode()


def _change_bytes(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 20))):
        place = draw.randrange(len(changed))
        kind = draw.choice(("flip", "cut", "insert", "remove", "end"))
        if kind == "cut":
            del changed[place:]
            break
        if kind == "remove":
            del changed[place : place + draw.randrange(1, 50)]
        elif kind == "insert":
            changed[place:place] = draw.randbytes(draw.randrange(1, 50))
        else:  # the table of contents stands at the end
            changed[place if kind == "flip" else -draw.randrange(1, min(2000, len(changed)))] = draw.randrange(256)
        if not changed:
            break
    return bytes(changed)


def _change_member(draw: random.Random, held: Members) -> None:
    name = draw.choice(sorted(held))
    kind = draw.choice(("cut", "rename", "remove", "add", "bytes", "text"))
    if kind == "cut":
        held[name] = held[name][: draw.randrange(len(held[name]) + 1)]
    elif kind == "rename":
        held[draw.choice((f"{name}_", f"../{name}", "data/weights/weight_99", name.upper()))] = held.pop(name)
    elif kind == "remove":
        del held[name]
    elif kind == "add":
        held[draw.choice(("extra/x", "data/constants/custom_obj_0", "code/x.py", "models/b.json"))] = b"x"
    else:
        held[name] = draw.randbytes(len(held[name])) if kind == "bytes" else b"{}"


def mutated(base: bytes, seed: int) -> bytes:
    """The base with one kind of change, drawn from the seed."""
    draw = random.Random(seed)
    if draw.random() < 0.2:
        return _change_bytes(draw, base)
    held = members(base)
    change: Callable[[random.Random, Members], None] = draw.choice(
        (_change_json, _change_json, _change_operator, _change_operator, _change_member)
    )
    change(draw, held)
    return packed(held)


def outcome(content: bytes) -> str:
    """How reading a file ends: "refused: CODE", "runs", or "fails" for a network that raises an error when it is run.

    Any other outcome is the reader's fault: "other: ...", or an exception.
    """
    try:
        program = untrusted_program.read(content, Path("m.pt2"))
    except BadInput as error:
        return (
            f"refused: {error.code}" if str(error).isprintable() and error.field == "program" else f"other: {error!r}"
        )
    x = torch.rand(2, *program.shape, generator=torch.Generator().manual_seed(0))
    before = x.clone(), {name: tensor.clone() for name, tensor in program.network.state_dict().items()}
    try:
        with torch.no_grad():
            logits = program.network(x)
    except (RuntimeError, IndexError, ValueError, TypeError):  # as of any network: `atent verify` reports it
        return "fails"
    assert logits.shape == (2, program.classes)
    assert torch.equal(x, before[0]), "the images were written to"
    held = program.network.state_dict()
    assert all(torch.equal(held[name], value) for name, value in before[1].items()), "the weights were written to"
    return "runs"
