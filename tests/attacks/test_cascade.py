"""Cascades: each stage only on the images that are left, the order of classes by distance, and the stated bias."""

import json

import pytest
import torch
from torch import nn

from atent_ext.attacks import uphill
from atent_ext.attacks.spec import AttackSpec, Outcome, Setting, parse
from atent_ext.attacks.specs import cascade
from atent_ext.attacks.specs.cascade import CascadeSpec
from atent_ext.core import registry
from atent_ext.core.norms import L2, LINF
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import load_protocol

SETTING = Setting(Threat(norm="Linf", eps=0.1), batch_size=4)


class Linear(nn.Module):
    """logits = images @ weights: gaps and distances are known."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights))

    def forward(self, x):
        return x.flatten(1) @ self.weights


class Seen(AttackSpec):
    """Breaks images darker than `below`, and notes which it was given."""

    attack: str = "seen"
    below: float

    def run(self, model, split, setting):
        SEEN.append(len(split))
        dark = split.images.flatten(1).mean(1) < self.below
        setting.found(dark.nonzero().flatten(), split.images[dark] + 0.05)
        return Outcome("attack", "seen", {}, ~dark)


SEEN: list[int] = []


@pytest.fixture
def split():
    """Eight images of class 0, from dark to bright; the first is misclassified."""
    images = torch.linspace(0.0, 0.7, 8).reshape(8, 1, 1, 1).expand(8, 1, 2, 2).clone()
    return Split(images, torch.zeros(8, dtype=torch.long))


def test_each_stage_attacks_what_is_left(split):
    SEEN.clear()
    found = {}
    model = Linear([[1.0, -1.0]] * 4)
    model.forward = lambda x: torch.stack([x.flatten(1).sum(1) - 0.01, 0.01 - x.flatten(1).sum(1)], 1)
    spec = CascadeSpec(stages=(Seen(below=0.25), Seen(below=0.45), Seen(below=2.0), Seen(below=3.0)))
    keep = Setting(SETTING.threat, batch_size=4, found=lambda rows, x: found.update(zip(rows.tolist(), x, strict=True)))
    outcome = spec.run(model, split, keep)
    assert SEEN == [7, 5, 3]  # the last stage has nothing left
    assert list(outcome.robust_after.values()) == [7, 5, 3, 0, 0]
    assert list(outcome.robust_after) == ["clean", "seen", "seen 2", "seen 3", "seen 4"]
    assert not outcome.flags.any()
    assert sorted(found) == list(range(1, 8))
    assert all(torch.equal(x, split.images[row] + 0.05) for row, x in found.items())


def test_classes_are_ordered_by_their_distance():
    # label 0 has logit 10; the gap to class 1 is 4 and to class 2 is 6, whose gradient is three times as large
    weights = [[10.0, 6.0, 4.0], [0.0, 1.0, -11.0]]
    model, x, y = Linear(weights), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    assert uphill.ranked(model(x), y).tolist() == [[1, 2]]
    # Linf: 4 / (4 + 1) against 6 / (6 + 11); L2: 4 / sqrt(17) against 6 / sqrt(157)
    assert uphill.nearest(model, x, y, LINF).tolist() == [[2, 1]]
    assert uphill.nearest(model, x, y, L2).tolist() == [[2, 1]]
    assert uphill.nearest(model, x, y, LINF, among=1).tolist() == [[1]]
    assert model.weights.grad is None
    flat = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    nn.init.zeros_(flat[1].weight)
    assert sorted(uphill.nearest(flat, x, y, LINF)[0].tolist()) == [1, 2]  # no gradient, no NaN


def test_the_nearest_class_is_tried_first():
    """One chain suffices where only the nearest class can be reached."""
    weights = torch.zeros(4, 3)
    weights[:, 0], weights[:, 1], weights[:, 2] = 1.0, 0.9, torch.tensor([5.0, -5.0, 5.0, -5.0])
    model = Linear(weights.tolist()).eval()
    split = Split(torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long))
    one = parse({"attack": "malt", "steps": 5, "targets": 1}).run(model, split, Setting(Threat(norm="Linf", eps=0.11)))
    assert not one.flags.any()


@pytest.mark.parametrize("tuned", [False, True])
def test_the_bias_is_that_of_the_committed_measurement(tmp_path, monkeypatch, tuned):
    stages = [{"attack": "fgsm"}]
    known = {
        "stages": stages,
        "measured": [{"dataset": "digits", "threat": {"norm": "Linf", "eps": 0.15}, "networks": 3}],
        "networks": 3,
        "images": 216,
        "mean": 0.25,
        "worst": 1.0,
        "pairs": 2,
        "passes": 0.1,
        "seconds": 0.2,
        "tuned": tuned,
    }
    (tmp_path / "fast.json").write_text(json.dumps(known), encoding="utf-8")
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path)
    text = cascade.bias(stages, "Linf")
    assert "on 3 networks (digits, Linf eps 0.15: 3) of which AutoAttack left images, and 216 images" in text
    assert "+0.25 points" in text
    assert "+1.00 at worst" in text
    assert ("chosen partly on these images" in text) == tuned
    assert "was not measured" in cascade.bias([{"attack": "pgd"}], "Linf")
    assert cascade.bias(stages, "L1").endswith("than AutoAttack in L1 was not measured")


def test_fast_has_a_measured_bias():
    attack = load_protocol("fast").attacks[1]
    stages = [stage.model_dump(mode="json") for stage in attack.stages]
    text = cascade.bias(stages, "Linf")
    assert "points more in the mean" in text
    assert "mnist, L2 eps 2: 1" in text
    assert "L1 was not measured" in cascade.bias(stages, "L1")
    assert "chosen partly on these images" in text


def test_square_is_left_out_where_it_cannot_run(split):
    setting = Setting(Threat(norm="L2", eps=0.1))
    outcome = parse({"attack": "square", "queries": 3}).run(Linear([[1.0, -1.0]] * 4), split, setting)
    assert outcome.flags.tolist() == [True] * 8
    assert [note.kind for note in outcome.notes] == ["no-attack"]
