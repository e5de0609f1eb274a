"""All neighbours in one process, in several import orders; and none of them."""

import json
import subprocess
import sys

import pytest
from original_autoattack import STAND_INS

pytestmark = pytest.mark.integration

NAMES = ("advertorch", "torchattacks", "robustbench", "autoattack", "foolbox", "art", "atent_ext")
ORDERS = (
    NAMES,
    NAMES[::-1],
    ("foolbox", "robustbench", "atent_ext", "advertorch", "art", "autoattack", "torchattacks"),
)

TOGETHER = """
import importlib, sys, warnings
warnings.simplefilter("ignore")  # the neighbours', while they are imported and run
from atent_ext import compat

REPAIRED = {"advertorch": compat.advertorch, "robustbench": compat.robustbench, "autoattack": compat.autoattack_class}
for name in sys.argv[1:]:
    REPAIRED.get(name, lambda: importlib.import_module(name))()

import numpy as np, torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10)).eval()
x = torch.rand(4, 1, 4, 4)
y = model(x).argmax(1)

import foolbox, robustbench, torchattacks
from advertorch.attacks import LinfPGDAttack
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from robustbench.utils import clean_accuracy
from atent_ext import LinfATENTAttack
from atent_ext.integrations import art as our_art, foolbox as our_foolbox, robustbench as our_robustbench
from atent_ext.integrations import torchattacks as our_torchattacks

attack = compat.autoattack_class()(model, norm="Linf", eps=0.3, seed=0, verbose=False, version="custom",
                                   attacks_to_run=["apgd-ce"])
seen = foolbox.PyTorchModel(model, bounds=(0, 1))
classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 10, clip_values=(0, 1))
found = {
    "advertorch": LinfPGDAttack(model, eps=0.3).perturb(x, y),
    "torchattacks": torchattacks.PGD(model, eps=0.3, alpha=0.1)(x, y),
    "autoattack": attack.run_standard_evaluation(x, y),
    "foolbox": foolbox.attacks.LinfPGD()(seen, x, y, epsilons=0.3)[1],
    "art": ProjectedGradientDescent(classifier, eps=0.3, verbose=False).generate(x.numpy(), y.numpy()),
    "ours": LinfATENTAttack(model, eps=0.3).perturb(x, y),
    "ours in torchattacks": our_torchattacks.ATENT(model, eps=0.3, alpha=0.1)(x, y),
    "ours in foolbox": our_foolbox.LinfATENTAttack(steps=10, rel_stepsize=0.3)(seen, x, y, epsilons=0.3)[1],
    "ours in art": our_art.ATENTAttack(classifier, eps=0.3, verbose=False).generate(x.numpy(), y.numpy()),
}
for name, adversaries in found.items():
    adversaries = torch.as_tensor(adversaries)
    assert clean_accuracy(model, adversaries, y) == 0, name  # a linear model withstands nothing at this radius
    assert (adversaries - x).abs().max() <= 0.3 + 1e-6, name
"""

# What a missing package looks like: no finder knows it.
BLOCKED = """
import importlib, importlib.machinery, sys
names = {"torchattacks", "robustbench", "foolbox", "art", "mair"}
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in names else find(name, *rest))
"""

CORE = """
import torch
from torch import nn
import atent_ext
from atent_ext import ATENT, LinfATENTAttack, compat
from atent_ext.core.errors import MissingExtra

model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
x, y = torch.rand(4, 1, 4, 4), torch.arange(4)
LinfATENTAttack(model, eps=0.1).perturb(x, y)
for term in ATENT(eps=0.1, steps=2, step_size=0.05)(model, x, y):
    term.backward()
"""

EXTRAS = ("torchattacks", "foolbox", "art", "robustbench")
CORE += """
def ask(name):
    adapter = importlib.import_module(f"atent_ext.integrations.{name}")
    adapter.register("mine", dataset="digits", threat_model="Linf", model="digits-cnn")

for name in ("torchattacks", "foolbox", "art", "robustbench"):
    try:
        ask(name)
    except MissingExtra as error:
        print(error)
"""

FAILED = """
import warnings
warnings.simplefilter("ignore")
for name in ("advertorch", "robustbench"):
    try:
        __import__(name)
        raise SystemExit(f"{name} needs no repair any more")
    except ImportError:
        pass
from atent_ext import compat
compat.advertorch()
compat.robustbench()
import advertorch.attacks, robustbench.utils
"""


CASES = {f"together: {' '.join(order)}": (TOGETHER, order) for order in ORDERS}
# The original AutoAttack (a stand-in) is found before our own repair puts pyautoattack in its place.
ORIGINAL = (
    f"import sys; sys.path.insert(0, {str(STAND_INS)!r})\n"
    + TOGETHER
    + """
assert isinstance(attack, sys.modules["autoattack"].AutoAttack)
assert compat.autoattack_package() == ("autoattack", "0.1")
assert robustbench.eval.AutoAttack is type(attack)
"""
)
CASES |= {f"with the original: {' '.join(order)}": (ORIGINAL, order) for order in ORDERS}
CASES |= {"failed": (FAILED, ()), "none": (BLOCKED + CORE, ())}

FORKING = """
import json, os, sys, traceback
import numpy, scipy.stats, torch, torchvision
for name, (code, arguments) in json.load(sys.stdin).items():
    read, write = os.pipe()
    if not os.fork():
        os.dup2(write, 1), os.dup2(write, 2)
        sys.argv, status = ["-c", *arguments], 0
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    os.close(write)
    with os.fdopen(read) as output:
        text = output.read()
    print(json.dumps([name, os.waitstatus_to_exitcode(os.wait()[1]), text]))
"""
"""Each case in a process of its own; what none of them is about is imported once."""


@pytest.fixture(scope="module")
def ran():
    """Case -> exit code and output."""
    command = [sys.executable, "-c", FORKING]
    done = subprocess.run(command, input=json.dumps(CASES), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return {name: (code, text) for name, code, text in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("which", ["together", "with the original"])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_all_neighbours_import_and_run_in_one_process(ran, order, which):
    code, text = ran[f"{which}: {' '.join(order)}"]
    assert code == 0, text


def test_a_failed_import_of_the_user_does_not_stand_in_the_way(ran):
    code, text = ran["failed"]
    assert code == 0, text


def test_without_the_extras_the_core_works_and_asking_for_one_names_it(ran):
    code, text = ran["none"]
    assert code == 0, text
    lines = text.splitlines()
    assert len(lines) == len(EXTRAS)
    for name, line in zip(EXTRAS, lines, strict=True):
        assert f"pip install 'atent-ext[{name}]'" in line
