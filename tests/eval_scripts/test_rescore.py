"""The script that scores published networks on more images."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import scripts
from commands import atent

from atent_ext.submissions import cards

NETWORK = "quickstart-digits-linf-sgd"
EVIDENCE = "adversaries by atent-ext (annealed ATENT, 1,000 passes)"


@pytest.fixture(scope="module")
def rescore():
    """eval/experiments/rescore.py."""
    return scripts.module("experiments/rescore")


@pytest.fixture
def registry(rescore, tmp_path):
    """A registry with one network."""
    path = rescore.find(NETWORK)
    copy = tmp_path / "registry" / path.relative_to(rescore.REGISTRY)
    copy.parent.mkdir(parents=True)
    shutil.copyfile(path, copy)
    (tmp_path / "registry" / "weights").mkdir()
    weights = rescore.weights_of(path, rescore.REGISTRY / "weights")
    shutil.copyfile(weights, tmp_path / "registry" / "weights" / weights.name)
    return tmp_path / "registry"


@pytest.mark.integration
def test_a_card_is_replaced_by_one_of_other_images_and_keeps_its_evidence(rescore, registry, tmp_path, monkeypatch):
    commands = []

    def here(command):
        """The command that it starts, in this process."""
        assert command[:4] == [sys.executable, "-m", "atent_ext", "verify"]
        commands.append(command)
        return atent(*command[3:])

    monkeypatch.setattr(rescore, "subprocess", SimpleNamespace(run=here))
    before = cards.read_card(rescore.find(NETWORK, registry))
    ask = ("experiments/rescore", NETWORK, "--protocol", "quick", "--out", tmp_path / "out", "--registry", registry)
    for n in (40, 40, 30):  # the first card is of another protocol; then enough images are there
        done = scripts.run(*ask, "--n", n)
        assert done.returncode == 0, done.stderr
    assert len(commands) == 1
    card = cards.read_card(rescore.find(NETWORK, registry))
    assert (card.report.n, card.report.protocol, card.submission) == (40, "quick", before.submission)
    assert card.weights == before.weights
    (kept,) = card.report.evidence
    (old,) = before.report.evidence
    assert (kept.attack, kept.flags) == (EVIDENCE, old.flags[:40])
    assert card.report.of_kind("clean").flags == before.report.of_kind("clean").flags[:40]
    assert rescore.find(NETWORK, registry).with_suffix(".png").stat().st_size > 1000


def test_what_cannot_be_scored_is_refused_before_anything_runs(registry):
    unknown = scripts.run("experiments/rescore", NETWORK, "none", "--registry", registry)
    assert (unknown.returncode, unknown.stderr.split(";")[0]) == (2, "atent: the registry has no card none")
    (registry / "weights" / f"{NETWORK}.safetensors").write_bytes(b"other")
    other = scripts.run("experiments/rescore", NETWORK, "--registry", registry)
    assert other.returncode == 2
    assert f"{NETWORK}.safetensors" in other.stderr
