"""What lies where a report is to go: a report of the same setting is the answer, and nothing else is replaced."""

import json
from dataclasses import replace

import pytest
import torch
from problems import visible
from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import earlier, engine, scoring
from atent_ext.evaluation.journal import Difference, differences
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject

THREAT = Threat(norm="Linf", eps=0.1)


def protocol(*steps, name="mine", **fields):
    attacks = [{"attack": "clean"}, *({"attack": "pgd", "steps": count} for count in steps)]
    return Protocol(name=name, description=fields.get("description", ""), attacks=attacks)


def network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def subject(seed=0, shift=0.0, **about):
    split = Split(
        torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(1)) * 0.9 + shift, torch.arange(20) % 3
    )
    known = {"name": "n", "model": "net", "weights_sha256": "1f", "data": "d"} | about
    return Subject(network(seed), split, THREAT, About(**known))


@pytest.fixture
def scored(monkeypatch):
    """The numbers of the chunks that were scored."""
    numbers, score = [], engine.score
    monkeypatch.setattr(engine, "score", lambda *given: (numbers.append(given[2].number), score(*given))[1])
    return numbers


@pytest.fixture
def same(tmp_path):
    return {"subject": subject(), "protocol": protocol(1), "chunk": 10, "path": tmp_path / "r.json"}


def names(folder):
    return [path.name for path in visible(folder)]


def test_the_same_setting_gives_the_finished_report_and_nothing_is_scored(same, scored, tmp_path):
    first = scoring.score(**same)
    assert scored == [0, 1]
    stamp = same["path"].stat().st_mtime_ns
    again = scoring.score(**same | {"subject": subject(), "protocol": protocol(1, description="in other words")})
    assert scored == [0, 1]
    assert again == first == Report.load(same["path"])
    assert same["path"].stat().st_mtime_ns == stamp
    assert names(tmp_path) == ["r.json"]
    anew = scoring.score(**same, overwrite=True)
    assert scored == [0, 1, 0, 1]
    assert [one.flags for one in anew.results] == [one.flags for one in first.results]
    assert same["path"].stat().st_mtime_ns > stamp


CHANGES = {
    "seed": ({"seed": 1}, "seed = 0, not 1"),
    "batch_size": ({"batch_size": 4}, "batch_size = 10, not 4"),
    "chunk": ({"chunk": 5}, "chunk = 10, not 5; batch_size = 10, not 5"),
    "speed": ({"speed": "plain"}, "speed = 'channels-last', not 'plain'"),
    "n": ({"n": 19}, "n = 20, not 19"),
    "protocol.attacks.1.steps": ({"protocol": protocol(2)}, "protocol.attacks.1.steps = 1, not 2"),
    "protocol.attacks.2.attack": ({"protocol": protocol(1, 2)}, "protocol.attacks.2.attack = None, not 'pgd'; "),
    "protocol.name": ({"protocol": protocol(1, name="other")}, "protocol.name = 'mine', not 'other'"),
    "weights_sha256": ({"subject": subject(seed=1, weights_sha256="2e")}, "weights_sha256 = '1f', not '2e'"),
    "model": ({"subject": subject(model="web")}, "model = 'net', not 'web'"),
    "data": ({"subject": subject(data="e")}, "data = 'd', not 'e'"),
    "threat.eps": ({"subject": replace(subject(), threat=Threat(norm="Linf", eps=0.2))}, "threat.eps = 0.1, not 0.2"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_report_of_another_setting_stays_and_what_differs_is_named(same, scored, tmp_path, field):
    change, said = CHANGES[field]
    scoring.score(**same)
    before = same["path"].read_bytes()
    with pytest.raises(BadInput) as error:
        scoring.score(**same | change)
    assert (error.value.code, error.value.field) == ("other-content", field)
    assert str(error.value).startswith(f"{same['path']} was made with {said}")
    assert str(error.value).endswith("; give --overwrite to replace it, or name another --out")
    assert same["path"].read_bytes() == before
    assert scored == [0, 1]
    assert names(tmp_path) == ["r.json"]
    other = scoring.score(**same | change, overwrite=True)
    assert scoring.score(**same | change) == other == Report.load(same["path"])


def test_other_images_or_weights_under_the_same_names_are_other_content(same):
    scoring.score(**same)
    for other, field in ((subject(shift=0.05), "data_sha256"), (subject(seed=1), "content_sha256")):
        with pytest.raises(BadInput) as error:
            scoring.score(**same | {"subject": other})
        assert (error.value.code, error.value.field) == ("other-content", field)


def test_another_version_is_another_setting(same, monkeypatch):
    scoring.score(**same)
    monkeypatch.setattr(scoring, "__version__", "99")
    with pytest.raises(BadInput, match=r"versions\.atent-ext = .*, not '99'") as error:
        scoring.score(**same)
    assert error.value.field == "versions.atent-ext"


def test_a_speed_that_was_measured_is_not_measured_again(same, scored, monkeypatch):
    asked, prepare = [], scoring.prepare
    monkeypatch.setattr(scoring, "prepare", lambda *given: (asked.append(given[2:]), prepare(*given))[1])
    report = scoring.score(**same, speed="auto")
    assert scoring.score(**same, speed="auto").speed == report.speed
    assert asked == [("auto", None), (report.speed, report.folded)]
    assert scored == [0, 1]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "{}", '{"results": [{"n": 2}]}', '{"results": [], "protocol": 1}']
)
def test_a_file_that_is_no_report_stays(same, scored, text):
    same["path"].write_text(text)
    with pytest.raises(BadInput) as error:
        scoring.score(**same)
    assert (error.value.code, error.value.field) == ("exists", "out")
    assert same["path"].read_text() == text
    assert scored == []
    scoring.score(**same, overwrite=True)
    assert scored == [0, 1]


def test_a_report_that_does_not_say_its_attacks_or_content_is_not_taken_for_this_one(same):
    report = scoring.score(**same)
    report.model_copy(update={"data_sha256": None}).save(same["path"])  # as older versions wrote it
    assert scoring.score(**same).data_sha256 is None
    for key in ("protocol_attacks", "content_sha256"):
        report.model_copy(update={key: None}).save(same["path"])
        with pytest.raises(BadInput) as error:
            scoring.score(**same)
        assert error.value.code == "other-content"


# ---- with chunks beside it


def interrupted(same, **change):
    """One chunk is scored, then Ctrl-C."""

    def stop(standing):
        if standing.done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scoring.score(**same | change, progress=stop)


def test_an_overwriting_that_was_interrupted_goes_on(same, scored, tmp_path):
    scoring.score(**same)
    before, other = same["path"].read_bytes(), {"seed": 5, "overwrite": True}
    interrupted(same, **other)
    assert same["path"].read_bytes() == before
    assert scored == [0, 1, 0]
    still_there = Report.parse(json.loads(before), "it")
    assert scoring.score(**same | {"overwrite": False}) == still_there
    assert names(tmp_path) == ["r.json", "r.json.chunks"]
    assert scoring.score(**same | other).seed == 5
    assert scored == [0, 1, 0, 1]
    assert names(tmp_path) == ["r.json"]


def test_chunks_of_another_setting_are_replaced_only_if_told(same, scored, tmp_path):
    interrupted(same)
    folder = tmp_path / "r.json.chunks"
    with pytest.raises(BadInput, match=r"holds chunks scored with seed = 0, not 7; .* as --overwrite does") as error:
        scoring.score(**same, seed=7)
    assert (error.value.code, error.value.field) == ("other-content", "seed")
    assert names(folder) == ["0000.json", "setting.json"]
    interrupted(same, seed=7, overwrite=True)
    assert json.loads((folder / "setting.json").read_text())["seed"] == 7
    (folder / "setting.json").write_text("{")
    with pytest.raises(BadInput, match="no whole setting") as error:
        scoring.score(**same, seed=7)
    assert error.value.code == "unreadable"
    scoring.score(**same, seed=7, overwrite=True)
    assert scored == [0, 0, 0, 1]


def test_what_a_kill_left_beside_a_finished_report_is_removed(same, scored, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(scoring.Journal, "discard", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            scoring.score(**same)
    assert names(tmp_path) == ["r.json", "r.json.chunks"]
    scoring.score(**same)
    assert scored == [0, 1]
    assert names(tmp_path) == ["r.json"]


# ---- the parts


def test_differences_are_named_by_their_place():
    old, new = {"a": 1, "b": {"c": [1, 2]}, "d": 0}, {"e": 5, "b": {"c": [1, 3, 4]}, "d": 0}
    expected = [("e", None, 5), ("b.c.1", 2, 3), ("b.c.2", None, 4), ("a", 1, None)]
    assert differences(old, new) == [Difference(*one) for one in expected]
    assert differences(new, new) == []
    many = [Difference(str(k), k, k + 1) for k in range(5)]
    with pytest.raises(BadInput) as error:
        earlier.refuse(many, "it")
    assert str(error.value).startswith("it was made with 0 = 0, not 1; 1 = 1, not 2; 2 = 2, not 3 and 2 more; give")
    earlier.refuse([], "it")


def test_a_report_at_hand_is_compared_in_the_same_way(same):
    report = scoring.score(**same)
    asked = {key: value for key, value in same.items() if key != "path"}
    scoring.require_same(report, "the card", **asked)
    scoring.require_same(report, "the card", **asked, speed="auto")
    with pytest.raises(BadInput, match=r"^the card was made with seed = 0, not 1; give --overwrite"):
        scoring.require_same(report, "the card", **asked, seed=1)


def test_overwriting_prepares_the_model_anew_and_not_as_the_chunks_of_another_setting(same, monkeypatch):
    interrupted(same, speed="plain")
    asked, prepare = [], scoring.prepare
    monkeypatch.setattr(scoring, "prepare", lambda *given: (asked.append(given[2:]), prepare(*given))[1])
    scoring.score(**same, seed=7, overwrite=True)
    assert asked == [("channels-last", None)]
