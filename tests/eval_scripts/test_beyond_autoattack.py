"""Images that AutoAttack left and annealed ATENT breaks: found, added to the card, and counted on the board."""

import hashlib
import json
import shutil
from types import SimpleNamespace

import pytest
import scripts
import torch
from commands import atent

from atent_ext.attacks import autoattack
from atent_ext.attacks.spec import Outcome
from atent_ext.core import registry
from atent_ext.evaluation.report import result_of
from atent_ext.evaluation.run import worst_of
from atent_ext.leaderboard import ranking, site
from atent_ext.subjects import zoo
from atent_ext.submissions import cards

NAME = "quickstart-digits-linf-sgd"
CALL = ("--network", NAME, "--passes", 20, "--n", 9)


@pytest.fixture
def kind(tmp_path, monkeypatch):
    """The registry with one card: of a network that nearly every attack breaks, with an AutoAttack that broke 3."""
    (card, *_), weights = zoo.find(NAME)
    clean = card.report.result("clean")
    flags = clean.robust()
    flags[flags.nonzero().flatten()[[0, 1, 4]]] = False
    settings = card.report.autoattack.settings
    weak = [clean, result_of(Outcome("autoattack", "AutoAttack", settings, flags))]
    report = card.report.model_copy(update={"results": (*weak, worst_of(weak))})
    (tmp_path / "weights").mkdir()
    shutil.copy(weights, tmp_path / "weights")
    monkeypatch.setattr(registry, "folder", lambda kind: tmp_path / kind)
    path = tmp_path / "card" / card.place
    path.parent.mkdir(parents=True)
    cards.write_card(card.model_copy(update={"report": report, "verdicts": ()}), path)
    return path


@pytest.fixture(autouse=True)
def batches(monkeypatch):
    """Stands in for AutoAttack, which takes seconds: seed k breaks the first k images. What it was called with."""
    calls = []

    def run(model, x, y, *, seed, **how):
        calls.append((seed, len(x), how))
        assert (model(x).argmax(1) == y).all()
        return SimpleNamespace(robust=torch.arange(len(x)) >= seed)

    monkeypatch.setattr(scripts.module("benchmarks/beyond_autoattack"), "autoattack", SimpleNamespace(run=run))
    return calls


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_autoattack_left_is_attacked_and_lowers_the_board(kind, tmp_path):
    out = tmp_path / "beyond.jsonl"
    done = scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out)
    assert done.returncode == 0, done.stderr
    (line,) = lines(out)
    left = cards.read_card(kind).report.autoattack.robust().nonzero().flatten().tolist()
    assert (line["n"], line["autoattack"], line["passes"]) == (9, len(left), 20)
    assert line["broken"]
    assert set(line["broken"]) <= set(left[:9])
    assert 0 < line["mean_backward"] <= line["mean_passes"] <= 20

    before = ranking.read(tmp_path / "card")[0].entries[0]
    file, weights = tmp_path / "beyond" / f"{NAME}-20-n9-0.npz", tmp_path / "weights"
    added = atent("adversaries", "add", kind, file, "--by", "annealed", "--weights", weights)
    assert added.returncode == 0, added.stderr
    assert f"{len(line['broken'])} adversarial images of {file.name} {len(line['broken'])} count" in added.stdout
    after = ranking.read(tmp_path / "card")[0].entries[0]
    assert (before.strongest.attack, before.strongest.accuracy) == ("AutoAttack", len(left) / 360)
    assert after.strongest.attack == "AutoAttack + adversaries by annealed"
    assert after.strongest.accuracy == after.worst.accuracy == (len(left) - len(line["broken"])) / 360
    cell = f"| {100 * after.strongest.accuracy:.1f} (AutoAttack + adversaries by annealed) |"
    assert cell in site.markdown(tmp_path / "card")

    assert "already" in scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out).stdout
    assert len(lines(out)) == 1


def test_an_interrupted_call_goes_on(kind, tmp_path, monkeypatch):
    script = scripts.module("benchmarks/beyond_autoattack")
    monkeypatch.setattr(script, "BATCH", 3)
    seeds, whole = [], script.attack

    def stopped(*given):
        seeds.append(given[-1])
        if seeds == [0, 1]:
            raise KeyboardInterrupt
        return whole(*given)

    scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", tmp_path / "whole" / "a.jsonl")
    monkeypatch.setattr(script, "attack", stopped)
    out = tmp_path / "a.jsonl"
    assert scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out).returncode == 130
    assert not out.exists()
    assert scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out).returncode == 0
    assert seeds == [0, 1, 1, 2]
    of_both = [lines(path)[0] for path in (out, tmp_path / "whole" / "a.jsonl")]
    assert len({json.dumps(line | {"cpu_seconds": 0}) for line in of_both}) == 1
    assert [path.name for path in (tmp_path / "beyond").iterdir()] == [f"{NAME}-20-n9-0.npz"]


def test_autoattack_attacks_what_was_broken_again_with_other_seeds(kind, tmp_path, batches):
    out = tmp_path / "beyond.jsonl"
    scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out)
    (line,) = lines(out)
    broken = line["broken"]
    how = {"norm": "Linf", "eps": 0.15, "batch_size": len(broken)}
    assert batches == [(seed, len(broken), how) for seed in (1, 2, 3, 4, 5)]
    assert line["autoattack_seeds"] == [1, 2, 3, 4, 5]
    assert line["autoattack_again"] == {str(row): list(range(at + 1, 6)) for at, row in enumerate(broken)}
    # A line of an older call is completed in its place, and only it.
    older = {key: value for key, value in line.items() if key != "autoattack_again"}
    out.write_text("".join(json.dumps(one) + "\n" for one in (older, older | {"n": 8})))
    done = scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", out)
    assert lines(out) == [line, older | {"n": 8}]
    assert f"AutoAttack breaks {min(5, len(broken))} of them" in done.stdout


def test_the_real_autoattack_breaks_a_committed_image_with_another_seed(monkeypatch):
    script = scripts.module("benchmarks/beyond_autoattack")
    monkeypatch.setattr(script, "autoattack", autoattack)
    monkeypatch.setattr(script, "SEEDS", [1])
    (line,) = [one for one in lines(script.RESULTS) if one["network"] == "quickstart-digits-linf-atent"]
    chosen = zoo.from_card(line["network"])
    assert script.again(chosen, line["broken"]) == {"336": [1]}
    assert 1 in line["autoattack_again"]["336"]


def test_a_part_and_the_whole_are_files_of_their_own(kind, tmp_path):
    all_left = int(cards.read_card(kind).report.autoattack.robust().sum())
    for n in (2, 3, None):
        call = ("--network", NAME, "--passes", 3, *(("--n", n) if n else ()), "--out", tmp_path / "a.jsonl")
        assert scripts.run("benchmarks/beyond_autoattack", *call).returncode == 0
    assert [line["n"] for line in lines(tmp_path / "a.jsonl")] == [2, 3, all_left]
    files = {path.name for path in (tmp_path / "beyond").iterdir()}
    assert files == {f"{NAME}-3-n2-0.npz", f"{NAME}-3-n3-0.npz", f"{NAME}-3-0.npz"}


def test_the_committed_lines_are_what_the_cards_have():
    script = scripts.module("benchmarks/beyond_autoattack")
    for line in lines(script.RESULTS):
        file = script.adversaries(line, script.RESULTS)
        assert file.is_file() == bool(line["broken"])
        (card, *_), _ = zoo.find(line["network"])
        assert (line["autoattack"], line["card_n"]) == (len(script.left(card)), card.report.n)
        assert card.weights["sha256"] == line["weights_sha256"]
        assert not card.report.worst.robust()[line["broken"]].any()
        if line["broken"]:
            of_file = {one.settings["file"]: one for one in card.report.evidence}[file.name]
            assert list(line["autoattack_again"]) == list(map(str, line["broken"]))
            assert of_file.settings["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
            fell = card.report.result("clean").robust() & ~of_file.robust()
            assert fell.nonzero().flatten().tolist() == line["broken"]


def test_a_card_without_autoattack_is_refused(kind, tmp_path):
    card = cards.read_card(kind)
    results = [one for one in card.report.results if one.kind != "autoattack"]
    cards.write_card(
        card.model_copy(update={"report": card.report.model_copy(update={"results": tuple(results)})}), kind
    )
    done = scripts.run("benchmarks/beyond_autoattack", *CALL, "--out", tmp_path / "a.jsonl")
    assert (done.returncode, "no AutoAttack" in done.stderr) == (2, True)
