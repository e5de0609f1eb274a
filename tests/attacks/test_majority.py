"""Accuracy of a random network by one draw and by the majority of several, against the binomial law."""

import math

import pytest
import torch
from scipy.stats import binom
from torch import nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.accuracy import clean_flags, votes
from atent_ext.attacks.autoattack import AutoAttackResult
from atent_ext.attacks.spec import Setting, parse
from atent_ext.attacks.specs.autoattack import DRAWS
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation.majority import majorities

N = 2000


class Coin(nn.Module):
    """Class 0 with a probability that is the image's first value, else class 1; every answer is a draw of its own."""

    def __init__(self, seed):
        super().__init__()
        self.draws = torch.Generator().manual_seed(seed)

    def forward(self, x):
        right = torch.rand(len(x), generator=self.draws) < x.flatten(1)[:, 0]
        return torch.stack([right, ~right], 1).float()


def near(count, p):
    return abs(count - N * p) < 4.5 * math.sqrt(N * p * (1 - p)) + 1


@pytest.mark.parametrize("p", [0.35, 0.6, 0.9])
def test_single_draws_and_majorities_are_binomial(p):
    split = Split(torch.full((N, 1, 1, 1), p), torch.zeros(N, dtype=torch.long))
    assert near(int(clean_flags(Coin(3), split).sum()), p)
    counts = votes(Coin(4), split.images, DRAWS)
    assert counts.sum(1).unique().tolist() == [DRAWS]
    assert near(int((counts.argmax(1) == 0).sum()), binom.sf(DRAWS // 2, DRAWS, p))


def test_rand_reports_both(monkeypatch):
    """Adversaries that halve the chance of the right answer: 0.9 clean, 0.45 attacked."""
    split = Split(torch.full((N, 1, 1, 1), 0.9), torch.zeros(N, dtype=torch.long))

    def run(model, x, y, **options):
        robust = clean_flags(model, Split(x / 2, y))
        return AutoAttackResult(x / 2, robust, ("apgd-ce",), 0, "package", (), {"clean": N})

    monkeypatch.setattr(autoattack, "run", run)
    setting = Setting(Threat(norm="Linf", eps=0.5))
    outcome = parse({"attack": "autoattack", "version": "rand"}).run(Coin(0), split, setting)
    assert near(int(outcome.flags.sum()), 0.45)
    assert near(sum(outcome.per_image["clean_majority"]), binom.sf(DRAWS // 2, DRAWS, 0.9))
    assert near(sum(outcome.per_image["majority"]), binom.sf(DRAWS // 2, DRAWS, 0.45))
    names = [row[0] for row in majorities("AutoAttack", outcome.settings, outcome.per_image)]
    assert names == [f"clean, majority of {DRAWS} draws", f"AutoAttack, majority of {DRAWS} draws"]
    assert list(majorities("AutoAttack", {}, {})) == []
