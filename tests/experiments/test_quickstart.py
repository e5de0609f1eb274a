import json

import pytest
from problems import attack_spec

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import Report
from atent_ext.experiments.quickstart import METHODS, quickstart

PNG = b"\x89PNG\r\n\x1a\n"
# The real thing takes minutes: here two epochs of few images, and PGD in the place of AutoAttack.
TINY = ("epochs=2", "examples=320", "validation.count=100", "validation.steps=2")
SHORT = Protocol(name="short", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=3, restarts=1)))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    begun = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atent_ext.experiments.quickstart.load_protocol", lambda name: SHORT)
        reports = quickstart(out, n=40, overrides=TINY, scoring_begins=begun.append)
    return out, reports, begun


def test_it_trains_and_scores_the_five_methods(result):
    out, reports, begun = result
    assert begun == [f"digits-linf-{method}" for method in METHODS]
    assert [report.name for report in reports] == begun
    written = json.loads((out / "results.json").read_text())
    assert [Report.parse(one, "results.json") for one in written] == reports
    for report in reports:
        assert [r.attack for r in report.results] == ["clean", "PGD-3", "worst case"]
        assert all(r.n == 40 for r in report.results)


def test_it_writes_a_ranked_table(result):
    out, _, _ = result
    text = (out / "leaderboard.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == ["1", "2", "3", "4", "5"]
    worst = [float(row[-1].split()[0]) for row in rows]
    assert worst == sorted(worst, reverse=True)
    assert "the first 40 of 360" in text
    assert "seed 0" in text


def test_it_draws_pictures(result):
    out, _, _ = result
    for name in ("accuracy_vs_eps.png", "adversaries.png"):
        assert (out / name).read_bytes().startswith(PNG)


@pytest.fixture
def undrawn(monkeypatch):
    """The pictures of `result` are not drawn again."""
    monkeypatch.setattr("atent_ext.experiments.quickstart._draw", lambda *_: None)


@pytest.mark.usefixtures("undrawn")
def test_it_goes_on_where_it_stopped_and_does_not_overwrite_in_silence(result, tmp_path):
    out, reports, _ = result
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atent_ext.experiments.quickstart.load_protocol", lambda name: SHORT)
        again = quickstart(out, n=40, overrides=TINY)
    assert [r.results[1].flags for r in again] == [r.results[1].flags for r in reports]
    with pytest.raises(BadInput, match="was trained with seed = 0, not 1"):
        quickstart(out, n=40, overrides=TINY, seed=1)
    with pytest.raises(BadInput, match="only 360 examples"):
        quickstart(tmp_path, n=361)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_scores_of_another_setting_stay(result, monkeypatch, tmp_path):
    out, _, _ = result
    monkeypatch.setattr("atent_ext.experiments.quickstart.load_protocol", lambda name: SHORT)
    scores = out / "scores" / "digits-linf-sgd.json"
    before = scores.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("atent_ext.evaluation.engine.score", lambda *_: pytest.fail("it was scored again"))
        assert quickstart(out, n=40, overrides=TINY) == result[1]
        with pytest.raises(BadInput) as error:
            quickstart(out, n=30, overrides=TINY)
    assert (error.value.code, error.value.field) == ("other-content", "n")
    assert f"{scores} was made with n = 40, not 30" in str(error.value)
    assert scores.read_bytes() == before
    scores.write_text("[3]")
    with pytest.raises(BadInput, match="is there and no report") as error:
        quickstart(out, n=40, overrides=TINY)
    assert error.value.code == "exists"
    scores.write_bytes(before)


def test_what_an_override_carries_along_is_heard(monkeypatch, tmp_path):
    heard = []
    monkeypatch.setattr("atent_ext.experiments.runner.fit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        quickstart(tmp_path, overrides=("threat.eps=0.1",), notice=heard.append)
    # Of all five before the first is trained; SGD, which comes first, has no eps of its own.
    assert [text.partition(" ")[0] for text in heard] == ["threat.eps", *4 * ["objective.eps", "threat.eps"]]
