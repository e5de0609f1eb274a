"""Two processes train as one does. This very file is started, too: the programs at its end."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import scripts
import torch
import warm
from forked import forked
from problems import visible
from torch import nn

from atent_ext.core import registry
from atent_ext.core.model_state import seeded
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.objectives import ATENT, MMA
from atent_ext.objectives.mma import Lengths
from atent_ext.training import loop, recipes
from atent_ext.training.run_folder import build_model

pytestmark = pytest.mark.integration

COMMON = ("model.name=double-net", "epochs=3", "batch_size=8", "examples=53", "eps_ramp=0.5", "optimizer.lr=0.05")
"""21 steps, of 8 examples or, at the end of an epoch, of 5, which two processes share as 3 and 2."""
JUDGED = ("validation={count: 20, steps: 1, select: last}",)
SHORT = ("objective.steps=3",)
NOISE = "objective.noise=0.03"

EQUAL = {
    "sgd": ("digits-linf-sgd",),
    "pgd-at": ("digits-linf-pgd-at", *SHORT),
    "trades": ("digits-linf-trades", *SHORT),
    "mart": ("digits-linf-mart", *SHORT),
    "atent": ("digits-linf-atent", *SHORT, NOISE, "objective.alpha=0.5"),
    "mma": ("digits-linf-mma", *SHORT, "optimizer.lr=0.5"),
    "ibp": ("digits-linf-ibp",),
    "pgd-at in ℓ2": ("digits-l2-pgd-at", *SHORT),
    "trades in ℓ2": ("digits-l2-trades", *SHORT),
    "atent in ℓ2": ("digits-l2-atent", *SHORT, NOISE, "objective.alpha=0.5"),
    "gaussian-noise": ("digits-l2-gaussian-noise",),
    "smooth-trades": ("digits-l2-smooth-trades",),
    "smooth-adv": ("digits-l2-smooth-adv", *SHORT),
    "entropy-sgd": ("digits-linf-entropy-sgd", "optimizer.arguments={steps: 2, noise: 0.01}"),
    "crop-flip": ("digits-linf-pgd-at", *SHORT, "augment=crop-flip"),
    "ema": ("digits-linf-pgd-at", *SHORT, "ema=0.9"),
    "pieces": (
        *("digits-linf-pgd-at", *SHORT, "mix={name: cutmix}", "label_smoothing=0.1", "augment=[affine-sharp, cutout]"),
        *("awp={gamma: 0.02}", "accumulate=2", "clip=0.5", "certified={weight: 0.2, share: 0.5, steps: 2}"),
    ),
    "swa": ("digits-linf-pgd-at", *SHORT, "swa=0.3"),
    "a last example alone": ("digits-linf-atent", *SHORT, NOISE, "objective.alpha=0.5", "examples=57"),
    "mma with a last example alone": ("digits-linf-mma", *SHORT, "optimizer.lr=0.5", "examples=57"),
}

RESUMED = {
    "ema": ("digits-linf-trades", *SHORT, "ema=0.9", "augment=crop-flip", "validation.select=robust"),
    "mma": ("digits-linf-mma", *SHORT),
}
"""With BatchNorm and dropout, in float32."""

COMMAND = ("epochs=3", "objective.steps=2", "validation.count=100", "validation.steps=2")


def double_net(classes=10, channels=1):
    """Neither BatchNorm nor dropout."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, classes)).double()


def load(name, *overrides):
    return recipes.load(name, [*COMMON, *JUDGED, *overrides])


@functools.cache
def digits(dtype=torch.float64):
    loaded = datasets.load("digits")
    train = loaded.train.take(100)
    return DataSet("digits", loaded.classes, Split(train.images.to(dtype), train.labels), loaded.test)


def lines(folder):
    parsed = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in parsed]


def weights(folder):
    return safetensors.torch.load_file(folder / "weights.safetensors")


def distance(first, other):
    return max(float((first[name] - other[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What two processes made of the programs at the end of this file: a folder each, exit codes, and their errors."""
    place = tmp_path_factory.mktemp("several")
    done = python(__file__, place)
    assert done.returncode == 0, done.stderr
    return place, json.loads((place / "codes.json").read_text()), done.stderr


def python(*arguments):
    """A process that hangs is an error."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two processes leave no core for a second thread
    command = [sys.executable, *map(str, arguments)]
    with warm.starts():
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def distributed(ran):
    """What two processes made of all the recipes above."""
    place, codes, errors = ran
    assert codes["everything"] == [0, 0], errors
    return place / "everything"


# ---- the same training


@pytest.fixture
def double_net_is_known(monkeypatch):
    monkeypatch.setitem(registry.MODELS, "double-net", f"{Path(__file__).stem}:double_net")


@pytest.mark.parametrize("case", EQUAL)
def test_two_processes_train_as_one(distributed, tmp_path, double_net_is_known, case):
    chosen = load(*EQUAL[case])
    folder = loop.fit(chosen, digits(), tmp_path / "alone")
    with seeded(chosen.seed):
        first = build_model(chosen, digits()).state_dict()
    alone, shared = weights(folder.path), weights(distributed / case)
    assert {tensor.dtype for tensor in shared.values()} == {torch.float64}
    apart, moved = distance(alone, shared), distance(alone, first)
    print(f"{case}: largest difference {apart:.2g}, moved by {moved:.2g}")
    assert apart < 1e-8
    assert moved > 1e-3
    for first, other in zip(lines(folder.path), lines(distributed / case), strict=True):
        assert first.pop("loss") == pytest.approx(other.pop("loss"), abs=1e-8)
        # Each call of the interval bounds checks the network on two examples, however few the call has.
        first.pop("passes", None), other.pop("passes", None)
        assert first == other


def test_one_folder_is_written_and_all_agree_on_its_metrics(distributed):
    for case in EQUAL:
        names = sorted(path.name for path in visible(distributed / case))
        assert names == ["metrics.jsonl", "recipe.yaml", "state.pt", "weights.safetensors"]
        recorded = [json.loads((distributed / f"{case}-{process}.json").read_text()) for process in range(2)]
        assert recorded[0] == recorded[1] == lines(distributed / case)


@pytest.mark.parametrize(("case", "examples"), [("mma", 53), ("mma with a last example alone", 57)])
def test_two_processes_remember_what_one_does(distributed, tmp_path, double_net_is_known, case, examples):
    alone = loop.fit(load(*EQUAL[case]), digits(), tmp_path / "alone").state
    first, other = (torch.load(path)["objective"]["lengths"] for path in (alone, distributed / case / "state.pt"))
    assert first.shape == (examples,)
    assert torch.allclose(first, other, rtol=0, atol=1e-6)
    assert len(first.unique()) > 20


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_of_two_processes_is_the_undisturbed_one_bit_for_bit(distributed, case):
    whole, cut = distributed / f"{case} whole", distributed / f"{case} cut"
    assert (whole / "weights.safetensors").read_bytes() == (cut / "weights.safetensors").read_bytes()
    assert (whole / "state.pt").stat().st_size > 1000
    assert lines(whole) == lines(cut)
    assert len(lines(cut)) == 3
    assert flat(torch.load(whole / "state.pt")["model"]) == flat(torch.load(cut / "state.pt")["model"])


def flat(state):
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def test_processes_meet_once_a_step_not_once_a_term_or_a_pass(distributed):
    counted = json.loads((distributed / "reductions.json").read_text())
    assert counted == [{"steps": 21, "terms": 63, "reductions": 21, "broadcasts": 0}] * 2


def test_what_several_processes_remember_is_merged():
    first, other = Lengths(0.1), Lengths(0.1)
    x, right = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([True, True])
    first.of(torch.tensor([0, 4]), x)
    first.put(torch.tensor([0, 4]), right, torch.tensor([0.5, 0.25]))
    other.of(torch.tensor([2, 1]), x)
    other.put(torch.tensor([2, 1]), ~right | torch.tensor([True, False]), torch.tensor([0.75, 9.0]))
    states = [first.values.clone(), other.values.clone()]
    for lengths in (first, other):
        lengths.merge(states)
        assert lengths.values.tolist() == torch.tensor([0.5, 0.1, 0.75, 0.1, 0.25]).tolist()
    other.put(torch.tensor([0, 3]), right, torch.tensor([0.1, 0.3]))  # back to where it began, and a new one
    first.merge([first.values.clone(), other.values.clone()])
    assert first.values.tolist() == torch.tensor([0.1, 0.1, 0.75, 0.3, 0.25]).tolist()


def test_what_was_restored_is_what_all_remember():
    objective = MMA(eps=0.3, steps=1, least=0.1)
    objective.load_state_dict({"lengths": torch.tensor([0.2, 0.25])})
    objective.merge([{"lengths": torch.tensor([0.3, 0.25])}, {"lengths": torch.tensor([0.2, 0.25])}])
    assert objective.state_dict()["lengths"].tolist() == torch.tensor([0.3, 0.25]).tolist()


# ---- the command, and what goes wrong


def test_the_command_writes_one_run_that_may_be_killed_and_resumed(ran, distributed):
    place, codes, errors = ran
    run = place / "killed"
    assert codes["killed"] == [-9, -9], errors
    assert len(lines(run)) == 1
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "atent_ext")
    done = python(*torchrun, *command(run), "--resume")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained: ") == 1
    assert len(lines(run)) == 3
    assert flat(weights(run)) == flat(weights(distributed / "command"))
    assert lines(run) == lines(distributed / "command")


def test_a_loss_that_breaks_in_one_process_ends_both(ran):
    place, codes, errors = ran
    assert codes["broken"] == [1, 1]
    assert "NonFiniteLoss: the loss is nan at epoch 1, step 3; no epoch was finished" in errors
    assert [path.name for path in visible(place / "broken" / "run")] == ["recipe.yaml"]


# ---- what the two processes do


class Notes(loop.Silent):
    """Keeps an epoch's metrics; may stop the run after a step."""

    def __init__(self, stop_after=0):
        self.steps, self.stop_after, self.recorded = 0, stop_after, []

    def step(self, loss):
        self.steps += 1
        if self.steps == self.stop_after:
            raise KeyboardInterrupt

    def epoch(self, metrics):
        self.recorded.append({key: value for key, value in metrics.items() if key != "seconds"})


def everything(folder):
    """Train all the recipes above, two processes together."""
    process = int(os.environ["RANK"])
    for case, settings in EQUAL.items():
        notes = Notes()
        loop.fit(load(*settings), digits(), folder / case, reporter=notes)
        (folder / f"{case}-{process}.json").write_text(json.dumps(notes.recorded))
    for case, settings in RESUMED.items():
        chosen = load(*settings, "model.name=tiny-net")
        loop.fit(chosen, digits(torch.float32), folder / f"{case} whole")
        try:
            loop.fit(chosen, digits(torch.float32), folder / f"{case} cut", reporter=Notes(stop_after=10))
        except KeyboardInterrupt:
            loop.fit(chosen, digits(torch.float32), folder / f"{case} cut", resume=True)
    loop.fit(recipes.load("digits-linf-atent", COMMAND), datasets.load("digits"), folder / "command")
    count_reductions(folder)


def count_reductions(folder):
    """How often ATENT's gradients were reduced, as the hook that reduces them sees it, and BatchNorm's buffers sent.

    The net fits one bucket.
    """
    from accelerate.utils import gather_object
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    counted, call = dict.fromkeys(("steps", "terms", "reductions", "broadcasts"), 0), ATENT.__call__
    sync = DistributedDataParallel._sync_buffers

    def counting(group, bucket):
        counted["reductions"] += 1
        return allreduce_hook(group, bucket)

    def sending(self):
        counted["broadcasts"] += 1
        sync(self)

    def spy(self, model, *arguments, **options):
        if not counted["steps"]:
            model.register_comm_hook(None, counting)
        counted["steps"] += 1
        for term in call(self, model, *arguments, **options):
            counted["terms"] += 1
            yield term

    ATENT.__call__, DistributedDataParallel._sync_buffers = spy, sending
    loop.fit(load(*EQUAL["atent"], "model.name=tiny-net"), digits(torch.float32), folder / "counted")
    everyone = gather_object([counted])
    (folder / "reductions.json").write_text(json.dumps(everyone))


def command(folder):
    options = [part for setting in COMMAND for part in ("--set", setting)]
    return "train", "digits-linf-atent", *options, "--out", str(folder)


def killed(folder):
    """The command, which is killed in its second epoch: an epoch has 21 steps."""
    scripts.module("stress/signal_at").main("SIGKILL", "step=30", os.devnull, *command(folder))


def broken(folder):
    """Plain training whose loss is NaN in the third step of the second process alone."""
    from atent_ext.objectives import standard

    calls, cross_entropy = [], standard.cross_entropy

    def breaking(logits, y):
        calls.append(1)
        return cross_entropy(logits, y) * (float("nan") if len(calls) == 3 and os.environ["RANK"] == "1" else 1)

    standard.cross_entropy = breaking
    loop.fit(load("digits-linf-sgd"), digits(), folder / "run")


if __name__ == "__main__":
    registry.MODELS |= {"double-net": "test_several_processes:double_net", "tiny-net": "problems:tiny_net"}
    digits()  # here, so that what reads them is imported once for all processes
    place, codes = Path(sys.argv[1]), {}
    for program in (everything, killed, broken):
        codes[program.__name__] = forked(program, place / program.__name__)
    (place / "codes.json").write_text(json.dumps(codes))
