"""AutoAttack in L1: the flags of the package called directly, and what refuses the norm."""

import pytest
import torch
from pydantic import ValidationError
from sample_cards import card
from torch import nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import Setting, parse
from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball, norm
from atent_ext.core.schema import Threat
from atent_ext.subjects import zoo
from atent_ext.training import recipes


@pytest.mark.parametrize(("name", "eps"), [("quickstart-digits-linf-pgd-at", 4.0), ("quickstart-digits-linf-sgd", 3.0)])
def test_the_flags_are_those_of_stock_autoattack(name, eps):
    subject = zoo.from_card(name)
    part = subject.test.take(20)
    outcome = parse({"attack": "autoattack"}).run(subject.model, part, Setting(Threat(norm="L1", eps=eps), 0, 20))
    attack = compat.autoattack_class()(subject.model, norm="L1", eps=eps, seed=0, verbose=False)
    images = attack.run_standard_evaluation(part.images, part.labels, bs=20)
    with torch.no_grad():
        assert torch.equal(outcome.flags, subject.model(images).argmax(1) == part.labels)
    assert outcome.attack == "AutoAttack"
    assert not any(note.kind in ("changed", "outside") for note in outcome.notes)


def test_all_forms_run_on_what_is_left_and_leave_what_stock_autoattack_leaves():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    x = torch.rand(200, 1, 6, 6)[[0, 20, 1]]  # APGD-CE breaks the first, FAB-T the second, and the third stays
    y = network(x).argmax(1)
    names = ["apgd-ce", "fab-t", "square"]
    how = {"norm": "L1", "eps": 0.6, "seed": 0, "version": "custom"}
    result = autoattack.run(network, x, y, **how, attacks=names, queries=50)
    attack = compat.autoattack_class()(network, **how, attacks_to_run=names, verbose=False, device="cpu")
    attack.square.n_queries = 50
    images = attack.run_standard_evaluation(x, y, bs=3)
    with torch.no_grad():
        assert torch.equal(result.robust, network(images).argmax(1) == y)
    assert result.robust.tolist() == [False, False, True]
    assert result.robust_after == {"clean": 3, "apgd-ce": 2, "fab-t": 1, "square": 1}


def test_distances_in_l1():
    x = torch.full((3, 1, 2, 2), 0.5)
    moved = x + torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1, 1)
    assert ball("L1").size(moved - x).tolist() == pytest.approx([0.4, 0.8, 1.2])
    assert allowed(ball("L1"), 0.8, x, moved).tolist() == [True, True, False]
    edge = x.clone()
    edge[:, 0, 0, 0] += 0.801
    assert not allowed(ball("L1"), 0.8, x, edge).any()


def test_what_has_no_form_in_l1_says_so():
    with pytest.raises(BadInput) as caught:
        norm("L1")
    assert (caught.value.code, caught.value.field) == ("unsupported", "norm")
    recipe = recipes.load("digits-linf-sgd")
    with pytest.raises(BadInput) as caught:
        recipes.parse(recipe.model_dump(mode="json") | {"threat": {"norm": "L1", "eps": 1.0}}, "recipe")
    assert caught.value.code in ("unsupported", "conflict")
    with pytest.raises(ValidationError):
        card(norm="L1", eps=1.0)
