"""Images that AutoAttack left and annealed ATENT breaks: found, added to the card, and counted on the board."""

import hashlib
import json
import shutil

import pytest
import scripts
from commands import atent

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
    file, weights = tmp_path / "beyond" / f"{NAME}-20-0.npz", tmp_path / "weights"
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
    assert [path.name for path in (tmp_path / "beyond").iterdir()] == [f"{NAME}-20-0.npz"]


def test_the_committed_lines_are_what_the_cards_have():
    script = scripts.module("benchmarks/beyond_autoattack")
    for line in lines(script.RESULTS):
        file = script.RESULTS.parent / "beyond" / f"{line['network']}-{line['passes']}-{line['seed']}.npz"
        assert file.is_file() == bool(line["broken"])
        (card, *_), _ = zoo.find(line["network"])
        assert (line["autoattack"], line["card_n"]) == (len(script.left(card)), card.report.n)
        assert card.weights["sha256"] == line["weights_sha256"]
        assert not card.report.worst.robust()[line["broken"]].any()
        of_file = {one.settings["file"]: one for one in card.report.evidence}.get(file.name)
        if of_file is not None:
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
