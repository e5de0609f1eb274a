"""Programs (.pt2) that are made to harm: each is refused in one line, and nothing in them is ever run."""

import json
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import SYMBOL, Draft, meta, node, refusal, value

from atent_ext.core.errors import BadInput
from atent_ext.storage import untrusted_program


class Trap:
    """What unpickling would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture(autouse=True)
def marker(tmp_path, monkeypatch):
    """A file that no program may make; torch's loader and what it evaluates are out of order."""

    def run(*_, **__):
        raise AssertionError("something of the file was run")

    for name in ("torch.load", "torch.export.load", "pickle.loads", "pickle.load", "sympy.sympify"):
        monkeypatch.setattr(name, run)
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


# ---- code


def test_a_pickled_weight_is_refused(marker):
    draft = Draft()
    draft.config["w"]["use_pickle"] = True
    draft.members["data/weights/weight_0"] = pickle.dumps(Trap(marker))
    assert "holds a pickle, which could run code: weights 'w'" in refusal(draft, "unsafe")


@pytest.mark.parametrize("name", ["custom_obj_0", "opaque_obj_0"])
def test_a_pickled_constant_is_refused(marker, name):
    draft = Draft()
    draft.members[f"data/constants/{name}"] = pickle.dumps(Trap(marker))
    draft.constants["c"] = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    assert "holds a pickled object" in refusal(draft, "unsafe")


def test_pickled_sample_inputs_are_never_opened(marker):
    draft = Draft()
    draft.members["data/sample_inputs/model.pt"] = pickle.dumps(Trap(marker))
    assert draft.read().classes == 3


@pytest.mark.parametrize("place", ["images", "value", "size"])
@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {}')",
        "Symbol('s0').__class__",
        "Symbol('s0); import os')",
        "Integer(2)**Integer(9)**Integer(9); exec('')",
        "lambda: 1",
        7,
    ],
)
def test_an_expression_that_is_no_size_is_refused(marker, place, text):
    draft, expression = Draft(), {"as_expr": {"expr_str": str(text).format(marker) if isinstance(text, str) else text}}
    if place == "size":
        draft.graph["sym_int_values"]["s"] = expression
    else:
        draft.graph["tensor_values"]["x" if place == "images" else "y"] = meta(np.zeros((1, 4)), [expression, 4])
    assert "holds an expression that is no size" in refusal(draft, "unsafe")


@pytest.mark.parametrize(
    "guard", ["__import__('os').system('touch {}')", "L['x'].__class__", "open('{}', 'w')", "x" * 1000, 3]
)
def test_guard_code_is_refused(marker, guard):
    draft = Draft()
    draft.model["guards_code"] = [guard.format(marker) if isinstance(guard, str) else guard]
    assert "holds guard code" in refusal(draft, "unsafe")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.as_strided.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.empty.memory_format",
        "torch.ops.aten.empty_like.default",
        "torch.ops.aten.view.dtype",
        "torch.ops.aten.item.default",
        "torch.ops.aten.nonzero.default",
        "torch.ops.aten.relu.__class__",
        "torch.ops.aten.relu.default.__globals__",
        "torch.ops.prims.add.default",
        "torch.ops.higher_order.cond",
        "torch.ops.profiler._record_function_enter_new.default",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "_operator.getitem",
        "builtins.eval",
        "os.system",
        "#extension:op",
        "",
    ],
)
def test_an_operator_that_is_not_on_the_list_is_refused(target):
    draft = Draft([node("relu", "%x") | {"target": target}])
    assert f"calls {target!r}, which is none of the operators that are allowed" in refusal(draft, "unsafe")


def test_an_object_is_refused():
    draft = Draft()
    spec = {"arg": {"name": "o", "class_fqn": "os.system"}, "custom_obj_name": "o"}
    draft.inputs.append({"custom_obj": spec})
    assert "holds an object" in refusal(draft, "unsafe")
    draft = Draft([node("relu", {"as_custom_obj": {"name": "o", "class_fqn": "os.system"}})])
    assert "an argument of the kind 'as_custom_obj'" in refusal(draft, "unsafe")
    draft = Draft()
    draft.graph["custom_obj_values"] = {"o": {"name": "o", "class_fqn": "os.system"}}
    assert "holds objects" in refusal(draft, "unsafe")


@pytest.mark.parametrize(
    "kind", ["as_graph", "as_operator", "as_complex", "as_string_to_argument", "eval", "__class__"]
)
def test_arguments_of_other_kinds_are_refused(kind):
    assert f"an argument of the kind {kind!r}" in refusal(Draft([node("relu", {kind: "os"})]), "unsafe")


@pytest.mark.parametrize("name", ["x; import os", "__import__('os').system('ls')", "a\nb", "", "é", "a" * 501, "a b"])
def test_names_that_are_code_are_refused(name):
    assert "no plain name" in refusal(Draft([node("linear", "%x", "%w", "%b", out=name)], output=name), "unsafe")
    draft = Draft()
    draft.config[name] = draft.config["w"]
    assert "has a tensor that is no plain name" in refusal(draft, "unsafe")
    assert "has a argument that is no plain name" in refusal(Draft([node("relu", **{name: "%x"})]), "unsafe")


def test_the_network_has_names_of_its_own():
    program = Draft([node("linear", "%x", "%w", "%b", out="os.system")], output="os.system").read()
    assert set(program.network.state_dict()) == {"weight0", "weight1"}
    assert "system" not in program.network.code


@pytest.mark.parametrize("text", ["tanh'); import os #", "none\n", "x" * 101])
def test_a_text_that_no_operator_takes_is_refused(text):
    assert "has a text as an argument" in refusal(Draft([node("gelu", "%x", approximate=text)]), "unsafe")


# ---- the archive


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "models/../../x.json",
        "data/weights/a/b",
        "code/__init__.py",
        "data.pkl",
        "constants.pkl",
        "data\\x",
        "extra/../x",
        "data/weights/weight_0.so",
    ],
)
def test_members_that_no_program_has_are_refused(name):
    draft = Draft()
    draft.members[name] = b"x"
    refusal(draft, "unsafe")


def test_compiled_code_is_refused():
    draft = Draft()
    draft.members["data/aotinductor/model/model.so"] = b"\x7fELF"
    assert "holds compiled code" in refusal(draft, "unsafe")


def test_a_symbolic_link_is_refused():
    draft = Draft()
    draft.members["data/weights/weight_0"] = b"/etc/passwd"
    draft.links.add("data/weights/weight_0")
    assert "holds a symbolic link" in refusal(draft, "unsafe")


def test_two_members_of_one_name_are_refused():
    draft = Draft()
    draft.members["data/weights/WEIGHT_0"] = b"x"
    refusal(draft, "unsafe")
    draft = Draft()
    draft.texts["models/MODEL.json"] = "{}"
    assert "two members of one name" in refusal(draft)


def test_two_programs_are_refused():
    draft = Draft()
    draft.texts["models/other.json"] = "{}"
    assert "holds 2 programs" in refusal(draft)


def test_packed_members_are_refused():
    draft = Draft()
    draft.members["extra/zeros"] = bytes(10**6)
    assert "holds a packed member" in refusal(draft.content(zipfile.ZIP_DEFLATED))


def test_ten_gigabytes_that_are_only_claimed_are_refused():
    draft = Draft()
    draft.config["w"]["tensor_meta"] = meta(np.zeros((3, 4), "float32"), sizes=(50_000, 50_000))
    assert "asks for 2,500,000,000 numbers" in refusal(draft, "too-large")
    content = bytearray(Draft().content())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 4_000_000_000, 4_000_000_000)
    assert "claim more bytes than the file has" in refusal(bytes(content), "too-large")


def test_one_member_as_many_tensors_is_refused():
    draft = Draft(weights={"w": np.ones((3, 4)), "b": np.zeros(3), "c": np.zeros(10**5)})
    for count in range(10):
        entry = draft.config["c"] | {"tensor_meta": meta(np.zeros(10**5 - count, "float32"))}
        draft.config[f"c{count}"] = entry
    assert "the same numbers again and again" in refusal(draft, "too-large")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"schema_version": {"maj', "unreadable"),
        ("[" * 10**6, "too-large"),
        ('{"a":' * 10**5, "too-large"),
        ('{"a": NaN}', "unreadable"),
        ('{"a": ' + "9" * 5000 + "}", "unreadable"),
        ("[]", "unreadable"),
        ("{}", "unreadable"),
        ("", "unreadable"),
        ("\x00", "unreadable"),
    ],
)
@pytest.mark.parametrize("member", ["models/model.json", "data/weights/model_weights_config.json"])
def test_json_that_is_cut_off_or_has_no_bottom_is_refused(member, text, code):
    draft = Draft()
    draft.texts[member] = text
    refusal(draft, code)


def test_a_file_that_is_cut_off_is_refused():
    content = Draft().content()
    for length in (0, 3, 30, len(content) // 2, len(content) - 5):
        refusal(content[:length], "unreadable")


def test_a_million_operators_are_refused():
    draft = Draft()
    draft.graph["nodes"] = [{}] * 10**6
    assert "has 1,000,000 operators; at most 20,000" in refusal(draft, "too-large")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dtype": 99}, "unsupported"),
        ({"dtype": 10}, "unsupported"),  # complex
        ({"dtype": True}, "unsupported"),
        ({"dtype": 8}, "too-large"),  # of float32 numbers
        ({"layout": 2}, "unreadable"),
        ({"strides": [{"as_int": 4}, {"as_int": 2}]}, "too-large"),
        ({"strides": [{"as_int": 0}, {"as_int": -1}]}, "unreadable"),
        ({"strides": [{"as_int": 1}]}, "unreadable"),
        ({"storage_offset": {"as_int": 1}}, "too-large"),
        ({"storage_offset": {"as_int": -1}}, "unreadable"),
        ({"storage_offset": {"as_int": 2**70}}, "too-large"),
        ({"sizes": [{"as_int": -3}, {"as_int": 4}]}, "unreadable"),
        ({"sizes": [SYMBOL, {"as_int": 4}]}, "unreadable"),
        ({"sizes": 12}, "unreadable"),
    ],
)
def test_a_tensor_that_reads_beyond_its_numbers_is_refused(change, code):
    draft = Draft()
    draft.config["w"]["tensor_meta"] |= change
    refusal(draft, code)


def test_truth_values_that_are_neither_are_refused():
    draft = Draft(weights={"w": np.ones((3, 4)), "b": np.ones(3), "mask": np.ones(3, bool)})
    draft.members["data/weights/weight_2"] = b"\x00\x01\x02"
    assert "truth values other than 0 and 1" in refusal(draft)


@pytest.mark.parametrize(("number", "what"), [(np.nan, "holds NaN in weights 'w'"), (np.inf, "holds infinite weights")])
def test_weights_that_are_not_finite_are_refused(number, what):
    assert what in refusal(Draft(weights={"w": np.full((3, 4), number), "b": np.ones(3)}), "bad-value")


# ---- the graph


@pytest.mark.parametrize(
    "nodes",
    [
        [node("relu", "%y")],
        [node("relu", "%z", out="y"), node("relu", "%y", out="z")],
        [node("relu", "%x", out="x")],
        [node("relu", "%x"), node("relu", "%x")],
        [node("relu", "%x", out="w")],
    ],
)
def test_cycles_and_names_that_are_made_twice_are_refused(nodes):
    assert "is broken" in refusal(Draft(nodes), "unreadable")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("aten.add_.Tensor", "%w", "%w", out="z"), node("linear", "%x", "%z")],
        [node("relu_", "%x", out="z"), node("linear", "%z", "%w")],
        [node("aten.view.default", "%w", [12], out="v"), node("zero_", "%v", out="z"), node("linear", "%x", "%w")],
        [node("contiguous", "%x", out="v"), node("relu_", "%v", out="z"), node("linear", "%z", "%w")],
        [node("aten.to.dtype", "%x", {"as_scalar_type": 7}, out="v"), node("relu_", "%v")],
        [node("dropout", "%x", 0.5, False, out="v"), node("relu_", "%v")],
        [node("aten.unbind.int", "%w", out="p"), node("zero_", "%p", out="z"), node("linear", "%x", "%w")],
        [node("linear", "%x", "%w", out="v"), node("aten.add_.Tensor", other="%v", self="%w", out="y")],
        [node("linear", "%x", "%w", out="v"), node("copy_", "%b", "%b", out="y")],
    ],
)
def test_writes_to_weights_and_images_are_refused(nodes):
    assert "writes to its weights or to the images" in refusal(Draft(nodes), "unsafe")


def test_a_buffer_that_calls_would_change_is_refused():
    draft = Draft()
    draft.outputs.append({"buffer_mutation": {"arg": {"name": "y"}, "buffer_name": "b"}})
    assert "changes what it holds in every call" in refusal(draft, "unsupported")


@pytest.mark.parametrize(
    "nodes",
    [
        [node("full", [10**6, 10**6], 1.0)],
        [node("full", [2**39, 2**39], 1.0)],
        [node("full", [2**62], 1.0)],
        [node("repeat", "%x", [10**6, 10**6])],
        [node("aten.expand.default", "%b", [10**9, 3])],
        [node("aten.arange.default", 10**12)],
        [node("outer", "%x", "%x")],
        [node("aten.constant_pad_nd.default", "%x", [10**12, 0])],
        [node("full", [10**8], 1.0, out=out) for out in [*(f"y{k}" for k in range(20)), "y"]],
        [node("aten.full.default", [10**9], 1.0, out="z"), node("aten.unbind.int", "%z", 0)],
        [node("aten.full.default", [10**8], 1.0, out="z"), node("aten.unbind.int", "%z", 0)],
        [node("aten.full.default", [10**8], 1.0, out="z"), node("aten.split.Tensor", "%z", 1)],
    ],
)
def test_more_memory_than_a_network_needs_is_refused(nodes):
    message = refusal(Draft(nodes))
    assert any(word in message for word in ("numbers", "too much", "bytes", "splits a side", "cannot be run")), message


IMAGE = {"w": np.ones((4, 3, 3, 3)), "b": np.ones(4), "g": np.ones(3), "stat_short": np.ones(2)}


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (node("native_group_norm", "%x", None, None, 99, 3, 36, 1, 1e-5, out=["y", "m", "r"]), "unreadable"),
        (node("native_group_norm", "%x", "%b", None, "$n", 3, 36, 1, 1e-5, out=["y", "m", "r"]), "unreadable"),
        (node("native_group_norm", "%x", None, None, "$n", 3, 36, 0, 1e-5, out=["y", "m", "r"]), "unreadable"),
        (node("native_group_norm", "%x", None, None, "$n", 3, 36, 2, 1e-5, out=["y", "m", "r"]), "unreadable"),
        (
            node(
                "_native_batch_norm_legit_no_training",
                "%x",
                "%g",
                "%g",
                "%stat_short",
                "%g",
                0.1,
                1e-5,
                out=["y", "m", "r"],
            ),
            "unreadable",
        ),
        (node("aten.upsample_nearest2d.default", "%x", [12, 12], 1e300, 1e-300), "bad-value"),
        (node("aten.upsample_bilinear2d.default", "%x", [12, 12], False, -1.0, 2.0), "bad-value"),
        (node("conv2d", "%x", "%w", "%b", [2**33, 2**33]), "too-large"),
        (node("conv2d", "%x", "%w", "%b", [1, 1], [2**33, 2**33], [2**33, 2**33]), "too-large"),
        (node("max_pool2d", "%x", [2**33, 2**33]), "too-large"),
    ],
)
def test_sizes_that_kernels_take_on_trust_are_checked(call, code):
    size = node("aten.sym_size.int", "%x", 0, out="n")
    flat = node("aten.flatten.using_ints", "%y", 1, out="z")
    refusal(Draft([size, call, flat], IMAGE, shape=(3, 6, 6), output="z"), code)


@pytest.mark.parametrize(
    "args", [("x" * 100, 10**9), ({"as_ints": [0] * 1000}, 10**9), (True, 3), (1.5, 3), (None, 3), ("%x",)]
)
def test_arithmetic_of_anything_but_sizes_is_refused(args):
    refusal(Draft([node("_operator.mul", *args, out="n"), node("linear", "%x", "%w")]))


@pytest.mark.parametrize("many", [6, 50, 251])
def test_sizes_that_grow_only_with_many_images_are_refused(many):
    nodes = [
        node("aten.sym_size.int", "%x", 0, out="n"),
        node("_operator.floordiv", "$n", many, out="q"),
        node("_operator.mul", "$q", 2**20, out="m"),
        node("new_zeros", "%x", ["$m"], out="f"),
        node("linear", "%x", "%w", "%b"),
    ]
    assert "do not grow linearly with the number of images" in refusal(Draft(nodes), "unsupported")


def test_sizes_that_do_not_follow_the_number_of_images_are_refused():
    size = node("aten.sym_size.int", "%x", 0, out="n")
    square = [size, node("_operator.mul", "$n", "$n", out="m"), node("linear", "%x", "%w")]
    assert "do not grow linearly with the number of images" in refusal(Draft(square), "unsupported")
    repeated = [size, node("repeat", "%x", ["$n", 1], out="r"), node("linear", "%r", "%w")]
    assert "do not grow linearly with the number of images" in refusal(Draft(repeated), "unsupported")
    many = [node("_operator.mul", 2**20, 2**20, out="n0")]
    many += [node("_operator.mul", f"$n{k}", f"$n{k}", out=f"n{k + 1}") for k in range(100)]
    assert "gives int" in refusal(Draft([*many, node("linear", "%x", "%w")]), "unsupported")


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ({"user_input": {"arg": value("%w")}}, "takes 2 inputs"),
        ({"user_input": {"arg": {"as_int": 1}}}, "no tensor"),
        ({"token": {"arg": {"name": "t"}}}, "of the kind 'token'"),
        ({"parameter": {"arg": {"name": "p"}, "parameter_name": "absent"}}, "lacks the tensor 'absent'"),
        ({"parameter": {"arg": {"name": "w"}, "parameter_name": "w"}}, "is made twice"),
        ({}, "is broken"),
        (3, "is broken"),
    ],
)
def test_inputs_other_than_tensors_and_images_are_refused(spec, what):
    draft = Draft()
    draft.inputs.append(spec)
    assert what in refusal(draft)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sizes": [{"as_int": 2}, SYMBOL]}, "images of several sizes"),
        ({"sizes": [SYMBOL]}, "a batch of images"),
        ({"sizes": [SYMBOL, {"as_int": 0}]}, "a batch of images"),
        ({"dtype": 5}, "which have no gradient"),
    ],
)
def test_images_of_another_kind_are_refused(changes, what):
    draft = Draft()
    draft.graph["tensor_values"]["x"] |= changes
    assert what in refusal(draft)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("mean", "%x")],
        [node("linear", "%x", "%w", out="z"), node("aten.sum.dim_IntList", "%z", [0], True)],
        [node("aten.view.default", "%x", [-1, 2, 2])],
        [node("aten.arange.default", 3)],
    ],
)
def test_results_that_are_no_logits_are_refused(nodes):
    assert "logits (N, classes) are needed" in refusal(Draft(nodes), "bad-shape")


def test_another_schema_is_refused():
    draft = Draft()
    draft.model["schema_version"] = {"major": 9, "minor": 0}
    assert "has schema version 9, and 8 is read" in refusal(draft, "unsupported")
    draft = Draft()
    draft.texts["serialized_exported_program.json"] = "{}"
    assert "written by an older version of torch" in refusal(draft, "unsupported")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip", pickle.dumps(3), b"PK\x03\x04" + bytes(99)])
def test_other_files_are_refused(content):
    refusal(content, "unreadable")


def test_a_zip_of_another_kind_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.pt2")
    refusal((tmp_path / "m.pt2").read_bytes(), "unsafe")


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, [None], {"a": 1}])
@pytest.mark.parametrize("place", ["graph_module", "schema_version", "guards_code", "nodes", "inputs", "tensor_values"])
def test_json_of_another_structure_is_refused(place, wrong):
    draft = Draft()
    if place in draft.model:
        draft.model[place] = wrong
    elif place in draft.graph:
        draft.graph[place] = wrong
    if (place, bool(wrong)) == ("guards_code", False) or place == "inputs":
        return  # nothing reads them
    refusal(draft)


def test_every_value_of_the_json_may_be_anything():
    """Each value in turn is replaced by something else: what comes out is a network or one line."""
    text = json.dumps(Draft().model)
    paths = list(_paths(json.loads(text)))[::2]
    for number, path in enumerate(paths):
        model = json.loads(text)
        *way, last = path
        place = model
        for step in way:
            place = place[step]
        place[last] = (None, -1, "x", [], {}, 2**80, [1], {"as_int": -5})[number % 8]
        draft = Draft()
        draft.model = model
        with suppress(BadInput):
            untrusted_program.read(draft.content(), Path("m.pt2"))


def _paths(value, way=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from _paths(inner, (*way, key))
