"""`atent compare`, run as a user runs it."""

import json

from commands import atent, refused

from atent_ext.core.registry import folder


def test_two_runs_are_compared(tmp_path):
    run, reports = tmp_path / "run", []
    tiny = [part for change in ("epochs=1", "validation.count=50", "validation.steps=2") for part in ("--set", change)]
    for seed in (0, 1):
        assert atent("train", "digits-linf-sgd", *tiny, "--seed", seed, "--out", f"{run}{seed}").returncode == 0
        reports.append(tmp_path / f"{seed}.json")
        given = ("--protocol", "quick", "--n", 40, "--out", reports[-1])
        assert atent("eval", f"{run}{seed}", *given).returncode == 0
    done = atent("compare", *reports)
    assert done.returncode == 0
    for word in ("digits-linf-sgd (1)", "digits-linf-sgd (2)", "right alone", "p (Holm)"):
        assert word in done.stdout
    assert "p (anytime)" in atent("compare", *reports, "--until-decided").stdout
    (pair,) = json.loads(atent("compare", *reports, "--attack", "clean", "--json").stdout)["pairs"]
    assert pair["both"] + pair["a_alone"] + pair["b_alone"] + pair["neither"] == 40


def test_what_cannot_be_compared_is_refused(tmp_path):
    card = next(folder("card").rglob("*.json"))
    refused(atent("compare", card, card), "is no report of `atent eval`")
    refused(atent("compare", tmp_path / "nowhere.json", card), "nowhere.json cannot be read")
