"""Which result of a network is read as logits, and networks of other precisions."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from atent_ext.core import outputs
from atent_ext.core.errors import BadInput

X = torch.rand(3, 4)
LOGITS, FEATURES, HIDDEN = torch.rand(3, 5), torch.rand(3, 7), torch.rand(3, 2, 2)
Two = namedtuple("Two", ["scores", "hidden"])


@dataclass
class Output:
    loss: None
    logits: torch.Tensor
    features: torch.Tensor


class Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize(
    ("value", "output", "name"),
    [
        (LOGITS, None, None),
        ((LOGITS, HIDDEN), None, "0"),
        ([HIDDEN, LOGITS, LOGITS[:, 0]], None, "1"),
        ((FEATURES, LOGITS), "1", "1"),
        ({"features": FEATURES, "logits": LOGITS}, None, "logits"),
        ({"features": FEATURES, "out": LOGITS}, "out", "out"),
        (OrderedDict(aux=HIDDEN, out=LOGITS), None, "out"),
        (Output(None, LOGITS, FEATURES), None, "logits"),
        (Two(LOGITS, HIDDEN), None, "scores"),
        (Two(FEATURES, LOGITS), "1", "hidden"),
        ({0: FEATURES, 1: LOGITS}, "1", "1"),
    ],
)
def test_the_logits_are_found_or_named(value, output, name):
    network = Returns(value)
    fitted = outputs.adapted(network, X, output)
    assert torch.equal(fitted.network(X), LOGITS)
    assert fitted.output == name
    assert (fitted.network is network) is (value is LOGITS)
    assert (fitted.notes == ()) is (name is None)


@pytest.mark.parametrize("logit", [torch.tensor([[-0.5], [0.5], [2.0]]), torch.tensor([-0.5, 0.5, 2.0])])
@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: (z, HIDDEN), lambda z: {"logits": z, "features": FEATURES}])
def test_one_logit_is_read_as_two(logit, wrap):
    fitted = outputs.adapted(Returns(wrap(logit)), X)
    assert torch.equal(fitted.network(X), torch.stack([torch.zeros(3), logit.flatten()], 1))
    assert fitted.notes[-1] == "the network has one logit, z; it is read as the two logits (0, z)"


@pytest.mark.parametrize(
    ("value", "output", "code", "field"),
    [
        ((LOGITS, FEATURES), None, "conflict", "output"),
        ((LOGITS[:, 0], HIDDEN, LOGITS[:, :1]), None, "conflict", "output"),
        ({"a": LOGITS}, "b", "unknown-name", "output"),
        ((FEATURES, LOGITS), "2", "unknown-name", "output"),
        ((LOGITS, HIDDEN), "1", "bad-shape", "output"),
        ((HIDDEN, "text"), None, "bad-shape", "logits"),
        (HIDDEN, None, "bad-shape", "logits"),
        (LOGITS, "logits", "unknown-name", "output"),
        (LOGITS.long(), None, "bad-shape", "logits"),
        (None, None, "bad-shape", "logits"),
    ],
)
def test_results_that_could_be_anything_are_refused(value, output, code, field):
    with pytest.raises(BadInput) as error:
        outputs.adapted(Returns(value), X, output)
    assert (error.value.code, error.value.field) == (code, field)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_precision_takes_float32(dtype):
    network = nn.Linear(4, 3).to(dtype)
    fitted = outputs.adapted(network, X)
    x = X.clone().requires_grad_()
    logits = fitted.network(x)
    assert torch.equal(logits, network(X.to(dtype)).to(logits.dtype))
    assert logits.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert torch.autograd.grad(logits.sum(), x)[0].dtype is torch.float32
    assert (str(dtype).removeprefix("torch.") in fitted.notes[0]) is (len(fitted.notes) == 1)
    assert outputs.adapted(fitted.network, X).network is fitted.network  # it is not wrapped twice


def test_images_that_a_network_does_not_take_and_its_state():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert outputs.adapted(network, X).network is network
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(BadInput) as error:
        outputs.adapted(network, torch.rand(3, 5))
    assert (error.value.code, error.value.field) == ("bad-shape", "images")


@pytest.mark.parametrize("kind", [AssertionError, ValueError, TypeError])
def test_a_network_may_refuse_images_by_any_error(kind):
    class Strict(nn.Module):
        def forward(self, x):
            raise kind("224 pixels\nare needed")

    for x, remedy in ((torch.rand(2, 3, 8, 8), "--resize 224"), (X, "give it what it was made for")):
        with pytest.raises(BadInput) as error:
            outputs.adapted(Strict(), x)
        assert (error.value.code, error.value.field) == ("bad-shape", "images")
        shape = ", ".join(map(str, x.shape[1:]))
        assert f"does not take images (N, {shape}): 224 pixels are needed" in str(error.value)
        assert remedy in str(error.value)
