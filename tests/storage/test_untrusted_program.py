"""Programs (.pt2) as others write them: the network that is built computes what the file says."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import Draft, meta, node, refusal
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.models import speed
from atent_ext.storage import untrusted_program

LINEAR = node("linear", "%x", "%w", "%b")
CONV = [
    node("conv2d", "%x", "%w", "%b", [1, 1], [1, 1], out="c"),
    node("batch_norm", "%c", "%g", "%h", "%stat_mean", "%stat_var", False, 0.1, 1e-5, True, out="n"),
    node("relu_", "%n", out="r"),
    node("aten.mean.dim", "%r", [2, 3]),
]


def conv_weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "g": (4,), "h": (4,), "stat_mean": (4,)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()} | {"stat_var": rng.uniform(0.5, 2, 4)}


def test_a_program_is_the_network_that_it_describes():
    program = Draft().read()
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(12.0).view(3, 4))
        linear.bias.copy_(torch.arange(3.0))
    for count in (0, 1, 7):
        x = torch.rand(count, 4, requires_grad=True)
        assert torch.equal(program.network(x), linear(x))
        gradient = torch.autograd.grad(program.network(x).square().sum(), x)[0]
        assert torch.equal(gradient, torch.autograd.grad(linear(x).square().sum(), x)[0])
    assert (program.shape, program.classes, program.batch, program.operators) == ((4,), 3, None, 1)
    assert program.random == program.notes == ()
    assert not any(module.training for module in program.network.modules())
    assert all(parameter.requires_grad for parameter in program.network.parameters())


@pytest.fixture(scope="module")
def convolution():
    return Draft(CONV, conv_weights(), shape=(3, 6, 6)).read().network


def test_convolutions_and_norms_are_modules_that_are_folded(convolution):
    x = torch.rand(3, 3, 6, 6)
    kinds = [type(module) for module in convolution.children()]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d]
    weights = {name: torch.tensor(value).float() for name, value in conv_weights().items()}
    hidden = nn.functional.conv2d(x, weights["w"], weights["b"], padding=1)
    statistics = weights["stat_mean"], weights["stat_var"], weights["g"], weights["h"]
    expected = nn.functional.batch_norm(hidden, *statistics).relu().mean((2, 3))
    assert torch.equal(convolution(x), expected)
    prepared = speed.prepare(convolution, x)
    assert prepared.notes == ("BatchNorm folded: 1 of 1", "speed: channels-last")
    torch.testing.assert_close(prepared.model(x), expected)


def test_a_program_is_copied_and_compiled(convolution):
    x = torch.rand(3, 3, 6, 6)
    compiled = copy.deepcopy(convolution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled.compile(backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), convolution(x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "nodes",
    [
        [node("aten.arange.default", 3, device={"as_device": {"type": "cuda", "index": 7}}, out="a")],
        [node("aten.arange.default", 3, out="a")],
        [node("aten.to.device", "%b", {"as_device": {"type": "cpu", "index": None}}, {"as_scalar_type": 7}, out="a")],
        [node("zeros_like", "%b", device={"as_device": {"type": "cuda", "index": 0}}, out="a")],
    ],
)
def test_devices_of_the_file_follow_the_images(nodes):
    linear = node("linear", "%x", "%w", out="l")
    network = Draft([*nodes, linear, node("aten.add.Tensor", "%l", "%a")]).read().network
    assert network(torch.rand(2, 4)).shape == (2, 3)
    assert network.to("meta")(torch.rand(2, 4, device="meta")).shape == (2, 3)  # the CPU stands for another device


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7])
def test_a_program_of_a_fixed_batch_is_run_in_slices_that_are_filled_up(count):
    shaped = [node("aten.view.default", "%x", [3, 4], out="v"), node("linear", "%v", "%w", "%b")]
    program = Draft(shaped, shape=(2, 2), batch={"as_int": 3}).read()
    assert program.batch == 3
    assert program.notes == ("the program is for 3 images at once: others are scored in slices, filled up with zeros",)
    x = torch.rand(count, 2, 2, requires_grad=True)
    logits = program.network(x)
    torch.testing.assert_close(logits, Draft().read().network(x.flatten(1)))
    assert torch.autograd.grad(logits.sum(), x)[0].shape == x.shape


def test_sizes_follow_the_number_of_images():
    size = node("aten.sym_size.int", "%x", 0, out="n")
    rows = node("_operator.mul", "$n", 2, out="m")
    nodes = [size, rows, node("aten.view.default", "%x", ["$m", 2], out="v")]
    nodes += [node("aten.view.default", "%v", ["$n", 4], out="u"), node("linear", "%u", "%w", "%b")]
    x = torch.rand(5, 4)
    assert torch.equal(Draft(nodes).read().network(x), Draft().read().network(x))


def test_checks_of_the_exported_graph_are_left_out():
    check = node("_operator.ge", 1, 0, out="ok") | {"outputs": [{"as_sym_bool": {"as_name": "ok"}}]}
    asserted = node("_assert_scalar", {"as_sym_bool": {"as_name": "ok"}}, "text", out=[])
    assert Draft([check, asserted, LINEAR]).read().operators == 1


@pytest.mark.parametrize(
    ("noise", "named"),
    [
        (node("randn_like", "%x", out="e"), "aten.randn_like.default"),
        (node("dropout", "%x", 0.5, True, out="e"), "aten.dropout.default"),
        (
            node("scaled_dot_product_attention", "%x", "%x", "%x", None, 0.5, out="e"),
            "aten.scaled_dot_product_attention.default",
        ),
    ],
)
def test_random_operators_are_named(noise, named):
    nodes = [noise, node("aten.add.Tensor", "%x", "%e", out="s"), node("linear", "%s", "%w", "%b")]
    program = Draft(nodes).read()
    assert program.random == (named,)
    assert program.notes == (f"the program draws at random or follows the batch: {named}",)
    x = torch.rand(2, 4)
    assert not torch.equal(program.network(x), program.network(x))


def test_dropout_in_eval_mode_is_not_random():
    nodes = [node("dropout", "%x", 0.5, False, out="e"), node("linear", "%e", "%w", "%b")]
    assert Draft(nodes).read().random == ()


def test_a_norm_in_training_mode_is_named_and_writes_no_statistics():
    nodes = [*CONV]
    nodes[1] = node("batch_norm", "%c", "%g", "%h", "%stat_mean", "%stat_var", True, 0.1, 1e-5, True, out="n")
    program = Draft(nodes, conv_weights(), shape=(3, 6, 6)).read()
    assert program.random == ("aten.batch_norm.default in training mode",)
    before = copy.deepcopy(program.network.state_dict())
    assert program.network(torch.rand(3, 3, 6, 6)).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in program.network.state_dict().items())


def test_weights_that_are_normalised_are_not_named():
    norm = node("batch_norm", "%w", None, None, None, None, True, 0.0, 1e-6, False, out="v")
    assert Draft([norm, node("linear", "%x", "%v")]).read().random == ()


def test_results_that_are_no_logits_are_left_out_and_said():
    draft = Draft([node("mean", "%x", out="m"), LINEAR, node("aten.softmax.int", "%y", 1, out="p")])
    draft.outputs[:] = [{"user_output": {"arg": {"as_tensor": {"name": name}}}} for name in ("m", "y", "p")]
    assert "returns '1' (2, 3), '2' (2, 3), and nothing says which are the logits" in refusal(draft, "conflict")
    program = untrusted_program.read(draft.content(), Path("m.pt2"), "1")
    assert program.notes == ("the program returns 3 results; '1' is read as logits",)
    x = torch.rand(2, 4)
    assert torch.equal(program.network(x), Draft().read().network(x))
    draft.outputs.pop()
    assert draft.read().notes == ("the program returns 2 results; '1' is read as logits",)
    for output, code in (("0", "bad-shape"), ("2", "unknown-name")):
        with pytest.raises(BadInput) as error:
            untrusted_program.read(draft.content(), Path("m.pt2"), output)
        assert error.value.code == code


@pytest.mark.parametrize("column", [True, False])
def test_one_logit_is_read_as_two(column):
    weights = {"w": np.arange(4.0).reshape(1, 4), "b": np.ones(1)}
    nodes = [LINEAR] if column else [LINEAR, node("aten.squeeze.dim", "%y", 1, out="z")]
    program = Draft(nodes, weights, output="y" if column else "z").read()
    x = torch.rand(3, 4)
    logit = x @ torch.arange(4.0) + 1
    torch.testing.assert_close(program.network(x), torch.stack([torch.zeros(3), logit], 1))
    assert program.classes == 2
    assert program.notes == ("the program has one logit, z; it is read as the two logits (0, z)",)


def test_a_network_of_another_precision_takes_float32():
    draft = Draft(weights={"w": np.ones((3, 4)), "b": np.ones(3)})
    for name, shape in (("w", (3, 4)), ("b", (3,))):
        draft.config[name]["tensor_meta"] = meta(np.ones(shape))
        draft.members[f"data/weights/{draft.config[name]['path_name']}"] = np.ones(shape).tobytes()
    draft.graph["tensor_values"]["x"]["dtype"] = 8
    program = draft.read()
    assert program.notes == ("the program computes in float64; its images are attacked in float32",)
    assert program.network(torch.rand(2, 4)).dtype is torch.float64


def test_names_of_one_tensor_share_it():
    draft = Draft([node("linear", "%x", "%w", out="h"), node("linear", "%h", "%v")], weights={"w": np.eye(4)})
    draft.config["v"] = draft.config["w"]
    draft.inputs.insert(0, {"parameter": {"arg": {"name": "v"}, "parameter_name": "v"}})
    network = draft.read().network
    assert [tuple(parameter.shape) for parameter in network.parameters()] == [(4, 4)]


def test_a_part_of_a_larger_tensor_and_another_layout_are_read():
    draft = Draft()
    draft.members["data/weights/weight_0"] = np.arange(24, dtype="float32").tobytes()
    change = {"storage_offset": {"as_int": 12}, "strides": [{"as_int": 1}, {"as_int": 3}]}
    draft.config["w"]["tensor_meta"] |= change
    draft.config["b"]["tensor_meta"] |= {"sizes": [{"as_int": 3}]}
    weight = torch.arange(12.0, 24).view(4, 3).T
    x = torch.rand(2, 4)
    torch.testing.assert_close(draft.read().network(x), x @ weight.T + torch.arange(3.0))


@pytest.mark.parametrize("guard", ["L['x'].size()[0] >= 2", "L['args'][0].size()[1] == 3 * L['args'][0].size()[2]"])
def test_guards_on_sizes_are_left_out(guard):
    draft = Draft()
    draft.model["guards_code"] = [guard]
    assert draft.read().classes == 3


def test_infinities_of_masks_are_read():
    nodes = [LINEAR, node("aten.masked_fill.Scalar", "%y", "%stat_mask", {"as_float": "-Infinity"}, out="z")]
    weights = {"w": np.ones((3, 4)), "b": np.ones(3), "stat_mask": np.array([False, False, True])}
    logits = Draft(nodes, weights, output="z").read().network(torch.rand(2, 4))
    assert logits[:, 2].tolist() == [-torch.inf, -torch.inf]
