import reports
from reports import result

from atent_ext.attacks.spec import Note
from atent_ext.experiments.quickstart import markdown


def report(name, clean, worst, note=""):
    notes = [Note(kind="other", text=note)] if note else []
    found = [
        result(attack, right / 200, interval95_wilson=(0.5, 0.75), notes=notes)
        for attack, right in (("clean", clean), ("worst case", worst))
    ]
    setting = {"name": name, "data_note": "A note on the data.", "protocol": "autoattack", "seed": 4}
    return reports.report(*found, **setting, versions={"torch": "2.9"})


def test_rows_are_ranked_by_the_worst_case():
    text = markdown([report("a", 198, 100), report("b", 180, 150), report("c", 199, 20, "Square skipped.")])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "| rank | model | clean | worst case |",
        "| 1 | b | 90.0 (50.0-75.0) | 75.0 (50.0-75.0) |",
        "| 2 | a | 99.0 (50.0-75.0) | 50.0 (50.0-75.0) |",
        "| 3 | c | 99.5 (50.0-75.0) | 10.0 (50.0-75.0) |",
    ]


def test_the_setting_is_said():
    text = markdown([report("a", 198, 100), report("b", 190, 90, "Square skipped.")])
    for part in (
        "Linf eps 0.15",
        "protocol autoattack",
        "Square skipped.",
        "seed 4",
        "batches of 250",
        "torch 2.9",
        "A note on the data.",
        "first 200 of 360",
    ):
        assert part in text
