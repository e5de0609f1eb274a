"""Exported programs (.pt2) built by hand, as `torch.export.save` lays them out: tests can change anything in them."""

import io
import json
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from atent_ext.core.errors import BadInput
from atent_ext.storage import untrusted_program

SYMBOL = {"as_expr": {"expr_str": "Symbol('s77', positive=True, integer=True)", "hint": {"as_int": 2}}}
NUMBERS = {np.dtype("float32"): 7, np.dtype("float64"): 8, np.dtype("int64"): 5, np.dtype("bool"): 12}


def value(given):
    """A value as torch writes arguments: "%name" is a tensor, "$name" a size; a mapping stays as it is."""
    if isinstance(given, dict):
        return given
    if given is None:
        return {"as_none": True}
    if isinstance(given, str):
        name = given[1:]
        kinds = {"%": {"as_tensor": {"name": name}}, "$": {"as_sym_int": {"as_name": name}}}
        return kinds.get(given[:1], {"as_string": given})
    if isinstance(given, list):
        if any(isinstance(part, str) and part.startswith("$") for part in given):
            sizes = [{"as_name": part[1:]} if isinstance(part, str) else {"as_int": part} for part in given]
            return {"as_sym_ints": sizes}
        if any(isinstance(part, str) for part in given):
            return {"as_tensors": [{"name": part[1:]} for part in given]}
        return {"as_ints": given}
    return {{bool: "as_bool", int: "as_int", float: "as_float"}[type(given)]: given}


def node(target, *args, out="y", **kwargs):
    """A node; `target` without a dot gets "torch.ops.aten." before it and ".default" after it."""
    target = target if "." in target else f"torch.ops.aten.{target}.default"
    target = f"torch.ops.{target}" if target.startswith("aten.") else target
    inputs = [{"name": f"arg{place}", "arg": value(given), "kind": 1} for place, given in enumerate(args)]
    inputs += [{"name": name, "arg": value(given), "kind": 2} for name, given in kwargs.items()]
    outputs = [value(f"%{name}") for name in ([out] if isinstance(out, str) else out)]
    if target == "torch.ops.aten.sym_size.int" or target.startswith("_operator."):
        outputs = [{"as_sym_int": {"as_name": out}}]
    return {"target": target, "inputs": inputs, "outputs": outputs, "metadata": {}, "name": out}


def meta(array, sizes=None, **changes):
    array = np.asarray(array)
    sizes = array.shape if sizes is None else sizes
    strides = [stride // array.itemsize for stride in np.zeros(array.shape, array.dtype).strides]
    made = {
        "dtype": NUMBERS[array.dtype],
        "sizes": [{"as_int": size} if isinstance(size, int) else size for size in sizes],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in strides],
        "storage_offset": {"as_int": 0},
        "layout": 7,
    }
    return made | changes


class Draft:
    """A program on images (N, 4): `nodes` turn the tensors "x", "w" (3, 4) and "b" (3,) into "y" (N, 3).

    Everything can be changed before `content()` makes the file: `model`, `config`, `constants`, `members`.
    """

    def __init__(self, nodes=None, weights=None, shape=(4,), batch=SYMBOL, output="y"):
        weights = {"w": np.arange(12.0).reshape(3, 4), "b": np.arange(3.0)} if weights is None else weights
        arrays = {
            name: array.astype("float32") if array.dtype == np.float64 else array for name, array in weights.items()
        }
        images = meta(np.zeros((1, *shape), "float32"), sizes=[batch, *shape])
        specs = [
            {"parameter": {"arg": {"name": name}, "parameter_name": name}}
            if array.dtype.kind == "f" and not name.startswith("stat")
            else {"buffer": {"arg": {"name": name}, "buffer_name": name, "persistent": True}}
            for name, array in arrays.items()
        ]
        self.nodes = [node("linear", "%x", "%w", "%b")] if nodes is None else nodes
        self.graph = {
            "inputs": [],
            "outputs": [],
            "nodes": self.nodes,
            "tensor_values": {"x": images},
            "sym_int_values": {},
            "sym_bool_values": {},
        }
        self.inputs = [*specs, {"user_input": {"arg": value("%x")}}]
        self.outputs = [{"user_output": {"arg": value(f"%{output}")}}]
        signature = {"input_specs": self.inputs, "output_specs": self.outputs}
        self.model = {
            "graph_module": {"graph": self.graph, "signature": signature, "module_call_graph": []},
            "opset_version": {"aten": 10},
            "range_constraints": {},
            "schema_version": {"major": 8, "minor": 20},
            "guards_code": [],
        }
        self.config = {
            name: {
                "path_name": f"weight_{place}",
                "is_param": "parameter" in spec,
                "use_pickle": False,
                "tensor_meta": meta(array),
            }
            for place, ((name, array), spec) in enumerate(zip(arrays.items(), specs, strict=True))
        }
        self.constants = {}
        self.members = {f"data/weights/weight_{place}": array.tobytes() for place, array in enumerate(arrays.values())}
        self.members |= {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
        self.texts = {}
        self.links = set()

    def content(self, compression=zipfile.ZIP_STORED):
        texts = {
            "models/model.json": json.dumps(self.model),
            "data/weights/model_weights_config.json": json.dumps({"config": self.config}),
            "data/constants/model_constants_config.json": json.dumps({"config": self.constants}),
        }
        members = self.members | {name: text.encode() for name, text in (texts | self.texts).items()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, content in members.items():
                entry = zipfile.ZipInfo(name if name.startswith("/") else f"archive/{name}")
                entry.compress_type = compression
                if name in self.links:
                    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(entry, content)
        return buffer.getvalue()

    def read(self):
        return untrusted_program.read(self.content(), Path("m.pt2"))


def refusal(draft, code=None):
    """The message that a draft, or the bytes of a file, is refused with: one line that names the file."""
    content = draft if isinstance(draft, bytes) else draft.content()
    with pytest.raises(BadInput) as error:
        untrusted_program.read(content, Path("m.pt2"))
    message = str(error.value)
    assert message.startswith("m.pt2 ")
    assert message.isprintable()
    assert len(message) < 600
    assert error.value.field == "program"
    assert code is None or error.value.code == code, message
    return message
