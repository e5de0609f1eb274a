"""The measurement of `fast`: a pair's row, and what is said of all rows."""

import json

import scripts

from atent_ext.core import registry
from atent_ext.evaluation.protocol import Protocol, load_protocol

NETWORK = "quickstart-digits-linf-sgd"
STAGES = [{"attack": "fgsm"}, {"attack": "pgd", "steps": 2}]


def test_rows_and_what_is_said_of_them():
    fast = scripts.module("benchmarks/fast")
    plan = Protocol(name="fast", description="", attacks=({"attack": "clean"}, {"attack": "cascade", "stages": STAGES}))
    row = fast.measure(NETWORK, plan, None)
    assert row["left"] == row["flags"].count("1") == row["left_after"]["pgd"] <= row["left_after"]["fgsm"]
    assert 0 < row["backward"] < row["passes"]
    assert fast.measure(NETWORK, plan, None, 5)["flags"] == row["flags"][:5]
    cheap = {"protocol": "autoattack", "attacks": [], "left": row["left"] - 1, "passes": 100 * row["passes"]}
    rows = {"pairs": [row, row | cheap | {"seconds": 4 * row["seconds"] + 1}], "cards": []}
    said = fast.summary(rows, plan)
    assert (said["worst"], said["pairs"], said["passes"], said["tuned"]) == (1.0, 1, 0.01, True)
    assert said["measured"] == [{"dataset": "digits", "threat": {"norm": "Linf", "eps": 0.15}, "networks": 1}]
    of_card = row | {"network": "mnist-linf-sgd", "autoattack": 0, "points": 0.0, "n": 500}
    assert fast.summary(rows | {"cards": [of_card]}, plan) == said  # AutoAttack leaves nothing of it
    assert fast.summary({"pairs": [], "cards": []}, plan) is None


def test_the_committed_bias_is_that_of_the_committed_rows():
    fast = scripts.module("benchmarks/fast")
    path = registry.folder("protocol") / "fast.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    assert known == fast.summary(fast.read(fast.RESULTS), load_protocol("fast"))
