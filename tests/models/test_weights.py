"""The reader of weights: which network of a file is meant, what is guessed aloud, and what is refused."""

import argparse
import random
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from problems import Shared, tiny_with_statistics
from saved_ways import EXTRAS, SCALE, WAYS, averaged, infixed, prefixed, scale
from strangers import saved
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation
from atent_ext.models import weights

GOOD, OTHER = (dict(tiny_with_statistics(seed).state_dict()) for seed in (1, 2))
COUNTER = "2.num_batches_tracked"
PARTS = {name: tensor for name, tensor in GOOD.items() if not name.startswith("5.")}


def read(content, network=None, **stated):
    """The network with the weights, their name in the file, and the notes."""
    network, notes = network or tiny_with_statistics(3), []
    content = content if isinstance(content, bytes) else saved(content)
    key = weights.fill(network, content, Path("w.pt"), notes, **stated)
    return network, key, notes


def refusal(content, code, field, network=None, **stated):
    """The message of the refusal; the network is as it was."""
    network = network or tiny_with_statistics(3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(BadInput) as error:
        read(content, network, **stated)
    assert (error.value.code, error.value.field) == (code, field)
    assert same(network, before)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(network, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


# ---- several networks in one file


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": GOOD, "best_state_dict": OTHER},
        {"student": GOOD, "teacher": OTHER},
        {"ema_0.99": GOOD, "ema_0.999": OTHER},
        {**prefixed(GOOD, "net_a."), **prefixed(OTHER, "net_b.")},
        {"models": [GOOD, OTHER]},
        {**GOOD, "best": OTHER},
        {"state_dict": GOOD, "swa_state_dict": OTHER, "swa_n": 0},  # nothing was averaged yet
        {"state_dict": GOOD, "swa": {**averaged(OTHER), "n_averaged": torch.tensor(0)}},
        {"state_dict": GOOD, "ema": {"shadow": {name: OTHER[name] for name in PARTS}}},  # frozen layers left out
        {"state_dict": GOOD, "ema": {"shadow": {**OTHER, "6.weight": torch.ones(2, 2)}}},
        {**prefixed(GOOD, "model."), **prefixed({name: OTHER[name] for name in PARTS}, "ema_model.")},
    ],
)
def test_where_nothing_decides_the_file_is_refused_until_a_name_is_stated(content):
    message = refusal(content, "conflict", "weights_key")
    assert "weights_key in card.yaml, --weights-key" in message
    first = next(iter(content))
    key = {"models": "models.0", "1.weight": ".", "ema_0.99": "ema_0.99"}.get(first, first.partition(".")[0])
    network, chosen, notes = read(content, key=key)
    assert same(network, GOOD)
    assert chosen == key
    assert notes[0].startswith(f"the weights under '{key}' are read, as stated")


def test_a_stated_name_is_found_exactly_or_as_the_only_one_below():
    content = {"model": GOOD, "ema": {"decay": 0.9, "shadow": OTHER}}
    for key, state, full in (
        ("model", GOOD, "model"),
        ("ema", OTHER, "ema.shadow"),
        ("ema.shadow", OTHER, "ema.shadow"),
    ):
        network, chosen, _ = read(content, key=key)
        assert same(network, state)
        assert chosen == full
    message = refusal(content, "unknown-name", "weights_key", key="raw")
    assert "'ema.shadow'" in message
    assert "'model'" in message


def test_equal_weights_are_one_network_and_the_choice_is_said():
    network, chosen, notes = read({"state_dict": GOOD, "best": {name: tensor.clone() for name, tensor in GOOD.items()}})
    assert same(network, GOOD)
    assert chosen is None
    assert notes == ["the weights under 'state_dict' are read; the same weights lie under 'best'"]


def test_a_callback_of_lightning_holds_the_average():
    callbacks = {"StochasticWeightAveraging": {"n_averaged": 4, "average_model_state": prefixed(GOOD, "net.")}}
    content = {"state_dict": prefixed(OTHER, "net."), "callbacks": callbacks, **EXTRAS}
    network, chosen, _ = read(content)
    assert same(network, GOOD)
    assert chosen == "callbacks.StochasticWeightAveraging.average_model_state.net"


def test_raw_copies_inside_an_average_are_not_the_average():
    for raw in ("collected_params", "backup", "online_model"):
        assert same(read({"ema": {"shadow": GOOD, raw: OTHER}, "model": OTHER})[0], GOOD)


def test_an_average_without_buffers_needs_the_network_that_was_trained():
    parameters = dict(tiny_with_statistics(1).named_parameters())
    assert "missing 2.running_mean" in refusal({"ema": parameters}, "bad-shape", "path")
    two = {"ema": parameters, "model": OTHER, "best": {**OTHER, "2.running_mean": torch.zeros(32)}}
    assert "'best'" in refusal(two, "conflict", "weights_key")


# ---- normalisation


def test_a_network_behind_something_without_weights_needs_a_statement():
    for content in (prefixed(GOOD, "1."), {"state_dict": prefixed(GOOD, "module.1.")}, prefixed(GOOD, "net.2.")):
        assert "'none' if there is none" in refusal(content, "missing", "normalisation")
        for stated in ("none", Normalisation(**SCALE)):
            assert same(read(content, normalisation=stated)[0], GOOD)


def test_a_network_in_front_of_something_without_weights_is_read():
    network, _, notes = read(prefixed(GOOD, "0."))
    assert same(network, GOOD)
    assert notes[-1] == "no normalisation is stated, and none is applied; had '0' one, state it"


def test_layers_beside_the_network_in_its_sequential_are_no_leftovers():
    content = {"0.weight": torch.ones(1, 1, 1, 1), **prefixed(GOOD, "1.")}
    assert "unknown '0.weight'" in refusal(content, "bad-shape", "path", normalisation="none")


@pytest.mark.parametrize("name", ["MAIR", "robustness", "a normalisation as buffers"])
def test_a_stored_normalisation_must_be_the_stated_one(name):
    content, right = WAYS[name].bytes(GOOD, OTHER), Normalisation(**SCALE)
    assert same(read(content, normalisation=right)[0], GOOD)
    for stated in (None, "none", Normalisation(mean=[0.25], std=[0.25]), Normalisation(mean=[0.2], std=[0.5])):
        assert "0.25" in refusal(content, "conflict", "normalisation", normalisation=stated)


def test_a_normalisation_that_does_nothing_is_none():
    inner = {"model.0.mean": torch.tensor([0.25]), "model.0.std": torch.tensor([0.5]), **prefixed(GOOD, "model.1.")}
    outer = {"mean": torch.zeros(1), "std": torch.ones(1)}  # MAIR's RobModel, before and after add_normalize
    network, _, notes = read({"rmodel": {**outer, **prefixed(GOOD, "model.")}})
    assert same(network, GOOD)
    assert "the stored normalisation, 'mean', 'std', is mean 0 and std 1: none" in notes
    assert same(read({"rmodel": {**outer, **inner}}, normalisation=Normalisation(**SCALE))[0], GOOD)
    refusal({"rmodel": {**outer, **inner}}, "conflict", "normalisation")


def test_a_mean_and_std_beside_the_weights_are_a_normalisation_unless_none_is_stated():
    as_lists, as_tensors = {"config": {"mean": [0.25], "std": [0.5]}}, scale()
    for beside in (as_lists, as_tensors):
        content = {"state_dict": GOOD, **beside}
        refusal(content, "conflict", "normalisation")
        refusal(content, "conflict", "normalisation", normalisation=Normalisation(mean=[0.3], std=[0.5]))
        for stated in ("none", Normalisation(**SCALE)):
            assert same(read(content, normalisation=stated)[0], GOOD)
    assert same(read({"state_dict": GOOD, "config": {"mean": [0.0], "std": [1.0]}})[0], GOOD)
    assert same(read({"state_dict": GOOD, "losses": {"mean": [0.25]}})[0], GOOD)


# ---- what does not fit


def test_what_is_left_over_decides_whether_the_architecture_is_blamed():
    more = {**GOOD, "6.weight": torch.ones(3, 3)}
    assert "the file holds more layers" in refusal(more, "bad-shape", "path")
    assert "architecture and the arguments" in refusal({**GOOD, "1.weight": torch.ones(9, 64)}, "bad-shape", "path")
    classes = {**GOOD, "5.weight": torch.ones(7, 32), "5.bias": torch.ones(7)}
    assert "for 7 classes, the network is for 10" in refusal(prefixed(classes, "model."), "bad-shape", "path")
    assert "6 of 9 tensors fit under 'model'" in refusal(
        {"model": PARTS | {"2.bias": torch.ones(1)}}, "bad-shape", "path"
    )


def test_twice_one_name_with_a_wrapper_inside_is_no_guess():
    refusal({**GOOD, **infixed(OTHER, "module")}, "bad-shape", "path")


def test_whole_numbers_are_no_weights():
    assert "wrong type 1.weight int8" in refusal({**GOOD, "1.weight": GOOD["1.weight"].char()}, "bad-shape", "path")


def test_a_mapping_that_contains_itself_is_read_once():
    content = {"state_dict": GOOD}
    content["self"] = content
    assert same(read(content)[0], GOOD)


def test_other_weights_that_cannot_be_read_are_no_reason_to_take_these():
    for rival in (
        {f"{name}.raw": tensor for name, tensor in OTHER.items()},  # other names
        {name: {"value": tensor} for name, tensor in OTHER.items()},
        {**OTHER, "head.weight": torch.ones(2, 2)},
    ):
        message = refusal({"last": GOOD, "best": rival}, "conflict", "weights_key")
        assert "'best'" in message
        assert same(read({"last": GOOD, "best": rival}, key="last")[0], GOOD)
        assert same(read({"ema": GOOD, "best": rival})[0], GOOD)
    training = {0: {"momentum_buffer": OTHER["1.weight"]}, 1: {"momentum_buffer": OTHER["5.weight"]}}
    assert same(read({"last": GOOD, "optimizer": {"state": training}, "opt": dict(enumerate(OTHER.values()))})[0], GOOD)


def test_buffers_of_another_network_do_not_fill_a_gap():
    gap = {name: tensor for name, tensor in GOOD.items() if name != "2.running_var"}
    assert "'ema'" in refusal({"model": OTHER, "ema": gap}, "conflict", "weights_key")


def test_very_many_networks_are_refused_at_once():
    tiny = {f"net{k}.{name}": torch.ones(1) for k in range(200) for name in ("weight", "bias")}
    network = nn.GroupNorm(1, 1)
    refusal(tiny, "too-large", "path", network)


# ---- other kinds of files


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=0.1), np.float64(0.5), Path("x")])
def test_a_file_with_more_than_tensors_names_a_command_that_converts_it(beside, tmp_path):
    path = tmp_path / "last.pth"
    path.write_bytes(saved({"state_dict": GOOD, "args": beside}))
    with pytest.raises(BadInput) as error:
        weights.load_weights(tiny_with_statistics(3), path)
    assert error.value.code == "unsafe"
    command = str(error.value).partition("converts it by: ")[2]
    assert command.startswith('python -c "import torch')
    code = command.removeprefix('python -c "').removesuffix('"')
    exec(code.replace("last.pth", str(path)).replace("tensors.pt", f"{tmp_path}/t.pt"), {})
    network = tiny_with_statistics(3)
    weights.load_weights(network, tmp_path / "t.pt")
    assert same(network, GOOD)


def test_a_file_that_runs_code_names_no_such_command(tmp_path):
    class Trap:
        def __reduce__(self):
            return subprocess.run, ([sys.executable],)

    assert "converts" not in refusal(saved({"state_dict": GOOD, "args": Trap()}), "unsafe", "path")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_come_back(dtype, tmp_path):
    network, other = nn.Linear(2, 3, dtype=dtype), nn.Linear(2, 3, dtype=dtype)
    assert same(read(saved(network.state_dict()), other)[0], network.state_dict())
    if dtype == torch.complex64:
        weights.save_weights(network, tmp_path / "w.safetensors")
        weights.load_weights(other, tmp_path / "w.safetensors")
        assert same(other, network.state_dict())
    else:
        with pytest.raises(BadInput) as error:
            weights.check_saved(network)
        assert (error.value.code, error.value.field) == ("unsupported", "model")
    refusal(saved(network.state_dict()), "bad-shape", "path", nn.Linear(2, 3))


# ---- shared weights


def test_a_tensor_under_several_names_is_saved_and_read(tmp_path):
    network, other, path = Shared(), Shared(), tmp_path / "w.safetensors"
    weights.save_weights(network, path)
    assert safetensors.torch.load_file(path).keys() == network.state_dict().keys()
    weights.load_weights(other, path)
    assert same(other, network.state_dict())
    safetensors.torch.save_model(network, str(path))  # each tensor once
    assert len(safetensors.torch.load_file(path)) == 12
    other = Shared()
    weights.load_weights(other, path)
    assert same(other, network.state_dict())
    untied = {**network.state_dict(), "second.weight": torch.ones(1, 1, 1, 1)}
    assert "the same tensor in the network" in refusal(untied, "bad-shape", "path", Shared())


class Extra(nn.Linear):
    """A module with an extra state."""

    extra = torch.tensor(3.0)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def test_an_extra_state_is_saved_if_it_is_a_tensor(tmp_path):
    network, path = Extra(2, 2), tmp_path / "w.safetensors"
    weights.check_saved(network)
    weights.save_weights(network, path)
    other = Extra(2, 2)
    other.extra = torch.tensor(0.0)
    weights.load_weights(other, path)
    assert float(other.extra) == 3
    network.extra = {"calls": 3}
    for refused in (lambda: weights.check_saved(network), lambda: weights.load_weights(network, path)):
        with pytest.raises(BadInput) as error:
            refused()
        assert (error.value.code, error.value.field) == ("unsupported", "model")


# ---- any nesting and any names

WORDS = [
    "model",
    "net",
    "module",
    "_orig_mod",
    "state_dict",
    "backbone",
    "a b",
    "ema",
    "swa_model",
    "teacher",
    "x.y",
    "0",
    "1",
]


def mutated(draw):
    """A file of the good network, and perhaps of another one, in random containers and under random names."""

    def names(state):
        for _ in range(draw.randrange(3)):
            change = draw.choice(["prefix", "prefix", "infix", "some"])
            word = draw.choice(WORDS)
            if change == "prefix":
                state = prefixed(state, f"{word}.")
            elif change == "infix":
                state = infixed(state, draw.choice(["module", "_orig_mod", word]), draw.randrange(1, 3))
            else:
                state = {f"{word}.{name}" if draw.random() < 0.2 else name: tensor for name, tensor in state.items()}
        return state

    def nested(state):
        for _ in range(draw.randrange(4)):
            beside = draw.choice(
                [{}, {"epoch": 3}, EXTRAS, {"loss": torch.tensor(0.1)}, {"mean": 0.1}, {"hist": [0.1, 0.2]}]
            )
            state = {draw.choice(WORDS): state, **beside} if draw.random() < 0.9 else [state]
        return state

    state = names(GOOD)
    if draw.random() < 0.3:
        extra = draw.choice(["criterion.weight", "n_averaged", "0.weight", "6.weight", "mean", "metric.std", "steps"])
        state = {**state, extra: torch.ones(draw.choice([(), (1,), (3,), (2, 2)]))}
    file = nested(state)
    if draw.random() < 0.3:  # a network that is not meant, and whose names do not say that it is averaged
        file = {draw.choice(["ema", "swa_state_dict", "best", "state_dict"]): file}
        file |= {draw.choice(["raw", "current_model", "discriminator"]): prefixed(OTHER, draw.choice(["", "model."]))}
    return OrderedDict(file) if isinstance(file, dict) and draw.random() < 0.2 else file


def outcome(content, stated):
    """ "right", "wrong", or the field of the refusal."""
    network = tiny_with_statistics(3)
    try:
        read(content, network, normalisation=stated)
    except BadInput as error:
        return error.field
    state = network.state_dict()  # evaluations never look at the counter
    return "right" if same(network, {**GOOD, COUNTER: state[COUNTER]}) else "wrong"


def test_five_hundred_mutations_are_read_right_or_refused():
    draw = random.Random(0)
    outcomes = Counter(outcome(mutated(draw), draw.choice([None, None, "none"])) for _ in range(500))
    assert outcomes.keys() == {"right", "path", "weights_key", "normalisation"}
    assert 150 < outcomes["right"] < 450
