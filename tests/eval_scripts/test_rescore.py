"""The script that scores published networks on more images."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import scripts
from commands import atent

from atent_ext.attacks.spec import Outcome
from atent_ext.evaluation.report import result_of
from atent_ext.evaluation.run import worst_of
from atent_ext.submissions import cards

NETWORK = "quickstart-digits-linf-sgd"
EVIDENCE = "adversaries by atent-ext (annealed ATENT, 1,000 passes)"


@pytest.fixture(scope="module")
def rescore():
    """eval/experiments/rescore.py."""
    return scripts.module("experiments/rescore")


@pytest.fixture
def registry(rescore, tmp_path):
    """A registry with one network, whose card is of 40 images; evidence breaks image 34, which PGD leaves."""
    (path,) = rescore.REGISTRY.glob(f"cards/*/*/{NETWORK}.json")
    copy = tmp_path / "registry" / path.relative_to(rescore.REGISTRY)
    (tmp_path / "registry" / "weights").mkdir(parents=True)
    shutil.copy(rescore.REGISTRY / "weights" / f"{NETWORK}.safetensors", tmp_path / "registry" / "weights")
    card = cards.read_card(path)
    outcomes = {one.attack: (one, one.robust()[:40]) for one in card.report.results if one.kind != "worst_case"}
    outcomes[EVIDENCE][1][34] = False
    results = [
        result_of(Outcome(one.kind, one.attack, one.settings, flags, one.seconds)) for one, flags in outcomes.values()
    ]
    report = card.report.model_copy(update={"n": 40, "results": (*results, worst_of(results))})
    copy.parent.mkdir(parents=True)
    cards.write_card(card.model_copy(update={"report": report}), copy)
    return tmp_path / "registry"


@pytest.mark.integration
def test_a_card_is_replaced_by_one_of_more_images_and_keeps_its_evidence(registry, tmp_path, monkeypatch):
    commands = []

    def here(command):
        """The command that it starts, in this process."""
        assert command[:4] == [sys.executable, "-m", "atent_ext", "verify"]
        commands.append(command)
        return atent(*command[3:])

    monkeypatch.setattr(scripts.module("experiments/zoo"), "subprocess", SimpleNamespace(run=here))
    (path,) = registry.glob("cards/*/*/*.json")
    before = cards.read_card(path)
    (old,) = before.report.evidence
    ask = ("experiments/rescore", NETWORK, "--out", tmp_path / "out", "--registry", registry, "--n")
    for _ in range(2):  # the second time enough images are there
        done = scripts.run(*ask, 60, "--protocol", "quick")
        assert done.returncode == 0, done.stderr
    assert len(commands) == 1
    card = cards.read_card(path)
    assert (card.report.n, card.report.protocol, card.submission) == (60, "quick", before.submission)
    assert card.weights == before.weights
    (kept,) = card.report.evidence
    clean = card.report.of_kind("clean").flags
    assert clean[:40] == before.report.of_kind("clean").flags
    assert (kept.attack, kept.flags) == (EVIDENCE, old.flags + clean[40:])
    assert (card.report.result("PGD-20").flags[34], card.report.worst.flags[34]) == ("1", "0")
    assert path.with_suffix(".png").stat().st_size > 1000
    fewer = scripts.run(*ask, 50)
    assert (fewer.returncode, fewer.stderr) == (
        2,
        f"atent: n is 50, and the card of {NETWORK} has 60 images; ask for as many at least\n",
    )
    assert len(commands) == 1


def test_what_cannot_be_scored_is_refused_before_anything_runs(registry):
    ask = ("experiments/rescore", NETWORK, "--registry", registry)
    unknown = scripts.run(*ask, "none")
    assert (unknown.returncode, unknown.stderr.split(";")[0]) == (2, "atent: the registry has no card none")
    weights = registry / "weights" / f"{NETWORK}.safetensors"
    weights.write_bytes(b"other")
    other = scripts.run(*ask)
    assert other.returncode == 2
    assert weights.name in other.stderr
    weights.unlink()
    assert scripts.run(*ask).stderr.startswith(f"atent: the registry has no weights of {NETWORK}; put {weights.name} ")
