"""The table of attacks at equal budgets of passes: its cells, how passes are counted, and its page."""

import json

import pytest
import scripts
import torch
from problems import small_batch, small_net
from torch import nn

from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split

NETWORK = "quickstart-digits-linf-pgd-at"
CALL = ("--network", NETWORK, "--attack", "ATENT annealed", "--attack", "PGD x 2", "--attack", "Square", "--n", 8)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_cells_are_measured_once_and_written_as_they_are_measured(tmp_path):
    out = tmp_path / "attacks.jsonl"
    assert scripts.run("benchmarks/attacks", *CALL, "--budget", 12, "--out", out).returncode == 0
    first = out.read_text()
    assert scripts.run("benchmarks/attacks", *CALL, "--budget", 12, "--budget", 20, "--out", out).returncode == 0
    assert out.read_text().startswith(first)
    assert [(row["attack"], row["budget"]) for row in rows(out)] == [
        (name, budget) for budget in (12, 20) for name in ("ATENT annealed", "PGD x 2", "Square")
    ]
    for row in rows(out):
        assert (row["network"], row["n"], row["eps"]) == (NETWORK, 8, 0.15)
        assert row["left"] == row["flags"].count("1")
        assert 0 < row["mean_passes"] <= row["budget"]
        assert row["mean_backward"] <= row["mean_passes"]

    page = tmp_path / "docs" / "attacks.md"
    done = scripts.run("pages/write_attacks", "--results", out, "--out", page)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    first = rows(out)[0]
    assert f"## {NETWORK}, Linf eps 0.15" in text
    assert f"| ATENT annealed | {first['left']} ({first['mean_passes']:.0f}) |" in text
    assert (tmp_path / "docs" / "img" / f"attacks-{NETWORK}.svg").is_file()


def test_passes_are_counted_by_hooks():
    """PGD of 2 restarts at a budget of 8: 3 steps each and a check between, of which a robust image takes 3 + 1 + 3."""
    script = scripts.module("benchmarks/attacks")
    x, _ = small_batch(5, dtype=torch.float32)
    model = small_net(dtype=torch.float32)
    split = Split(x, model(x).argmax(1))
    cell = script.measure(model, split, Threat(norm="Linf", eps=1e-6), "PGD x 2", 8, 0)
    assert (cell["left"], cell["flags"], cell["mean_passes"], cell["mean_backward"]) == (5, "11111", 7.0, 6.0)


@pytest.mark.parametrize(
    ("mine", "theirs", "p"),
    [("1111", "1111", 1.0), ("1100", "0000", 0.25), ("0000", "1100", 1.0), ("11111", "00000", 2**-5)],
)
def test_the_paired_test_is_exact_and_one_sided(mine, theirs, p):
    assert scripts.module("pages/write_attacks").worse(mine, theirs) == pytest.approx(p)


@pytest.mark.parametrize("name", ["rounding", "detach", "scaled logits", "noise", "dropout", "saturated softmax"])
def test_masks_hide_gradients_and_keep_most_predictions(name):
    script = scripts.module("benchmarks/attacks")
    network, x = small_net(dtype=torch.float32), small_batch(60, dtype=torch.float32)[0]
    hidden = script.Behind(network, script.MASKS[name]).eval()
    same = (hidden(x).argmax(1) == network(x).argmax(1)).double().mean()
    assert same > 0.7
    if name in ("rounding", "detach", "scaled logits"):
        leaf = x.clone().requires_grad_()
        nn.functional.cross_entropy(hidden(leaf), network(x).argmax(1), reduction="sum").backward()
        assert (leaf.grad.flatten(1).abs().amax(1) == 0).double().mean() > 0.9


def test_lines_of_other_seeds_and_of_parts_are_not_of_the_row():
    script = scripts.module("pages/write_attacks")
    row = {"network": "a", "budget": 9, "seed": 0, "card_n": 50, "apgd_ce": 31, "autoattack": 30, "n": 10, "left": 1}
    line = {"network": "a", "passes": 9, "seed": 0, "autoattack": 30, "n": 30, "broken": [4, 7]}
    whole = line | {"autoattack_again": {"4": [], "7": [1, 5]}}

    def cells(beyond):
        return list(script.on_broken([row], beyond))[-1].strip("| ").split(" | ")

    assert cells([whole]) == ["a", "50", "31", "30", "2", "1", "10", "1", "29"]
    assert cells([line])[4:6] == ["2", "–"]
    assert cells([line | {"broken": []}])[4:6] == ["0", "0"]
    for other in (whole | {"seed": 1}, whole | {"n": 8}, whole | {"passes": 8}):
        assert cells([other]) == ["a", "50", "31", "30", "–", "–", "10", "1", "at most 31"]


def test_the_page_is_what_its_script_writes(tmp_path):
    done = scripts.run("pages/write_attacks", "--out", tmp_path / "attacks.md", "--no-pictures")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "attacks.md").read_text() == (scripts.EVAL.parent / "docs" / "attacks.md").read_text()
