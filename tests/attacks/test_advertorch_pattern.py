"""advertorch's own pattern of attack tests over our two classes, on the small models that it ships for them."""

import importlib
from itertools import product

import pytest
import torch

from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack

models = importlib.import_module("advertorch.test_utils")  # importable once `atent_ext.attacks` has repaired it
SHAPES = {"SimpleModel": (6, 15), "SimpleImageModel": (6, 3, 16, 16)}


@pytest.mark.parametrize("kind", [LinfATENTAttack, L2ATENTAttack])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("targeted", "labelled"), [(False, False), (False, True), (True, True)])
def test_every_way_to_call_an_attack_gives_the_same_adversaries(kind, name, targeted, labelled):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model, x = getattr(models, name)(), torch.rand(SHAPES[name])
    y = model(x).argmax(1)
    y = (y + 1) % model(x).shape[1] if targeted else y  # the predictions are what a call without labels attacks
    radii = torch.linspace(0.05, 0.2, len(x))

    def attacked(eps, size, recording):
        generator = torch.Generator().manual_seed(0)
        attack = kind(model, eps=eps, nb_iter=4, eps_iter=size, targeted=targeted, generator=generator)
        with torch.set_grad_enabled(recording):
            return attack(x, y) if labelled else attack(x)

    for recording, per_example in product((True, False), (True, False)):
        eps = radii if per_example else 0.1
        adversary = attacked(eps, 0.5 * eps, recording)
        radius = torch.full((len(x),), 0.1) if not per_example else radii
        # A float times a float32 tensor rounds otherwise than a tensor does.
        torch.testing.assert_close(adversary, attacked(radius, 0.5 * radius, True), rtol=0, atol=1e-5)
        size = torch.linalg.vector_norm((adversary - x).flatten(1), 2 if kind is L2ATENTAttack else torch.inf, dim=1)
        assert (size <= radius + 1e-6).all()
        assert (size > 0.1 * radius).all()
        assert adversary.min() >= 0
        assert adversary.max() <= 1
        assert not adversary.requires_grad
        losses = torch.nn.functional.cross_entropy(model(adversary), y) - torch.nn.functional.cross_entropy(model(x), y)
        assert (losses < 0) == targeted
