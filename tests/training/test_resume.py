"""Runs that stop and go on, what lies in their folder, and weights that a run starts from."""

import os
import signal
from collections import Counter

import pytest
import torch
from problems import visible
from safetensors.torch import load_file
from scripts import started
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_runs import ENTROPY_SGD, STEPS, Watch, metrics, recipe, refusal, same, stop_after, weights

from atent_ext.core import registry
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.models import weights as network_weights
from atent_ext.storage import files
from atent_ext.training import loop, recipes

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "tiny_net")


# ---- resume


CASES = {
    "sgd": ("sgd",),
    "pgd-at": ("pgd-at",),
    "trades": ("trades",),
    "mart": ("mart",),
    "atent": ("atent",),
    "atent in ℓ2": ("atent", "objective.norm=L2", "threat.norm=L2", "threat.eps=0.15"),
    "ema": ("pgd-at", "ema=0.9"),
    "adam": ("sgd", "optimizer.name=adam", "optimizer.lr=1e-3"),
    "constant": ("sgd", "schedule.name=constant"),
    "multi-step": ("sgd", "schedule={name: multi-step, milestones: [1, 2]}"),
    "crop-flip": ("sgd", "augment=crop-flip"),
    "bf16": ("atent", "mixed_precision=bf16", "ema=0.9"),
    "last batch smaller": ("sgd", "batch_size=48"),
    "mma": ("pgd-at", "objective={name: mma, eps: 0.15, steps: 2, least: 0.03}"),
    "entropy-sgd": ("sgd", ENTROPY_SGD),
    "adamw, cosine, clipped, in parts": (
        *("sgd", "optimizer={name: adamw, lr: 0.01}", "schedule={name: cosine, warmup: 0.2}"),
        *("clip=0.5", "accumulate=2"),
    ),
    "perturbed and mixed": (
        *("atent", "awp={gamma: 0.01, start: 0.4}", "mix={name: cutmix}", "label_smoothing=0.1"),
        "augment=[affine-sharp, cutout]",
    ),
    "averaged": ("sgd", "swa=0.3", "optimizer={lr: 0.1, nesterov: true}"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(tmp_path, tiny, case):
    chosen = recipe(*CASES[case])
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", reporter=stop_after(STEPS + 2))
    assert len(metrics(loop.RunFolder(tmp_path / "cut"))) == 1
    resumed = loop.fit(chosen, tiny, tmp_path / "cut", resume=True)
    same(whole, resumed)
    assert [line["epoch"] for line in metrics(resumed)] == [1, 2, 3]


@pytest.mark.parametrize("average", [(), ("ema=0.9",)])
def test_a_run_of_shared_weights_resumes_as_any_other(tmp_path, tiny, monkeypatch, average):
    """safetensors refuses tensors that share memory; the epoch used to be lost, and to resume it, too."""
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:Shared")
    chosen = recipe("sgd", "epochs=2", *average)
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", reporter=stop_after(STEPS + 2))
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))
    network = whole.load_model(tiny)
    assert network.first.weight is network.second.weight
    assert network.model is network.attacker[0]
    assert torch.equal(network.model[1].weight, load_file(whole.weights)["attacker.0.1.weight"])


def test_a_network_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(registry.MODELS, "tiny-net", "problems:ExtraState")
    watch = Watch()
    message = refusal("unsupported", "model", loop.fit, recipe(), tiny, tmp_path / "run", reporter=watch)
    assert "'_extra_state'" in message
    assert watch.losses == []
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_holds_the_state_of_the_objective(tmp_path, tiny):
    folder = loop.fit(recipe(*CASES["mma"]), tiny, tmp_path)
    lengths = files.load_state(folder.state)["objective"]["lengths"]
    assert lengths.shape == (160,)
    assert len(lengths.unique()) > 20
    assert 0 < lengths.min() <= lengths.max() <= 1.05 * 0.15 + 1e-6
    plain = loop.fit(recipe(), tiny, tmp_path / "plain")
    assert "objective" not in files.load_state(plain.state)


@pytest.mark.parametrize("steps", [1, STEPS, STEPS + 1, 2 * STEPS + 3])
def test_a_run_may_stop_anywhere_and_more_than_once(tmp_path, tiny, steps):
    chosen = recipe("atent")
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    for resume in (False, True):  # the second stop comes at the same step after the resume, if as many are left
        reporter = stop_after(min(steps, STEPS - 1))
        with pytest.raises(KeyboardInterrupt):
            loop.fit(chosen, tiny, tmp_path / "cut", resume=resume, reporter=reporter)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", resume=True, reporter=stop_after(steps))
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


@pytest.mark.parametrize("broken", ["save_weights", "save_state", "write"])
def test_a_run_may_stop_between_the_files_of_a_checkpoint(tmp_path, tiny, monkeypatch, broken):
    chosen, calls = recipe("pgd-at", "validation.select=last"), Counter()
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    owner = network_weights if broken == "save_weights" else files
    real = getattr(owner, broken)

    def failing(content, path):
        calls[path.name] += 1
        if calls[path.name] == 2:
            raise KeyboardInterrupt
        real(content, path)

    def failing_write(path, content):
        calls[path.name] += 1
        if path.name == "metrics.jsonl" and calls[path.name] == 2:
            raise KeyboardInterrupt
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(owner, broken, failing_write if broken == "write" else failing)
        with pytest.raises(KeyboardInterrupt):
            loop.fit(chosen, tiny, tmp_path / "cut")
    assert len(metrics(loop.RunFolder(tmp_path / "cut"))) == 1
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


def test_a_finished_run_is_resumed_to_itself(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    watch = Watch()
    loop.fit(recipe(), tiny, tmp_path, resume=True, reporter=watch)
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before
    assert (watch.starts, watch.losses) == ([(recipe().name, 3, STEPS, 3)], [])
    (tmp_path / "metrics.jsonl").unlink()  # as after a kill between the last state and its metrics
    loop.fit(recipe(), tiny, tmp_path, resume=True)
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before
    assert folder.recipe() == recipe()


def test_a_run_killed_in_its_second_epoch_is_resumed_bit_for_bit(tmp_path):
    settings = ("epochs=3", "objective.steps=2", "validation.count=100", "validation.steps=2")
    chosen, digits = recipes.load("digits-linf-atent", settings), datasets.load("digits")
    whole, cut = loop.fit(chosen, digits, tmp_path / "whole"), loop.RunFolder(tmp_path / "cut")
    options = [part for setting in settings for part in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # else sums are rounded otherwise
    command = ("train", "digits-linf-atent", *options, "--out", cut.path)
    killed = started(signal.SIGKILL, {"step": 30}, *command, own=True, env=environment)  # an epoch has 21 steps
    _, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, err
    assert len(metrics(cut)) == 1
    same(whole, loop.fit(chosen, digits, cut.path, resume=True))


# ---- the folder


def test_another_recipe_is_not_resumed(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = weights(folder)
    message = refusal("other-content", "epochs", loop.fit, recipe("sgd", "epochs=4"), tiny, tmp_path, resume=True)
    assert message.startswith(f"{tmp_path} was trained with epochs = 3, not 4; go on with")
    message = refusal("other-content", "name", loop.fit, recipe("pgd-at"), tiny, tmp_path, resume=True)
    assert "was trained with name = 'digits-linf-sgd', not 'digits-linf-pgd-at'" in message
    assert weights(folder) == before


def test_a_run_is_not_resumed_on_other_images(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, tmp_path)
    before = weights(folder)
    other = DataSet(tiny.name, tiny.classes, Split(1 - tiny.train.images, tiny.train.labels), tiny.test)
    message = refusal("other-content", "data", loop.fit, recipe(), other, tmp_path, resume=True)
    assert message == f"{tmp_path} was trained on other images; name those, or give --overwrite"
    assert weights(folder) == before


def test_a_folder_that_holds_a_run_is_refused(tmp_path, tiny):
    loop.fit(recipe(), tiny, tmp_path)
    before = {path: path.read_bytes() for path in visible(tmp_path)}
    message = refusal("exists", "out", loop.fit, recipe(), tiny, tmp_path)
    assert message.endswith("already holds a run; give --resume to go on or --overwrite to start anew")
    assert {path: path.read_bytes() for path in visible(tmp_path)} == before


def test_overwrite_starts_anew(tmp_path, tiny):
    loop.fit(recipe("atent"), tiny, tmp_path / "run")
    (tmp_path / "run" / "eval-quick.json").write_text("of the old run")
    (tmp_path / "run" / "notes.txt").write_text("somebody's")
    watch = Watch()
    again = loop.fit(recipe("sgd", "seed=1"), tiny, tmp_path / "run", overwrite=True, reporter=watch)
    assert watch.starts == [("digits-linf-sgd", 3, STEPS, 0)]
    assert not (tmp_path / "run" / "eval-quick.json").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "somebody's"
    same(loop.fit(recipe("sgd", "seed=1"), tiny, tmp_path / "new"), again)


def test_what_lies_in_the_folder(tmp_path, tiny):
    folder = loop.fit(recipe(), tiny, str(tmp_path / "deep" / "run"))
    names = sorted(path.name for path in visible(folder.path))
    assert names == ["metrics.jsonl", "recipe.yaml", "state.pt", "weights.safetensors"]
    assert folder.recipe() == recipe()


@pytest.mark.parametrize(
    ("broken", "code", "field", "part"),
    [
        (b"hello world", "unreadable", "path", "cannot be read as tensors"),
        ({"history": []}, "other-content", "resume", "KeyError: 'model'"),
        ({"model": {"1.weight": torch.ones(1)}}, "other-content", "resume", "RuntimeError"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, tiny, broken, code, field, part):
    folder = loop.fit(recipe(), tiny, tmp_path)
    if isinstance(broken, bytes):
        folder.state.write_bytes(broken)
    else:
        files.save_state(broken, folder.state)
    message = refusal(code, field, loop.fit, recipe(), tiny, tmp_path, resume=True)
    assert message.startswith(str(folder.state))
    assert part in message
    assert message.endswith("--overwrite starts the run anew")


# ---- weights to start from


def first_weights(chosen, tiny, out, **options):
    """The weights before the first step of a run."""
    recorded = []

    def note(optimizer, *_):
        recorded.append([p.detach().clone() for p in optimizer.param_groups[0]["params"]])

    handle = register_optimizer_step_pre_hook(note)
    try:
        loop.fit(chosen, tiny, out, **options)
    finally:
        handle.remove()
    return recorded[0]


@pytest.mark.parametrize("source", ["plain", "plain/weights.safetensors"])
def test_training_starts_from_the_weights_of_another_run(tmp_path, tiny, source):
    plain = loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "plain")
    chosen = recipe("pgd-at", "epochs=1", f"init_from={tmp_path / source}")
    started = first_weights(chosen, tiny, tmp_path / "tuned")
    expected = [p.detach() for p in plain.load_model(tiny).parameters()]
    assert all(torch.equal(p, q) for p, q in zip(started, expected, strict=True))
    assert loop.RunFolder(tmp_path / "tuned").recipe() == chosen
    fresh = first_weights(recipe("pgd-at", "epochs=1"), tiny, tmp_path / "fresh")
    assert not torch.equal(fresh[0], started[0])


def test_a_fine_tuned_run_is_resumed_without_its_initial_weights(tmp_path, tiny):
    plain = loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "plain")
    chosen = recipe("pgd-at", "ema=0.9", f"init_from={plain.path}")
    whole = loop.fit(chosen, tiny, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "cut", reporter=stop_after(STEPS + 2))
    plain.weights.unlink()
    same(whole, loop.fit(chosen, tiny, tmp_path / "cut", resume=True))


@pytest.mark.parametrize(
    ("name", "code", "part"),
    [
        ("nowhere", "missing", "there is no weights file {}"),
        ("nowhere.pt", "missing", "there is no weights file {}"),
        ("empty", "missing", "there is no weights file {}/weights.safetensors"),
        ("other.pt", "bad-shape", "{} does not fit Sequential: missing 1.weight, "),
    ],
)
def test_weights_that_are_missing_or_do_not_fit_are_refused_before_anything_is_written(
    tmp_path, tiny, name, code, part
):
    (tmp_path / "empty").mkdir()
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    chosen = recipe("sgd", f"init_from={tmp_path / name}")
    message = refusal(code, "path", loop.fit, chosen, tiny, tmp_path / "run")
    assert message.startswith(part.format(tmp_path / name))
    assert not (tmp_path / "run").exists()
