"""Evaluations that stop when an interval says enough: random order, growing chunks, anytime intervals."""

import numpy as np
import pytest
import reports
import torch
from commands import atent
from problems import attack_spec
from torch import nn

import atent_ext
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.core.sequential import confidence_sequence, running_interval
from atent_ext.data.datasets import Split
from atent_ext.data.splits import Stored
from atent_ext.evaluation import anytime, chunks, drawn, engine, scoring
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject

COUNT = 300
PLAN = Protocol(name="mine", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=2)))


class Level(nn.Module):
    """Class 1 where the first pixel exceeds 0.5."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        score = x.flatten(1)[:, 0] - self.level
        return torch.stack([-score, score], 1)


def subject():
    """The first 200 of 300 images are right within eps, the last 100 only when clean."""
    images = torch.full((COUNT, 1, 2, 2), 0.9)
    images[200:] = 0.55
    return Subject(
        Level(),
        Split(images, torch.ones(COUNT, dtype=torch.long)),
        Threat(norm="Linf", eps=0.1),
        About(name="level", model="level", data="levels"),
    )


def score(points, path=None, **options):
    return scoring.score(subject(), PLAN, path=path, until=anytime.until_width(points), chunk=40, **options)


def test_chunks_grow_up_to_their_size():
    cut = chunks.cut(150, 40, seed=3, growing=True)
    assert [(c.start, c.stop, c.seed) for c in cut] == [
        *[(0, 10, 3), (10, 20, 4), (20, 40, 5), (40, 80, 6), (80, 120, 7), (120, 150, 8)]
    ]
    assert [(c.start, c.stop) for c in chunks.cut(7, 40, growing=True)] == [(0, 7)]
    assert [c.stop for c in chunks.cut(9, 4, growing=True)] == [4, 8, 9]


def test_it_scores_images_in_random_order_until_the_interval_is_narrow():
    looks = []
    report = score(25, seed=5, progress=looks.append)
    right = (drawn.order(COUNT, 5)[: report.n] < 200).numpy()
    assert report.worst.flags == "".join("01"[int(flag)] for flag in right)
    low, high = report.worst.interval95_anytime
    assert (low, high) == running_interval(right, COUNT)
    assert high - low <= 0.25 < np.subtract(*running_interval(right[: report.n // 2], COUNT)[::-1])
    assert all(result.interval95_wilson is None for result in report.results)
    assert "interval95_wilson" not in report.to_json()
    assert report.n < COUNT == report.total
    assert [look.worst for look in looks][-1] == (low, high)
    assert "Wilson" not in str(report)
    assert f"{report.n} of 300 images, drawn at random, were scored, and {COUNT - report.n} were not" in report.notes[0]
    assert report.split == f"test, {report.n} drawn from 300"
    assert Report.parse(report.model_dump(mode="json"), "it") == report


def test_a_stopped_evaluation_goes_on_from_where_it_was(tmp_path, monkeypatch):
    path, scored = tmp_path / "r.json", []
    original = engine.score
    monkeypatch.setattr(engine, "score", lambda *given: (scored.append(given[2].start), original(*given)))
    first = score(30, path)
    wide = score(60, path)  # it is narrow enough for both
    assert (wide.drawn.width, wide.drawn.ended.endswith("at most 60 points wide")) == (60, True)
    assert score(30, path) == wide.model_copy(update={"drawn": first.drawn}) == first == Report.load(path)
    begun = list(scored)
    second = score(12, path)
    assert second.n > first.n
    assert scored == sorted(set(scored))  # no chunk was scored twice
    assert len(scored) > len(begun)
    assert [result.flags for result in second.results] == [result.flags for result in score(12).results]
    last = score(0.01, path)
    assert last.n == COUNT
    assert last.worst.interval95 == (200 / 300, 200 / 300)
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]  # nothing is left to go on with
    scored.clear()
    assert score(30, path, overwrite=True).n == first.n
    assert len(scored) == len(begun)


def test_n_is_the_most_that_is_scored_and_can_be_raised_later(tmp_path):
    path = tmp_path / "r.json"
    first = score(0.01, path, n=15)
    assert (first.n, first.drawn.ended) == (15, "n is 15")
    second = score(0.01, path, n=70)
    assert second.n == 70
    assert second.worst.flags == score(0.01, n=70).worst.flags


def test_images_in_files_are_read_as_they_are_drawn():
    images, asked = torch.rand(30, 1, 2, 2), []

    def read(positions):
        asked.append(positions)
        return images[positions.start : positions.stop]

    stored = drawn.first(Stored(read, torch.arange(30), (1, 2, 2)), 12, seed=3)
    rows = drawn.order(30, 3)[:12]
    assert asked == []
    part = stored[4:9]
    assert torch.equal(part.images, images[rows[4:9]])
    assert torch.equal(part.labels, rows[4:9])
    assert [place for positions in asked for place in positions] == sorted(rows[4:9].tolist())


def test_other_evaluations_keep_order_and_interval_and_are_not_mixed_up_with_it(tmp_path):
    path = tmp_path / "r.json"
    score(30, path)
    for options in ({}, {"n": 40}):
        with pytest.raises(BadInput) as error:
            scoring.score(subject(), PLAN, path=path, chunk=40, **options)
        assert (error.value.code, error.value.field) == ("other-content", "n")
    plain = scoring.score(subject(), PLAN, chunk=40)
    assert plain.drawn is None
    assert plain.worst.flags == "1" * 200 + "0" * 100
    assert "drawn" not in plain.to_json()
    assert plain.worst.interval95_anytime is None


def test_the_public_call_and_its_width():
    one = subject()
    how = {"norm": "Linf", "eps": 0.1, "protocol": PLAN, "chunk": 40}
    report = atent_ext.evaluate(one.model, one.test.images, one.test.labels, until_width=30, **how)
    assert [result.flags for result in report.results] == [result.flags for result in score(30).results]
    for width in (0, -1, 101, float("nan"), "3", True):
        with pytest.raises(BadInput) as error:
            anytime.until_width(width)
        code = "bad-type" if width in ("3", True) else "bad-value"
        assert (error.value.code, error.value.field) == (code, "until_width")


def test_the_running_interval_is_the_intersection_of_all_so_far():
    right = np.arange(40) % 3 > 0
    bounds = [confidence_sequence(int(right[:n].sum()), n, 100) for n in range(1, 41)]
    expected = max(low for low, _ in bounds), min(high for _, high in bounds)
    assert running_interval(right, 100) == pytest.approx(expected)
    assert running_interval(right, 40) == (right.mean(), right.mean())
    ups_and_downs = np.arange(300) < 100  # in an order that is not random the intervals exclude each other
    low, high = running_interval(ups_and_downs, 301)
    assert 0 <= low <= high <= 1


def test_a_report_has_the_interval_of_how_its_images_were_chosen():
    stopped = reports.drawn("a", "1" * 20, 100).model_dump(mode="json")
    fixed = reports.report(reports.result("clean")).model_dump(mode="json")
    for whole, old, new in (
        (stopped, "interval95_anytime", "interval95_wilson"),
        (fixed, "interval95_wilson", "interval95_anytime"),
    ):
        one = whole["results"][0]
        for result, reason in (
            (one | {new: one[old]}, "needs one interval"),
            (one | {old: None}, "needs one interval"),
            (one | {old: None, new: one[old]}, "chosen in another way"),
        ):
            with pytest.raises(BadInput, match=reason):
                Report.parse(whole | {"results": [result, *whole["results"][1:]]}, "it")


def test_stopped_evaluations_are_compared_by_the_sequential_test_on_what_both_scored():
    better, worse = reports.drawn("better", "1" * 80, 1000), reports.drawn("worse", "10" * 60, 1000)
    comparison = atent_ext.compare(better, worse)
    (pair,) = comparison.pairs
    assert (comparison.n, pair.verdict) == (80, "win")
    assert pair.scored == pair.both + pair.a_alone + pair.b_alone + pair.neither < 80
    assert "anytime" in str(comparison)
    for other, field in (
        (reports.drawn("other", "1" * 80, 1000, seed=1), "seed"),
        (
            reports.report(*[reports.result(name, n=80) for name in ("clean", "worst case")], data_sha256="0" * 64),
            "drawn",
        ),
    ):
        with pytest.raises(BadInput) as error:
            atent_ext.compare(better, other)
        assert (error.value.code, error.value.field) == ("conflict", field)


def test_the_command_stops_and_goes_on(tmp_path):
    out = tmp_path / "r.json"
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    of = [f"{tmp_path / 'net.py'}:net", "--dataset", "digits", "--norm", "Linf", "--eps", 0.01, "--protocol", "quick"]
    first = atent("eval", *of, "--out", out, "--until-width", 40)
    assert first.returncode == 0, first.stderr
    assert "95 %, anytime" in first.stdout
    assert "chunks are done, worst case" in first.stdout
    assert "drawn at random, were scored" in first.stdout
    assert "written earlier" in atent("eval", *of, "--out", out, "--until-width", 50).stdout
    again = atent("eval", *of, "--out", out, "--until-width", 20)
    assert "written: " in again.stdout
    assert Report.load(out).drawn.width == 20
