"""`atent check` on networks whose fault is known."""

import json

import numpy as np
import pytest
import torch
from commands import atent, refused
from torch import nn

from atent_ext.attacks.spec import Passes
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.splits import Split
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject
from atent_ext.submissions import diagnosis
from atent_ext.submissions.diagnosis import diagnose

CLASSES = 5
LEVELS = (torch.arange(CLASSES) + 0.5) / CLASSES
MEAN, STD = 0.1307, 0.3081


def gray(count=60):
    """Images whose gray tells the class, sorted by class, with a little noise."""
    labels = torch.arange(count) * CLASSES // count
    noise = 0.05 * torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Split(LEVELS[labels].view(-1, 1, 1, 1) + noise, labels)


class Levels(nn.Module):
    """The nearest level to the mean gray, after `change`; 20 times the (negative) squared distance as logits."""

    def __init__(self, change=lambda x: x, out=lambda z: z):
        super().__init__()
        self.change, self.out = change, out
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        gray = self.change(x).flatten(1).mean(1, keepdim=True)
        return self.out(-self.scale * (gray - LEVELS - 0.025) ** 2)


def look(network, split=None, **options):
    about = About(name="gray", model="levels", data="gray")
    return diagnose(Subject(network.eval(), split or gray(), Threat(norm="Linf", eps=0.0), about), **options)


def failed(found):
    return {check.name: check.said for check in found.checks if check.passed is False}


def test_a_sound_network_passes_and_everything_is_known_of_it():
    found = look(Levels())
    assert (failed(found), found.good, found.right) == ({}, True, 32)
    assert found.parameters == 1
    expected = {"count": 60, "looked_at": 32, "shape": [1, 2, 2], "classes": CLASSES}
    assert {name: found.images[name] for name in expected} == expected
    assert 0.1 <= found.images["lowest"] < found.images["highest"] <= 1
    assert all(value > 0 for value in found.passes.values())
    assert list(found.passes) == ["forward", "gradient"]
    assert found.seconds["autoattack"] > found.seconds["pgd"] > found.seconds["clean"] > 0


class Noisy(Levels):
    def forward(self, x):
        return super().forward(x) + 0.01 * torch.randn(1)


FAULTS = {
    "softmax inside": (Levels(out=lambda z: z.softmax(1)), "logits", "leave the softmax out"),
    "normalisation missing": (Levels(lambda x: x * STD + MEAN), "normalisation", "normalisation is probably missing"),
    "normalised twice": (Levels(lambda x: (x - MEAN) / STD), "normalisation", "normalised twice"),
    "of 0-255": (Levels(lambda x: x / 255), "normalisation", "values of 0-255"),
    "random": (Noisy(), "determinism", "differ from call to call"),
    "no gradient": (Levels(lambda x: x.detach()), "finite gradient", "no gradient"),
    "another order of classes": (Levels(out=lambda z: z.roll(1, 1)), "class order", "not that of the data"),
    "one vector for all": (Levels(out=lambda z: z.flatten()), "shape", "logits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault):
    network, check, words = FAULTS[fault]
    found = look(network)
    assert words in failed(found)[check]
    assert set(failed(found)) <= {check, "softmax", "nonzero gradient"}
    assert not found.good


def test_of_a_network_without_gradients_only_forward_passes_are_timed():
    found = look(Levels(lambda x: x.detach()))
    assert (list(found.passes), found.right) == (["forward"], 32)
    assert found.seconds["clean"] > 0
    assert found.seconds["autoattack"] is None


def test_of_a_network_that_cannot_be_run_nothing_is_estimated():
    found = look(Levels(out=lambda z: z.flatten()))
    assert (found.right, dict(found.passes), set(found.seconds.values())) == (None, {}, {None})


def test_the_network_comes_back_as_it_was():
    network = Levels().train()
    network.scale.grad = torch.tensor(3.0)
    state = torch.get_rng_state()
    look(network.train())
    assert (network.scale.requires_grad, network.scale.grad.item(), network.scale.item()) == (True, 3.0, 20.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_chance_is_no_finding():
    """A network that guesses is better in some reading, and in some order of the classes, by chance."""
    torch.manual_seed(0)
    guessing = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    split = Split(torch.rand(64, 1, 2, 2), torch.randint(0, CLASSES, (64,)))
    assert not failed(look(guessing, split, n=64)).keys() & {"normalisation", "class order"}


def test_a_single_image_is_not_enough():
    with pytest.raises(BadInput) as error:
        look(Levels(), gray().take(1))
    assert (error.value.code, error.value.field) == ("bad-shape", "images")


def test_the_passes_of_protocols_are_counted():
    expected = {
        "clean": Passes(0, 1),
        "quick": Passes(1 + 20, 1 + 3 + 3),
        "pgd": Passes(1 + 400, 1 + 3 + 12),
        "autoattack": Passes(40 + 101 * 10 + 900, 1 + 3 + 5000 + 900),
        "entropy": Passes(4 * 601, 1 + 2),
    }
    assert {name: diagnosis._passes(load_protocol(name), 10) for name in expected} == expected


def test_the_command_takes_what_eval_takes_and_says_the_same_as_json(tmp_path):
    split = gray()
    np.savez(tmp_path / "gray.npz", x_test=split.images.numpy(), y_test=split.labels.numpy())
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Make(nn.Module):\n"
        "    def __init__(self, mean=0.0, std=1.0):\n"
        "        super().__init__()\n"
        "        self.mean, self.std = mean, std\n"
        "        self.scale = nn.Parameter(torch.tensor(20.0))\n"
        "    def forward(self, x):\n"
        "        gray = (x * self.std + self.mean).flatten(1).mean(1, keepdim=True)\n"
        f"        return -self.scale * (gray - torch.arange({CLASSES}) / {CLASSES} - 0.125) ** 2\n"
    )
    command = ["check", f"{tmp_path}/net.py:Make", "--dataset", f"npz:{tmp_path}/gray.npz"]
    done = atent(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "32 of 60 images 1×2×2" in done.stdout
    assert "images a second" in done.stdout
    needed = [*command, "--model-arg", f"mean={MEAN}", "--model-arg", f"std={STD}"]
    found = json.loads(atent(*needed, "--json").stdout)
    assert (found["good"], [one["name"] for one in found["checks"] if one["passed"] is False]) == (
        False,
        ["normalisation"],
    )
    assert "note: no weights file is given" in atent(*needed).stdout
    stated = atent(*needed, "--normalisation", f"{{mean: [{MEAN}], std: [{STD}]}}", "--json")
    assert (stated.returncode, json.loads(stated.stdout)["good"]) == (0, True)
    refused(atent("check", "nowhere.pt", "--dataset", "digits"), "nowhere.pt does not exist")
