"""Where AutoAttack's time goes: the parts are all of it, and passes of images are counted."""

import pytest
import scripts
import torch
from torch import nn

from atent_ext.data.datasets import Split


class TwoPasses:
    """Looks once, and climbs once, as attacks do."""

    def __init__(self, network, **_):
        self.network = network

    def run_standard_evaluation(self, x, y, batch_size):
        with torch.no_grad():
            self.network(x)
        x = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(self.network(x), y)
        return (x + torch.autograd.grad(loss, x)[0]).detach(), y


def test_the_parts_are_the_whole(monkeypatch):
    module = scripts.module("benchmarks/autoattack_shares")
    monkeypatch.setattr(module, "AutoAttack", TwoPasses)
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(6, 1, 4, 4)
    found = module.shares(network, Split(x, network(x).argmax(1)), "Linf", 0.1)
    *parts, whole = found["seconds"].values()
    assert list(found["seconds"]) == ["forward", "forward for a gradient", "backward", "the rest", "all"]
    assert sum(parts) == pytest.approx(whole, abs=0.03)  # each is rounded to 0.01
    assert found["forward_images"] == 12
    assert len(found["flags"]) == 6
