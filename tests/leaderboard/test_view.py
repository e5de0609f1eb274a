"""`atent view`: the figures of its page, what it refuses, and the page in a browser."""

import json
import re

import pytest
import sample_cards
import torch
from browser import chromium, page
from commands import atent, refused
from reports import report, result

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject
from atent_ext.leaderboard import view
from atent_ext.leaderboard.view_images import look
from atent_ext.submissions.cards import write_card

ATTACK = "</title><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
EPOCHS = [
    {"epoch": 1, "loss": 2.0, "clean": 0.5, "robust": 0.25, "selected": True},
    {"epoch": 2, "loss": 1.0, "clean": 0.75, "robust": 0.5, "selected": False},
]


def scored(name="sample", pgd="1110000000", autoattack="1101000000"):
    both = "".join("01"[a == b == "1"] for a, b in zip(pgd, autoattack, strict=True))
    flags = {"clean": "1" * 8 + "00", "PGD-40": pgd, "AutoAttack": autoattack, "worst case": both}
    results = [result(attack, own.count("1") / 10, 10, flags=own) for attack, own in flags.items()]
    results[1] = results[1].model_copy(update={"settings": {"steps": 40, "restarts": 3}})
    return report(*results, name=name)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.json"
    scored().save(path)
    return path


def text(path):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", path.read_text(encoding="utf-8").partition("<main")[2]))


def test_each_image_falls_once(written):
    shown = view.read(written)
    # Two are wrong when clean, five more under PGD, one that PGD leaves under AutoAttack, and two withstand both.
    assert shown.fallen == [
        ("wrong without an attack", 2),
        ("fell first to PGD-40", 5),
        ("fell first to AutoAttack", 1),
        ("right under all of them", 2),
    ]
    assert shown.passes == {"PGD-40": 120}


def test_one_report_is_one_page_beside_it(written):
    done = atent("view", written)
    assert done.returncode == 0, done.stderr
    shown = text(written.with_suffix(".html"))
    for part in ("PGD-40 30.0", "3 of 10 120", "fell first to PGD-40 5", "test, the first 10 of 360", "ℓ∞ eps 0.15"):
        assert part in shown


def test_two_reports_are_compared(written, tmp_path):
    scored("other", pgd="0000011111").save(tmp_path / "b.json")
    assert atent("view", written, tmp_path / "b.json", "--out", tmp_path / "two.html").returncode == 0
    shown = text(tmp_path / "two.html")
    # Under PGD the first alone keeps 3 images, the second alone 5: p is that of 3 of 8 throws.
    assert "PGD-40 3 5 0 2 0.73 not significantly different" in shown
    assert "clean 0 0 8 2 1 not significantly different" in shown


def test_a_run_has_its_curves_and_its_largest_report(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, EPOCHS)))
    scored().save(tmp_path / "eval-x.json")
    shown = view.read(tmp_path)
    loss, accuracy = shown.charts
    assert [mark.text for mark in loss.lines[0].points] == ["loss, epoch 1: 2", "loss, epoch 2: 1"]
    assert [line.attack for line in accuracy.lines] == ["clean, held-out images", "robust, held-out images"]
    top, low = loss.lines[0].points
    assert (top.y, low.y) == (loss.up[4].y, loss.up[2].y)  # 2 is the most, 1 half of it
    assert atent("view", tmp_path).returncode == 0
    assert "2 epochs; epoch 1 was kept" in text(tmp_path / "view.html")


def test_a_card_has_claims_signs_and_curve(tmp_path):
    card = sample_cards.card("mine")
    write_card(card, tmp_path / "card.json")
    shown = view.read(tmp_path / "card.json")
    assert {line.attack for line in shown.charts[0].lines} == set(card.curve["accuracy"])
    view.write([shown], tmp_path / "card.html")
    assert "zero gradients not found" in text(tmp_path / "card.html")


def test_images_show_who_fell_and_to_what():
    # Two classes by the mean of a pixel: the first images lie near the boundary and fall within eps, the last do not.
    images = torch.tensor([0.45, 0.55, 0.1, 0.9]).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous()
    labels = torch.tensor([0, 1, 0, 1])
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([2.0, -2.0]))
    subject = Subject(model, Split(images, labels), Threat(norm="Linf", eps=0.15), About(name="a", model="b", data="c"))
    flags = {"clean": "1111", "PGD-40": "0011", "worst case": "0011"}
    seen = look(subject, report(*(result(name, own.count("1") / 4, 4, flags=own) for name, own in flags.items())))
    assert seen.classes == (("0", 2, 2, 1), ("1", 2, 2, 1))
    assert seen.confusion == ((1, 1), (1, 1))
    assert [(one.index, one.label, one.attack, one.found) for one in seen.fallen] == [
        (0, "0", "PGD-40", True),
        (1, "1", "PGD-40", True),
    ]
    assert [one.before[0][0] for one in seen.fallen] == ["0", "1"]
    assert [one.after[0][0] for one in seen.fallen] == ["1", "0"]
    with pytest.raises(BadInput) as error:
        look(subject, scored())
    assert (error.value.code, error.value.field) == ("other-content", "subject")


def test_what_is_no_report_is_refused(tmp_path, written):
    refused(atent("view", tmp_path / "nowhere.json"), "does not exist")
    (tmp_path / "empty").mkdir()
    refused(atent("view", tmp_path / "empty"), "holds no metrics and no report")
    (tmp_path / "x.json").write_text("{")
    refused(atent("view", tmp_path / "x.json"), "is no JSON file")
    refused(atent("view", written, written, written), "3 are named")
    other = report(result("clean", 0.5, 20))
    other.save(tmp_path / "b.json")
    refused(atent("view", written, tmp_path / "b.json"), "only reports of the same images compare")


def test_the_page_says_nothing_fetches_nothing_and_runs_nothing_of_a_stranger(tmp_path):
    scored(ATTACK).save(tmp_path / "a.json")
    view.write([view.read(tmp_path / "a.json")] * 2, tmp_path / "a.html")
    with (
        chromium() as browser,
        page(browser, tmp_path / "a.html", viewport={"width": 390, "height": 844}) as (seen, heard),
    ):
        assert seen.get_by_role("button", name="Theme: system").is_visible()
        assert heard.errors == []
        assert len(heard.requests) == 1
        assert seen.evaluate("window.hacked") is None
        assert seen.evaluate("document.documentElement.scrollWidth <= innerWidth")
