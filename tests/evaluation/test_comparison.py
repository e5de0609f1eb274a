"""`atent_ext.compare`: McNemar's exact test on paired flags, corrected by Holm."""

import random

import pytest
from scipy.stats import binomtest

import atent_ext
from atent_ext.attacks.spec import Note
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.core.statistics import holm, interval
from atent_ext.evaluation.report import Report, Result


def result(kind, attack, flags):
    right = flags.count("1")
    return Result(
        kind=kind,
        attack=attack,
        correct=right,
        n=len(flags),
        accuracy=right / len(flags),
        interval95_wilson=interval(right, len(flags)),
        flags=flags,
    )


def report(name, flags, **changes):
    given = {
        "name": name,
        "model": "net",
        "data": "digits",
        "part": "test",
        "n": len(flags),
        "total": 360,
        "protocol": "autoattack",
        "threat": Threat(norm="Linf", eps=0.1),
        "seed": 0,
        "batch_size": 250,
        "results": (
            result("clean", "clean", "1" * len(flags)),
            result("autoattack", "AutoAttack", flags),
            result("worst_case", "worst case", flags),
        ),
    }
    return Report(**given | changes)


def test_the_counts_and_p_values_are_mcnemars():
    a, b = "1" * 12 + "0" * 3 + "1" * 80 + "0" * 5, "0" * 12 + "1" * 3 + "1" * 80 + "0" * 5
    (pair,) = atent_ext.compare(report("a", a), report("b", b)).pairs
    assert (pair.both, pair.a_alone, pair.b_alone, pair.neither) == (80, 12, 3, 5)
    assert pair.p == pair.p_holm == pytest.approx(binomtest(12, 15).pvalue)
    assert pair.verdict == "win"
    (pair,) = atent_ext.compare(report("b", b), report("a", a)).pairs
    assert (pair.a_alone, pair.b_alone, pair.verdict) == (3, 12, "loss")


def test_equal_flags_are_a_tie_with_p_1():
    comparison = atent_ext.compare(report("a", "1101" * 20), report("a", "1101" * 20), attack="autoattack")
    assert [(pair.a, pair.b, pair.p, pair.verdict) for pair in comparison.pairs] == [("a (1)", "a (2)", 1.0, "tie")]
    assert comparison.attack == "AutoAttack"


def test_holm_is_that_of_the_literature():
    # Holm 1979: p_(k) times (m - k + 1), made monotone; the values of R's p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_several_pairs_are_corrected_together():
    draw = random.Random(0)
    flags = ["".join(draw.choice("0111") for _ in range(200)) for _ in range(3)]
    flags.append("0" * 200)
    comparison = atent_ext.compare(*(report(name, text) for name, text in zip("abcd", flags, strict=True)))
    assert [pair.p_holm for pair in comparison.pairs] == pytest.approx(holm([pair.p for pair in comparison.pairs]))
    assert [(pair.a, pair.b) for pair in comparison.pairs if pair.verdict == "win"] == [
        ("a", "d"),
        ("b", "d"),
        ("c", "d"),
    ]
    for pair in comparison.pairs:
        assert pair.both + pair.a_alone + pair.b_alone + pair.neither == 200
    text = str(comparison)
    assert all(word in text for word in ("right alone", "not significantly different", "better", "p (Holm)"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"data": "mnist"}, "data"),
        ({"part": "held-out"}, "part"),
        ({"threat": Threat(norm="Linf", eps=0.2)}, "threat"),
        ({"threat": Threat(norm="L2", eps=0.1)}, "threat"),
        ({"data_sha256": "b" * 64}, "data_sha256"),
    ],
)
def test_other_images_are_refused(change, field):
    digest = {"data_sha256": "a" * 64} if "data_sha256" in change else {}
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11", **digest), report("b", "10", **change))
    assert (error.value.code, error.value.field) == ("conflict", field)


def test_another_number_of_images_no_second_report_and_an_unknown_attack_are_refused():
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11"), report("b", "101"))
    assert error.value.field == "n"
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11"))
    assert error.value.code == "missing"
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11"), report("b", "10"), attack="AutoAtack")
    assert error.value.code == "unknown-name"


def test_clean_accuracy_compares_under_any_radius():
    other = report("b", "10", threat=Threat(norm="Linf", eps=0.2))
    assert atent_ext.compare(report("a", "11"), other, attack="clean").pairs[0].verdict == "tie"


def test_what_else_differs_is_said(tmp_path):
    report("a", "11").save(tmp_path / "a.json")
    report("b", "10", seed=1, chunk=50).save(tmp_path / "b.json")
    comparison = atent_ext.compare(tmp_path / "a.json", str(tmp_path / "b.json"))
    assert comparison.notes == ("seed differs: 0, 1", "chunk differs: None, 50")


def test_held_out_images_compare_only_by_their_hash():
    held_out = {"part": "held out of training"}
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11", **held_out), report("b", "10", **held_out))
    assert (error.value.code, error.value.field) == ("missing", "data_sha256")
    same = {"data_sha256": "a" * 64, **held_out}
    assert atent_ext.compare(report("a", "11", **same), report("b", "10", **same)).pairs[0].both == 1


def test_without_a_hash_the_size_of_the_data_set_counts_too():
    with pytest.raises(BadInput) as error:
        atent_ext.compare(report("a", "11"), report("b", "10", total=1797))
    assert (error.value.code, error.value.field) == ("conflict", "total")


def test_the_worst_case_of_one_attack_is_that_attacks():
    single = report("a", "11").model_copy(update={"results": (result("autoattack", "AutoAttack", "11"),)})
    assert atent_ext.compare(single, report("b", "10")).pairs[0].a_alone == 1


def test_a_changed_autoattack_is_told_from_the_standard_one():
    plain = report("b", "10")
    note = {"kind": "changed", "text": "without Square"}
    changed = plain.results[1].model_copy(update={"notes": (Note(**note),), "settings": {"attacks": ["apgd-ce"]}})
    other = plain.model_copy(update={"results": (plain.results[0], changed, plain.results[2])})
    notes = atent_ext.compare(report("a", "11"), other, attack="autoattack").notes
    assert notes == ("the settings of the attack differ", "AutoAttack was changed in some of the reports")


def test_a_comparison_prints_plain_text_where_colours_are_forced(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # a notebook's console does the same
    assert "\x1b" not in str(atent_ext.compare(report("a", "110"), report("b", "011")))


# ---- until decided


def test_a_clear_difference_is_decided_after_few_images_and_in_favour_of_the_right_one():
    better, worse = report("a", "1" * 300 + "0" * 50), report("b", "1" * 80 + "0" * 270)
    (pair,) = atent_ext.compare(better, worse, until_decided=True).pairs
    assert 8 < pair.scored < 60
    assert pair.both + pair.a_alone + pair.b_alone + pair.neither == pair.scored
    assert (pair.verdict, pair.p < 0.05) == ("win", True)
    (other,) = atent_ext.compare(worse, better, until_decided=True).pairs
    assert (other.verdict, other.scored, other.b_alone) == ("loss", pair.scored, pair.a_alone)
    assert "in random order until decided" in str(atent_ext.compare(better, worse, until_decided=True))


def test_equal_models_are_seldom_told_apart_in_any_order():
    a, b = report("a", "10" * 100), report("b", "01" * 100)
    found = [atent_ext.compare(a, b, until_decided=True, seed=seed).pairs[0] for seed in range(60)]
    assert sum(pair.verdict != "tie" for pair in found) <= 8
    ties = [pair for pair in found if pair.verdict == "tie"]
    assert {(pair.scored, pair.a_alone, pair.b_alone) for pair in ties} == {(200, 100, 100)}


def test_several_pairs_share_the_level():
    flags = ("1" * 300 + "0" * 50, "1" * 80 + "0" * 270, "1" * 80 + "0" * 270)
    reports = [report(name, text) for name, text in zip("abc", flags, strict=True)]
    pairs = atent_ext.compare(*reports, until_decided=True).pairs
    assert [pair.verdict for pair in pairs] == ["win", "win", "tie"]
    assert pairs[0].p_holm == pytest.approx(3 * pairs[0].p)
    assert pairs[0].scored >= atent_ext.compare(*reports[:2], until_decided=True).pairs[0].scored
