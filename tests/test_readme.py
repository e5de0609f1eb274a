"""Every snippet of README and guide is run, in one folder: commands with smaller settings, Python as it is."""

import gzip
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import warm
from commands import atent
from original_autoattack import STAND_INS
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent
GUIDE = ("train", "evaluate", "attack", "compare", "verify", "extend", "devices", "reproduce")
PIPELINE = ("advertorch", "torchattacks", "autoattack", "robustbench", "foolbox", "art", "mair")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / "guide" / f"{name}.md" for name in GUIDE)]
PAGES += [ROOT / "docs" / "guide" / "pipeline" / f"{name}.md" for name in PIPELINE]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
TWO = "torchrun --nproc-per-node 2 -m"
QUICK = "--set epochs=1 --set objective.steps=1 --set validation.count=100"
RUN = "atent train mnist-linf-atent-fast --set epochs=2 --seed 1"
IBP = "atent train mnist-linf-ibp --set epochs=12 --set eps_ramp=0.3"
SHARED_RUN = f"{TWO} atent_ext train mnist-linf-pgd-at-fast"
PROGRAM = "atent export runs/mnist-linf-atent-fast --to pt2 --out model.pt2"
CARD = "atent verify mine --n 500"
SUBMISSION = "atent submission new runs/mnist-linf-atent-fast --out mine --authors 'A. Author' --license MIT"
EVAL_OWN = "atent eval net.py:make --weights w.pth --dataset folder:images --eps 8/255"
SENT = "--out ours --authors A --license MIT"
OWN = f"atent submission new net.py:make --weights w.pth --dataset npz:own.npz --eps 0.1 {SENT}"
# What each command is run with on top; one that is not listed here fails the test.
SMALLER = {
    "atent quickstart": "--n 4 --set epochs=1 --set batch_size=128 --set validation.count=100",
    "atent ls recipes": "",
    "atent show mnist-linf-atent-fast": "",
    RUN: QUICK,
    "atent train mnist-linf-atent-fast --resume": "",
    "atent eval runs/mnist-linf-atent-fast --n 500": "--n 4",
    "atent eval runs/mnist-linf-atent-fast --n 50": "--n 4",
    IBP: "--set epochs=1 --set validation.count=100 --set \"mixed_precision='no'\"",
    "atent eval runs/mnist-linf-ibp --n 1000": "--n 4 --protocol quick",
    "atent eval runs/mnist-linf-atent-fast --threat Linf:0.3 --threat L2:2 --n 500": "--n 4 --protocol quick",
    SHARED_RUN: QUICK,
    f"{TWO} -- atent_ext eval runs/mnist-linf-pgd-at-fast --n 1000": "--n 4 --chunk 2 --protocol quick",
    "atent reproduce --list": "",
    "atent reproduce v2-table2": "--row SGD",
    "atent reproduce v2-table2 --scale cpu --data-root DATA": "",
    "atent plot curve runs/mnist-linf-atent-fast --out curve.png": "--n 4",
    "atent eval model.safetensors --model small-cnn --dataset mnist --eps 0.3 --n 1000": "--n 4",
    EVAL_OWN: "--n 4 --protocol quick",
    "atent check net.py:make --weights w.pth --dataset folder:images": "--n 4",
    f"{EVAL_OWN} --plan": "--n 4 --protocol quick",
    f"{EVAL_OWN} --n 500 --out own.json": "--n 4 --protocol quick",
    f"{EVAL_OWN} --protocol quick --n 100": "--n 4",
    f"{EVAL_OWN} --until-width 4": "--n 4 --protocol quick",
    "atent export net.py:make --weights w.pth --dataset folder:images --to pt2 --out own.pt2": "",
    "atent ls attacks": "",
    PROGRAM: "",
    "atent eval model.pt2 --dataset mnist --eps 0.3": "--n 4",
    "atent certify runs/mnist-linf-atent-fast --sigma 0.25 --n 1000 --images 100": "--n 50 --images 2",
    "atent certify model.safetensors --model small-cnn --dataset mnist --sigma 0.25 --skip 20": "--n 50 --images 1",
    "atent ls zoo": "",
    "atent eval mnist-linf-atent --protocol clean --n 1000": "--n 4",
    SUBMISSION: "",
    CARD: "--n 4",
    "atent verify mine --n 50": "--n 4",
    OWN: "",
    "atent verify ours --dataset npz:own.npz": "--n 4 --protocol quick",
    "atent board --out board": "",
    "atent submit mine.card.json --to robustbench": "",
    "atent eval runs/mnist-linf-atent-fast --protocol autoattack+atent --n 500": "--n 4",
    "atent export runs/mnist-linf-atent-fast --to robustbench --out models": "",
    "atent eval robustbench:Carmon2019Unlabeled --dataset cifar10 --eps 8/255 --model-dir models": "",
}
# Part of a command -> the command that makes what it needs.
NEEDS = {
    "model.safetensors": RUN,
    "runs/mnist-linf-atent-fast": RUN,
    "mnist-linf-atent-fast --resume": RUN,
    "runs/mnist-linf-pgd-at-fast": SHARED_RUN,
    "runs/mnist-linf-ibp": IBP,
    "eval model.pt2": PROGRAM,
    "verify mine": SUBMISSION,
    "verify ours": OWN,
    "mine.card.json": CARD,
}
REFUSED = {
    "robustbench:Carmon2019Unlabeled": "models/cifar10/Linf/Carmon2019Unlabeled.pt",
    "--scale cpu": "n is 15000, but there are only 200 examples",  # of the small MNIST
}
PROGRAMS = ("pt2", "submission new net.py:make", "verify ours")
"""Commands that write an exported program, or read one that an earlier command wrote."""
# .ci/run installs; cli/test_compare.py compares, leaderboard/test_view.py views, subjects/test_hub.py has a hub.
# submissions/test_verification.py and test_evidence.py have strangers, core/test_entry_points.py has another's attack.
SENT_BY_THEM = "atent submission new net.py:make --weights w.pth --dataset cifar10"
STRANGERS = ("atent verify theirs", SENT_BY_THEM, "atent adversaries")
ANOTHERS = "atent eval runs/mnist-linf-atent-fast --protocol mine.yaml"
ELSEWHERE = ("pip ", "python ", "v/bin/", "atent compare ", "atent view ", "atent eval hf:", *STRANGERS, ANOTHERS)

PREAMBLE = """
import torch
from atent_ext import data
torch.manual_seed(0)
split = data.load("mnist").test
x, y = images, labels = split.images[:4], split.labels[:4]
loader = [(x, y)]
model, another_model = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)) for _ in range(2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
"""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands():
    lines = [line.partition("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith(ELSEWHERE)))


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small MNIST: scikit-learn's digits, enlarged to 28 × 28."""
    home = tmp_path_factory.mktemp("readme")
    raw = home / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    bunch = load_digits()
    at = np.arange(28) * 8 // 28
    images = bunch.images[:, at][:, :, at] * 255 / 16
    for name, part in {"train": slice(0, 700), "t10k": slice(700, 720)}.items():
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(images[part]))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(bunch.target[part]))
    own_network(home)
    return home


def own_network(home):
    """A user's own file, its weights, and a folder of images."""
    layers = "nn.Sequential(nn.Flatten(), nn.Linear(192, 2))"
    (home / "net.py").write_text(f"from torch import nn\n\n\ndef make():\n    return {layers}\n")
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).state_dict(), home / "w.pth")
    images = np.random.default_rng(0).random((4, 3, 8, 8), dtype=np.float32)
    np.savez(home / "own.npz", x_test=images, y_test=np.arange(4) % 2)
    pixels = np.random.default_rng(0).integers(256, size=(2, 2, 2, 8, 8, 3), dtype=np.uint8)
    for part, of_part in zip(("train", "test"), pixels, strict=True):
        for name, of_class in zip("ab", of_part, strict=True):
            (home / "images" / part / name).mkdir(parents=True)
            for number, image in enumerate(of_class):
                Image.fromarray(image).save(home / "images" / part / name / f"{number}.png")


def process(folder, *arguments, **more):
    # RobustBench writes its messages, and libraries of its own warn while they are imported.
    environment = os.environ | {"ATENT_DATA": str(folder / "data")} | more
    command = [sys.executable, *arguments]
    with warm.starts() if arguments[0] == forked.__file__ else nullcontext():
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def ran(folder):
    """A function that runs a command of the README once, after those that make what it needs."""
    done = {}

    def run(command):
        if command not in done:
            for made in {made for part, made in NEEDS.items() if part in command and made != command}:
                assert run(made).returncode == 0
            done[command] = once(command)
        return done[command]

    def once(command):
        text = f"{command} {SMALLER[command]}".replace("DATA", "data").replace("--download", "")
        program, *arguments = shlex.split(text)
        if program == "torchrun":
            return process(folder, forked.__file__, *arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("ATENT_DATA", "data")
            return atent(*arguments)

    return run


def test_the_commands_are_the_pages():
    assert set(commands()) == set(SMALLER)


def test_ci_runs_the_tests_as_the_readme_says():
    found = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md", ".ci/run")]
    assert len({re.search(r"-m pytest (-n \d+ --dist \w+)", text)[1] for text in found}) == 1


@pytest.mark.parametrize("command", SMALLER)
def test_every_command_runs(folder, ran, command, request):
    if any(text in command for text in PROGRAMS):
        request.getfixturevalue("writes_programs")
    if "model.safetensors" in command:
        assert ran(RUN).returncode == 0
        weights = (folder / "runs" / "mnist-linf-atent-fast" / "weights.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights)
    done = ran(command)
    refused = next((message for subject, message in REFUSED.items() if subject in command), None)
    assert done.returncode == (2 if refused else 0), done.stderr
    assert refused is None or refused in done.stderr


def test_every_python_snippet_runs_after_the_commands(folder, ran):
    assert ran(RUN).returncode == 0
    snippets = blocks("python")
    assert len(snippets) >= 14
    done = process(folder, "-c", PREAMBLE + "\n".join(snippets))
    assert done.returncode == 0, done.stderr


def test_the_autoattack_snippet_runs_where_the_original_is_installed(folder, ran):
    assert ran(RUN).returncode == 0
    (snippet,) = (text for text in blocks("python") if "autoattack_class" in text)
    path = f"{STAND_INS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = process(folder, "-c", PREAMBLE + snippet, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
