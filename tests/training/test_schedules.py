"""Learning rates, radii that grow, averages of weights, and precisions."""

import math

import pytest
import safetensors.torch
import torch
from accelerate.state import AcceleratorState
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from training_runs import STEPS, held_out, metrics, recipe, refusal

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.objectives import PGDAT
from atent_ext.storage import files
from atent_ext.training import loop

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "tiny_net")


@pytest.fixture
def steps_taken():
    """Each optimizer step: the optimizer, its learning rate, the weights after the step."""
    taken = []

    def before(optimizer, *_):
        taken.append({"optimizer": optimizer, "lr": optimizer.param_groups[0]["lr"]})

    def after(optimizer, *_):
        taken[-1]["weights"] = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
    yield taken
    for handle in handles:
        handle.remove()


def test_milestones_divide_the_learning_rate_by_10(tmp_path, tiny, steps_taken):
    schedule = "schedule={name: multi-step, milestones: [1, 3]}"
    folder = loop.fit(recipe("sgd", "epochs=4", schedule), tiny, tmp_path)
    rates = [0.1] * STEPS + [0.01] * 2 * STEPS + [0.001] * STEPS
    assert [step["lr"] for step in steps_taken] == pytest.approx(rates, rel=1e-12)
    assert [line["lr"] for line in metrics(folder)] == pytest.approx([0.1, 0.01, 0.01, 0.001], rel=1e-12)


def test_a_constant_learning_rate_ignores_milestones(tmp_path, tiny, steps_taken):
    loop.fit(recipe("sgd", "schedule={name: constant, milestones: [1]}"), tiny, tmp_path)
    assert [step["lr"] for step in steps_taken] == [0.1] * 3 * STEPS


def one_cycle(step, steps, peak, share):
    """Smith's cycle with cosine arcs: from peak / 25 up to the peak, then down to peak / 250,000."""
    top = share * steps - 1
    low, high, part = (peak / 25, peak, step / top) if step <= top else (peak / 25e4, peak, 0.0)
    if step > top:
        part = 1 - (step - top) / (steps - 1 - top)
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
def test_one_cycle(tmp_path, tiny, steps_taken, share):
    chosen = recipe("sgd", "epochs=4", f"schedule={{name: one-cycle, warmup: {share}}}")
    loop.fit(chosen, tiny, tmp_path)
    total = 4 * STEPS
    expected = [one_cycle(step, total, 0.1, share) for step in range(total)]
    assert [step["lr"] for step in steps_taken] == pytest.approx(expected, rel=1e-6)
    assert [line["lr"] for line in metrics(loop.RunFolder(tmp_path))] == [
        step["lr"] for step in steps_taken[STEPS - 1 :: STEPS]
    ]


def test_a_warmup_of_exactly_one_step_is_refused(tmp_path, tiny):
    chosen = recipe("sgd", "epochs=1", "schedule={name: one-cycle, warmup: 0.25}")  # torch would divide by zero
    message = refusal("bad-value", "schedule.warmup", loop.fit, chosen, tiny, tmp_path / "run")
    assert message == "schedule.warmup is 0.25, exactly one of 4 steps; choose another share"
    assert not (tmp_path / "run").exists()


def test_the_optimizer_is_the_recipes(tmp_path, tiny, steps_taken):
    loop.fit(recipe("sgd", "epochs=1", "optimizer.weight_decay=0.02"), tiny, tmp_path / "sgd")
    sgd = steps_taken[-1]["optimizer"]
    adam_recipe = recipe("sgd", "epochs=1", "optimizer={name: adam, lr: 0.002, weight_decay: 0.01}")
    loop.fit(adam_recipe, tiny, tmp_path / "adam")
    adam = steps_taken[-1]["optimizer"]
    assert type(sgd) is torch.optim.SGD
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["weight_decay"]) == (0.9, 0.02)
    assert type(adam) is torch.optim.Adam
    assert adam.param_groups[0]["weight_decay"] == 0.01
    assert max(step["lr"] for step in steps_taken[STEPS:]) <= 0.002


@pytest.mark.parametrize(("share", "length"), [(0.5, 6), (1.0, 12), (0.3, 3.6), (0.0, 0)])
def test_eps_and_step_size_grow_linearly(tmp_path, tiny, monkeypatch, share, length):
    seen, adversary = [], PGDAT.adversary

    def spy(self, *arguments):
        seen.append((self.eps, self.step_size, self.steps))
        return adversary(self, *arguments)

    monkeypatch.setattr(PGDAT, "adversary", spy)
    loop.fit(recipe("pgd-at", f"eps_ramp={share}"), tiny, tmp_path)
    factors = [min(1.0, (step + 1) / length) if length else 1.0 for step in range(3 * STEPS)]
    assert [eps for eps, _, _ in seen] == pytest.approx([0.15 * factor for factor in factors])
    assert [size for _, size, _ in seen] == pytest.approx([0.0375 * factor for factor in factors])
    assert seen[-1] == (0.15, 0.0375, 3)


def test_the_average_of_the_weights_matches_a_manual_one(tmp_path, tiny, steps_taken):
    chosen = recipe("sgd", "ema=0.8", "epochs=2", "validation.select=last")
    folder = loop.fit(chosen, tiny, tmp_path)
    average = steps_taken[0]["weights"]  # the first weights are where the average starts
    for step in steps_taken[1:]:
        average = [0.8 * old + 0.2 * new for old, new in zip(average, step["weights"], strict=True)]
    kept = [p.detach() for p in folder.load_model(tiny).parameters()]
    last = steps_taken[-1]["weights"]
    assert all(torch.allclose(actual, expected, atol=1e-6) for actual, expected in zip(kept, average, strict=True))
    assert max(float((actual - end).abs().max()) for actual, end in zip(kept, last, strict=True)) > 0.01


def test_the_average_includes_the_batchnorm_statistics(tmp_path, tiny):
    chosen = recipe("sgd", "ema=0.8", "epochs=2", "validation.select=last")
    name = "2.running_mean"
    loop.fit(chosen, tiny, tmp_path)
    live = files.load_state(tmp_path / "state.pt")["model"][name]
    kept = safetensors.torch.load_file(tmp_path / "weights.safetensors")[name]
    assert kept.abs().sum() > 0
    assert not torch.equal(kept, live)


def test_in_mixed_precision_the_average_itself_is_validated(tmp_path, tiny):
    # Accelerate wraps forward(); a copy that still called the live network would be validated with its weights.
    chosen = recipe("sgd", "mixed_precision=bf16", "ema=0.97", "validation.select=last", "optimizer.lr=0.3")
    folder = loop.fit(chosen, tiny, tmp_path)
    split, model = held_out(chosen, tiny), folder.load_model(tiny)
    with torch.autocast("cpu", torch.bfloat16):
        averaged = float(clean_flags(model, split).double().mean())
        model.load_state_dict(files.load_state(folder.state)["model"])
        live = float(clean_flags(model, split).double().mean())
    assert metrics(folder)[-1]["clean"] == averaged
    assert averaged != live


def test_bf16_changes_the_numbers_a_little(tmp_path, tiny):
    full = loop.fit(recipe("atent"), tiny, tmp_path / "full")
    AcceleratorState._reset_state()
    half = loop.fit(recipe("atent", "mixed_precision=bf16"), tiny, tmp_path / "half")
    full_loss, half_loss = (metrics(folder)[0]["loss"] for folder in (full, half))
    assert full_loss != half_loss
    assert full_loss == pytest.approx(half_loss, rel=0.02)
    assert {tensor.dtype for tensor in safetensors.torch.load_file(half.weights).values()} == {
        torch.float32,
        torch.int64,
    }


def test_another_precision_in_the_same_process_is_refused(tmp_path, tiny):
    loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path / "one")
    chosen = recipe("sgd", "mixed_precision=bf16")
    message = refusal("unsupported", "mixed_precision", loop.fit, chosen, tiny, tmp_path / "two")
    assert message.startswith("mixed_precision is 'bf16', which is not available here: ")
    assert not (tmp_path / "two").exists()
