"""The report: written and read back, also what version 1 wrote; what it says; what is no report."""

import json
from pathlib import Path

import pytest
import reports
import sample_cards
import torch
from reports import result
from rich import console

from atent_ext.attacks.spec import Note, Outcome
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.report import Report, Result, result_of
from atent_ext.experiments.quickstart import markdown
from atent_ext.leaderboard import check, ranking
from atent_ext.submissions import cards

ROOT = Path(__file__).resolve().parents[2]
WARNED = Note(kind="warning", text="AutoAttack warns: it is random")


def sample(**fields):
    """Clean accuracy, two attacks, AutoAttack and the worst case of ten images."""
    return reports.report(
        result("clean", 0.9, 10),
        result("PGD-40 x 3, every iterate", 0.6, 10, settings={"steps": 40, "step_size": None, "parts": ["a", 1.5]}),
        result("PGD-40", 0.7, 10),
        result("AutoAttack", 0.5, 10, robust_after={"clean": 9, "apgd-ce": 5}, notes=[WARNED], seconds=1.5),
        result("worst case", 0.4, 10, settings={"over": "clean, PGD-40, AutoAttack"}),
        **fields,
    )


# ---- written and read back


def test_a_report_that_is_written_reads_back(tmp_path):
    whole = sample(
        weights_sha256="ab",
        recipe={"name": "x", "objective": {"steps": 3}},
        versions={"torch": "2", "none": None},
        smaller_batches={"3": 10},
        speed="plain",
        folded=True,
        chunk=5,
        prepared=["folded"],
        machine={"device": "cpu", "threads": 1},
    )
    whole.save(tmp_path / "r.json")
    assert (tmp_path / "r.json").read_text(encoding="utf-8") == whole.to_json()
    assert Report.load(tmp_path / "r.json") == Report.load(str(tmp_path / "r.json")) == whole
    assert Report.parse(json.loads(whole.to_json()), "it") == whole
    assert json.loads(whole.to_json())["version"] == 2


def test_an_outcome_becomes_a_result_that_has_its_flags():
    flags = torch.tensor([True, False, True, True])
    found = result_of(Outcome("autoattack", "AutoAttack", {"x": 1}, flags, 1.26, (WARNED,), {"clean": 4}))
    assert torch.equal(found.robust(), flags)
    assert (found.kind, found.correct, found.n, found.accuracy, found.seconds) == ("autoattack", 3, 4, 0.75, 1.3)
    assert (found.notes, found.robust_after, found.settings) == ((WARNED,), {"clean": 4}, {"x": 1})


def test_fields_of_a_newer_program_are_left_out():
    assert Report.parse(json.loads(sample().to_json()) | {"weather": "fair"}, "it") == sample()


# ---- what version 1 wrote


def committed(value):
    """The reports of version 1 in nested data."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and "split" in value and isinstance(value.get("results"), list):
        yield value
    for part in parts:
        yield from committed(part)


FILES = [path for part in ("registry/cards", "eval/results") for path in sorted((ROOT / part).rglob("*.json"))]
OLD = [(path, raw) for path in FILES for raw in committed(json.loads(path.read_text(encoding="utf-8")))]
BY_HAND = ("commands", "commits", "parity")
FIGURES = ("attack", "correct", "n", "accuracy", "seconds", "flags")


def test_the_committed_reports_are_found():
    assert len([path for path, _ in OLD if "zoo" in path.parts]) > 50
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in FILES if "cards" in path.parts]
    assert len(cards) >= 43
    new = {"protocol_attacks", "content_sha256", "weights_notes"}
    for raw in (card["report"] for card in cards):
        found = Report.parse(raw, "it")
        assert (raw["version"], json.loads(found.to_json()).keys()) == (2, {*raw, *new})
        assert [result.flags for result in found.results] == [result["flags"] for result in raw["results"]]


@pytest.mark.parametrize("raw", [raw for _, raw in OLD], ids=[path.stem for path, _ in OLD])
def test_a_committed_report_is_read_with_all_it_says(raw):
    found = Report.parse(raw, "it")
    assert found.split == raw["split"]
    assert {result.n for result in found.results} == {found.n}
    assert len(found.results) == len(raw["results"])
    for now, old in zip(found.results, raw["results"], strict=True):
        assert {name: getattr(now, name) for name in FIGURES} == {name: old[name] for name in FIGURES}
        assert list(now.interval95_wilson) == old["interval95_wilson"]
        assert list(now.robust_after.items()) == list(old.get("robust_after", {}).items())
        assert [note.text for note in now.notes] == old["notes"]
        beside = old.keys() - {*FIGURES, "interval95_wilson", "robust_after", "notes"}
        assert now.settings == {name: old[name] for name in beside}
    kept = Report.model_fields.keys() & raw.keys() - {"results", "threat"}
    plain = json.loads(found.to_json())
    assert {name: plain[name] for name in kept} == {name: raw[name] for name in kept}
    assert raw.keys() - Report.model_fields.keys() <= {"split", *BY_HAND}
    assert found.threat.model_dump() == raw["threat"]
    assert Report.parse(plain, "it") == found


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("clean", "clean"),
        ("worst case", "worst_case"),
        ("certified", "certified"),
        ("AutoAttack", "autoattack"),
        ("AutoAttack, changed", "autoattack"),
        ("PGD-40 x 3", "attack"),
        ("FGSM", "attack"),
    ],
)
def test_the_kind_of_an_old_result_follows_from_its_name(name, kind):
    old = result(name).model_dump(exclude={"kind", "settings"})
    found = Result.model_validate(old | {"version": "rand"})
    assert (found.kind, found.settings) == (kind, {"version": "rand"})
    assert found.changed == (name == "AutoAttack, changed")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("not standard AutoAttack: version 'rand'", "changed"),
        ("AutoAttack warns: it is random", "warning"),
        ("in 2 of 3 chunks; first: AutoAttack warns: it is random", "warning"),
        ("3 images are answered otherwise in a second pass: they lie on the boundary", "boundary"),
        ("12 adversaries left ball or box and do not count", "outside"),
        ("in 1 of 4 chunks; first: 12 adversaries left ball or box and do not count", "outside"),
        ("memory ran out: batches of 2 images instead of 8", "memory"),
        ("eps is 0: no attack ran, robust means correct", "no-attack"),
        ("a note of somebody about AutoAttack warns: no", "other"),
    ],
)
def test_the_kind_of_an_old_note_follows_from_its_words(text, kind):
    old = result("AutoAttack").model_dump(exclude={"kind", "settings"}) | {"notes": [text]}
    assert Result.model_validate(old).notes == (Note(kind=kind, text=text),)


def test_a_cell_of_a_study_is_a_result():
    flat = result("AutoAttack", 0.5, 10).model_dump(exclude={"kind", "settings"})
    cell = flat | {"version": "standard", "threat": {"norm": "L2"}, "asked": {"n": 10}}
    assert Result.of_cell(cell).settings == {"version": "standard", "threat": {"norm": "L2"}, "asked": {"n": 10}}
    assert Result.of_cell(cell).kind == "autoattack"
    assert Result.of_cell(cell | {"kind": "attack"}).kind == "attack"


# ---- what it says


def test_results_are_found_by_name_and_by_kind():
    found = sample()
    assert [found.accuracy(one.attack) for one in found.results] == [0.9, 0.6, 0.7, 0.5, 0.4]
    assert found.result("autoattack") == found.autoattack == found.results[3]
    assert found.result("worst_case") == found.worst == found.results[4]
    assert found.of_kind("clean") == found.results[0]
    assert found.of_kind("certified") is None
    assert found.worst_case == 0.4
    assert found.worst.over == "clean, PGD-40, AutoAttack"
    assert [one.attack for one in found.attacks] == ["PGD-40 x 3, every iterate", "PGD-40", "AutoAttack"]
    assert found.notes == (WARNED.text,)


def test_the_flags_are_a_mask_of_the_images():
    flags = sample().flags("autoattack")
    assert flags.dtype is torch.bool
    assert flags.tolist() == [True] * 5 + [False] * 5


def test_the_worst_case_of_one_attack_is_its_own():
    alone = reports.report(result("clean", 0.75, 8))
    assert (alone.worst_case, alone.worst, alone.attacks, alone.autoattack) == (0.75, alone.results[0], (), None)


@pytest.mark.parametrize("name", ["clean", "worst_case", "autoattack"])
def test_no_attack_hides_another_by_its_name(name):
    hidden = reports.report(result(name, 0.9, 10, kind="attack"), *sample().results)
    assert hidden.result(name) == sample().result(name)
    assert hidden.worst_case == 0.4


@pytest.mark.parametrize(
    ("name", "near"), [("PGD-50", "PGD-40"), ("autoatack", "AutoAttack"), ("worstcase", "worst case")]
)
def test_an_unknown_attack_is_refused_with_the_nearest(name, near):
    for ask in (sample().result, sample().accuracy, sample().flags):
        with pytest.raises(BadInput) as error:
            ask(name)
        assert error.value.code == "unknown-name"
        assert near in str(error.value)


def test_the_kind_of_most_attacks_names_none_of_them():
    with pytest.raises(BadInput) as error:
        sample().result("attack")
    assert error.value.code == "unknown-name"


@pytest.mark.parametrize("flags", ["", "1" * 4, "1" * 11, "1" * 9 + "2"])
def test_flags_that_are_not_of_the_images_are_refused(flags):
    broken = reports.report(result("clean", 0.5, 10, flags=flags))
    with pytest.raises(BadInput) as error:
        broken.flags("clean")
    assert (error.value.code, error.value.field) == ("bad-shape", "flags")


# ---- how it is shown


def test_the_text_shows_every_attack_and_note():
    found = sample(name="mine", seed=7)
    text = str(found)
    for one in found.results:
        (line,) = (
            line for line in text.splitlines() if line.split("│")[1:2] and line.split("│")[1].strip() == one.attack
        )
        assert f"{one.correct}/{one.n}" in line
    for part in ("mine on digits, test, the first 10 of 360", "Linf eps 0.15", "seed 7", f"note: {WARNED.text}"):
        assert part in text
    assert "\x1b" not in text


def test_the_page_holds_the_table():
    shown = sample(name="<b>mine</b>")._repr_html_()
    for one in sample().results:
        assert one.attack in shown
        assert f"{one.correct}/{one.n}" in shown
    assert "&lt;b&gt;mine" in shown
    assert "<b>" not in shown
    assert WARNED.text in shown


def test_names_are_no_markup():
    odd = reports.report(result("PGD [bold]x[/]", 0.5, 10), result("a[/nothing]", 0.5, 10), name="m[/]", data="[red]d")
    for text in (str(odd), odd._repr_html_()):
        for part in ("PGD [bold]x[/]", "a[/nothing]", "m[/] on [red]d"):
            assert part in text


def test_a_notebook_shows_it_once(monkeypatch):
    shown = []
    monkeypatch.setattr(console, "_is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: shown.append(1))
    assert "AutoAttack" in sample()._repr_html_()
    assert "AutoAttack" in str(sample())
    assert shown == []


# ---- what is no report


def refused(raw):
    with pytest.raises(BadInput) as error:
        Report.parse(raw, "r.json")
    assert str(error.value).startswith("r.json is no report of `atent eval`: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) <= 1000
    return error.value


def with_result(**fields):
    raw = json.loads(sample().to_json())
    raw["results"][0] |= fields
    return raw


WRONG = {
    "a list": [],
    "nothing": None,
    "a text": "report",
    "no fields": {},
    "another version": {"version": 3},
    "no results": json.loads(sample().to_json()) | {"results": []},
    "results that are none": json.loads(sample().to_json()) | {"results": "clean"},
    "images that are none": json.loads(sample().to_json()) | {"n": 0},
    "a norm that is none": json.loads(sample().to_json()) | {"threat": {"norm": "L7", "eps": 1}},
    "a name of several lines": json.loads(sample().to_json()) | {"versions": {"a\nb": 3}},
    "a count in quotes": with_result(correct="9"),
    "a count that is true": with_result(correct=True),
    "a share above 1": with_result(accuracy=1.5),
    "a share in quotes": with_result(accuracy="0.9"),
    "not a number": with_result(accuracy=float("nan")),
    "one bound": with_result(interval95_wilson=[0.5]),
    "bounds in quotes": with_result(interval95_wilson=["0.5", "0.6"]),
    "a negative count": with_result(robust_after={"apgd-ce": -1}),
    "an attack of several lines": with_result(attack="a\nb"),
    "an attack without a name": with_result(attack=""),
    "an unknown kind": with_result(kind="best"),
    "an unknown field": with_result(rank=1),
    "an unknown kind of note": with_result(notes=[{"kind": "odd", "text": ""}]),
    "an old split": {"split": "all", "results": []},
    "an old split that is none": {"split": ["test"], "results": []},
    "an endless old split": {"split": f"test, the first {'9' * 5000} of 10", "results": []},
    "old notes that are a text": {"split": "test, the first 1 of 1", "results": [{"attack": "clean", "notes": "x"}]},
}


@pytest.mark.parametrize("raw", WRONG.values(), ids=list(WRONG))
def test_what_is_no_report_is_refused_in_one_line(raw):
    assert refused(raw).code == "unreadable"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"3", b"[" * 100_000, b'{"results": [{"attack": "clean"}]}']
)
def test_a_file_that_holds_no_report_is_refused(tmp_path, content):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(BadInput) as error:
        Report.load(tmp_path / "r.json")
    assert error.value.code == "unreadable"
    assert str(error.value).startswith(f"{tmp_path / 'r.json'} is no report of `atent eval`")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(BadInput) as error:
        Report.load(tmp_path / name)
    assert error.value.code == "missing"


# ---- an attack that is not installed


def test_a_report_of_an_attack_that_nobody_has_is_read_listed_and_ranked(tmp_path):
    made = sample_cards.card("theirs", claims=[])
    strange = made.report.results[1].model_copy(update={"attack": "Nobody-9", "settings": {"oracle": [1, {"a": None}]}})
    kept = tuple(strange if one == made.report.results[1] else one for one in made.report.results)
    report = made.report.model_copy(update={"results": kept, "protocol": "nobodys"})
    report.save(tmp_path / "r.json")
    assert Report.load(tmp_path / "r.json") == report
    assert "Nobody-9" in str(report)
    assert "Nobody-9" in markdown([report, made.report])
    folder = sample_cards.write(tmp_path / "cards", made.model_copy(update={"report": report}))
    (entry,) = ranking.read(folder)[0].entries
    assert entry.report == report == cards.read_card(entry.path).report
    assert (entry.rank, entry.worst.accuracy) == (1, made.report.worst_case)
    assert check.check(tmp_path) == []
