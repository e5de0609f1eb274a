"""Evaluations that stopped early, wherever a report is shown: anytime intervals, and what was not scored."""

import re

import pytest
import reports
import sample_cards
import torch
from torch import nn

from atent_ext.core.schema import Threat
from atent_ext.core.sequential import running_interval
from atent_ext.data.datasets import Split
from atent_ext.evaluation import drawn
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.integrations.robustbench.card import scored_images
from atent_ext.leaderboard import check, ranking, site, view
from atent_ext.leaderboard.curve import HEIGHT, draw
from atent_ext.leaderboard.view_images import look
from atent_ext.submissions import claims
from atent_ext.submissions.cards import Card

TOTAL = 1000


def stopped(name="stopped"):
    """A card whose 200 images were drawn from 1,000."""
    whole = sample_cards.card(name, claims=[sample_cards.claim("robust", 90)])
    card = whole.model_dump(mode="json")
    report = card["report"] | {"total": TOTAL, "drawn": {"tolerance": 1.0, "ended": "it is decided"}}
    for result in report["results"]:
        del result["interval95_wilson"]
        flags = torch.tensor([flag == "1" for flag in result["flags"]]).numpy()
        result["interval95_anytime"] = running_interval(flags, TOTAL)
    verdicts = claims.verdicts(whole.submission.claims, Report.parse(report, "it"))
    return Card.model_validate(card | {"report": report, "verdicts": verdicts})


def test_board_and_check_have_the_interval_that_holds_whenever_one_stops(tmp_path):
    card = stopped()
    folder = sample_cards.write(tmp_path / "cards", card, sample_cards.card("fixed"))
    assert check.check(tmp_path) == []
    (entry,) = (entry for table in ranking.read(folder) for entry in table.entries if entry.report.drawn)
    low, high = entry.worst.interval95_anytime
    shown = f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"
    assert {badge.text for badge in entry.badges} == {"stopped early", "claim overstated by 40.5"}
    assert draw(entry).low - draw(entry).high == pytest.approx((high - low) * (HEIGHT - 68), abs=0.11)
    site.build(folder, tmp_path / "site")
    page = (tmp_path / "site" / "models" / f"{entry.page}.html").read_text(encoding="utf-8")
    assert shown in page
    assert "200 of 1000 images, drawn at random, were scored, and 800 were not: it is decided" in page
    assert "test, 200 drawn from 1000" in page
    assert f"({shown})" in site.markdown(folder)
    assert "95 % interval (Wilson; anytime where it stopped early)" in site.markdown(folder)
    assert scored_images(card).startswith("200 test images, drawn at random, of")


def test_a_changed_interval_is_found(tmp_path):
    card = stopped()
    results = list(card.report.results)
    results[0] = results[0].model_copy(update={"interval95_anytime": (0.89, 0.9)})
    changed = card.model_copy(update={"report": card.report.model_copy(update={"results": tuple(results)})})
    sample_cards.write(tmp_path / "cards", changed)
    (problem,) = check.check(tmp_path)
    assert "clean: interval95_anytime is 0.8900 to 0.9000, and the flags say" in problem


def test_view_says_what_was_not_scored_and_shows_the_images_that_were(tmp_path):
    rows = drawn.order(6, 3)[:4]
    images = torch.linspace(0.1, 0.6, 6).reshape(6, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = torch.arange(6) % 2
    flags = "".join("01"[int(label)] for label in labels[rows])
    report = reports.drawn("net", flags, 6, seed=3, threat=Threat(norm="Linf", eps=0.0))
    report.save(tmp_path / "r.json")
    one = view.read(tmp_path / "r.json")
    view.write([one, one], tmp_path / "r.html")
    text = re.sub(r"\s+", " ", (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Wilson" not in text
    assert "4 of 6 images, drawn at random, were scored, and 2 were not" in text
    assert "McNemar's sequential test" in text
    subject = Subject(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
        Split(images, labels),
        report.threat,
        About(name="net", model="net", data="few"),
    )
    right = {name: count for name, _, _, count in look(subject, report).classes}
    assert right == {"0": 0, "1": int(labels[rows].sum())}
