"""A model whose input gradient is NaN: no attack of ours passes NaN images off as adversaries."""

import pytest
import torch
from torch import nn

from atent_ext.attacks.advertorch_style import LinfATENTAttack
from atent_ext.core.errors import BadInput


class Broken(nn.Module):
    """Finite logits whose gradient is infinite times zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        logits = self.linear(x.flatten(1))
        return logits + ((logits - logits.detach()) ** 2).sqrt()


def advertorch_style(model, x, y):
    return LinfATENTAttack(model)(x, y)


def in_torchattacks(model, x, y):
    from atent_ext.integrations.torchattacks import ATENT

    return ATENT(model)(x, y)


def in_foolbox(model, x, y):
    from atent_ext.integrations.foolbox import LinfATENTAttack as Attack

    foolbox = pytest.importorskip("foolbox")
    return Attack(steps=2)(foolbox.PyTorchModel(model.eval(), bounds=(0, 1)), x, y, epsilons=0.1)


def in_art(model, x, y):
    from art.estimators.classification import PyTorchClassifier

    from atent_ext.integrations.art import ATENTAttack

    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), (4,), 3, clip_values=(0, 1))
    return ATENTAttack(classifier, verbose=False).generate(x.numpy(), y.numpy())


@pytest.mark.parametrize("attack", [advertorch_style, in_torchattacks, in_foolbox, in_art])
def test_nan_gradients_are_refused(attack):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Broken(), torch.rand(4, 4)
    with pytest.raises(BadInput, match="input gradient is not finite for 4 of 4 images") as error:
        attack(model, x, model(x).argmax(1))
    assert (error.value.code, error.value.field) == ("broken-model", "model")


@pytest.mark.parametrize("attack", [in_torchattacks, in_foolbox])
def test_labels_beyond_the_classes_are_refused(attack):
    with pytest.raises(BadInput, match="for a model of 3 classes"):
        attack(nn.Linear(4, 3), torch.rand(2, 4), torch.tensor([0, 3]))
