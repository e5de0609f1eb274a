"""The scripts of eval/pages: no figure is typed by hand, and what the pages say follows from the data."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from atent_ext.core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
OF_THE_SITE = ("reference.py", "site_hooks.py", "check_site.py", "check_in_browser.py", "tutorials.py")
"""They write no measured figure."""
PAGE_SCRIPTS = [path for path in sorted((ROOT / "eval" / "pages").glob("*.py")) if path.name not in OF_THE_SITE]
SCRIPTS = [*PAGE_SCRIPTS, ROOT / "atent_ext" / "experiments" / "markdown.py"]
DOCS = ROOT / "docs"
LOG = ("zoo", "comparisons", "papers", "mnist-search")
PAGES = [DOCS / "results.md", *(DOCS / "log" / f"{name}.md" for name in LOG)]

# What may hold digits: code, the target of a link, a field, a list marker, and a word that begins with a letter
# (PGD-40, ResNet-20, alpha.0), with the restarts of an attack's name (PGD-40 x 10).
QUOTED = re.compile(r"`[^`]*`|\]\([^)]*\)|\{[^}]*\}|^\d+\. ", re.MULTILINE)
NAME = re.compile(r"[^\W\d_][\w.+-]*( x \d+)?")
WORDS = re.compile(r"\b(three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand)\b", re.IGNORECASE)


def figures(text):
    """Numbers in a text, as digits or as words above two."""
    plain = QUOTED.sub(" ", text)
    return re.findall(r"\d[\d.,/]*", NAME.sub(" ", plain)) + WORDS.findall(plain)


def texts(path):
    """Every text constant of a module but docstrings and format specifications, with its line."""

    def visit(node):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        for name, child in ast.iter_fields(node):
            for below in child if isinstance(child, list) else [child]:
                if isinstance(below, ast.AST) and name != "format_spec":
                    yield from visit(below)

    return list(visit(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.name for path in SCRIPTS])
def test_no_figure_is_typed_into_a_page(path):
    typed = {line: figures(text) for line, text in texts(path) if figures(text)}
    assert not typed, "take it from the data, or move the sentence to a page that is written by hand"


def test_a_figure_is_told_from_a_name():
    names = "PGD-40 x 10, ResNet-20, v2, bfloat16, l2-small-cnn and K of `eps=0.3`; [a](b-1.md), {n} images\n1. one"
    assert figures(names) == []
    assert figures("eps 0.3, 8/255 and 1,000 of 5 %, x 10") == ["0.3,", "8/255", "1,000", "5", "10"]
    assert figures("Three seeds, about five points") == ["Three", "five"]


def test_text_constants_leave_out_docstrings_and_format_specifications(tmp_path):
    (tmp_path / "module.py").write_text(
        '"""Of 3."""\ndef f(x):\n    """Of 4."""\n    return f"{x:.1f} of 5", {"a": "6"}\n'
    )
    assert texts(tmp_path / "module.py") == [(4, " of 5"), (4, "a"), (4, "6")]


def anchors(path):
    """What links to the headings of a Markdown file look like on GitHub."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=[path.name for path in PAGES])
def test_every_link_of_a_page_leads_somewhere(path):
    links = re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert links
    for file, _, anchor in (link.partition("#") for link in links):
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), file
        assert not anchor or anchor in anchors(target), anchor


def test_the_page_that_is_written_by_hand_says_so_and_is_linked():
    log = (ROOT / "docs" / "log" / "mnist-search.md").read_text(encoding="utf-8")
    assert log.split("\n\n")[1].startswith("Written by hand on ")
    for place in re.findall(r"`((?:eval|registry)/[\w/]+/)`", log.split("\n## ")[0]):
        assert (ROOT / place).is_dir(), place
    assert "[mnist-search.md](mnist-search.md), written by hand," in (DOCS / "log" / "zoo.md").read_text()


@pytest.fixture
def pages(monkeypatch):
    """Modules of eval/pages by name."""
    monkeypatch.syspath_prepend(ROOT / "eval" / "experiments")
    monkeypatch.syspath_prepend(ROOT / "eval" / "pages")
    return importlib.import_module


def report(flags):
    result = {"attack": "AutoAttack", "flags": flags, "accuracy": flags.count("1") / len(flags), "notes": []}
    return {
        "data": "digits",
        "split": "test, the first 8 of 9",
        "threat": {"norm": "Linf", "eps": 0.15},
        "results": [result],
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ("11111111", "00000011", "**ATENT is better than PGD-AT in 1 of 1 comparisons.** In 1 comparisons of"),
        ("00000011", "11111111", "**ATENT shows no gain over PGD-AT.** In 1 comparisons of"),
        ("00001111", "00000011", "**ATENT shows no gain over PGD-AT.** In 1 comparisons of"),
    ],
)
def test_the_first_statement_follows_from_the_flags(pages, monkeypatch, ours, theirs, verdict):
    measured, comparisons = pages("measured"), pages("comparisons")
    monkeypatch.setattr(measured, "between", dict)
    monkeypatch.setattr(measured, "PUBLISHED", ())
    known = {
        ("models", "mine"): measured.Entry(recipe="digits-linf-atent", against=("rival", "other")),
        ("models", "rival"): measured.Entry(recipe="digits-linf-pgd-at"),
        ("models", "other"): measured.Entry(recipe="digits-linf-trades"),
    }
    scored = {"mine": [report(ours)], "rival": [report(theirs)], "other": [report("00000000")]}
    lines = list(comparisons.first(known, scored, []))
    assert lines[0].split("\n\n")[1].startswith(verdict)
    shares = [f"{100 * flags.count('1') / 8:.1f}" for flags in (ours, theirs)]
    assert lines[3].startswith("| mine | rival | digits, Linf eps 0.15 | 8, test | " + shares[0])
    assert f"| {shares[1]} (" in lines[3]


def test_a_gain_over_seeds_has_the_p_of_the_paired_t_test(pages):
    measured = pages("measured")
    base = [report("0011")] * 3
    gain = measured.gain([report(flags) for flags in ("0111", "1111", "1100")], base)
    # Differences 25, 50, 0 have mean 25 and deviation 25: t is the root of 3, and with 2 degrees of freedom the
    # distribution function of t is 1/2 + t / (2 sqrt(2 + t^2)).
    assert gain.p == pytest.approx(1 - (3 / 5) ** 0.5)
    assert gain.verdict == "not significantly different from"
    assert str(gain) == "+25.0 points (-37.1 to +87.1)"
    same = measured.gain([report("0111")] * 3, base)
    assert (same.mean, same.p, str(same)) == (25, 1, "+25.0 points in every seed")


def test_holm_keeps_what_is_significant_if_all_are_to_hold(pages):
    holm = pages("measured").holm
    # The thresholds are 0.05 / 3, 0.05 / 2 and 0.05; after the first that fails, none is kept.
    assert holm({"a": 0.02, "b": 0.01, "c": 0.06}) == ["b", "a"]
    assert holm({"a": 0.03, "b": 0.01, "c": 0.04}) == ["b"]
    assert holm({"a": 0.02, "b": 0.03, "c": 0.04}) == []
    assert holm({}) == []


def chunk(start, flags):
    outcomes = [{"attack": "AutoAttack", "settings": {"version": "standard"}, "flags": flags, "notes": [f"of {start}"]}]
    return {"start": start, "stop": start + len(flags), "outcomes": outcomes}


def test_chunks_of_a_stopped_evaluation_are_joined_in_order(pages, tmp_path, monkeypatch):
    measured, folder = pages("measured"), tmp_path / "between"
    monkeypatch.setattr(measured, "REPORTS", tmp_path)
    folder.mkdir()
    setting = {"data": "digits", "test_images": 9, "threat": {"norm": "Linf", "eps": 0.15}, "device": "cpu"}
    setting |= {"seed": 0, "chunk": 2, "speed": "plain", "versions": {"torch": "2"}}
    about = {"name": "a", "model": "net", "protocol": "zoo", "batch_size": 2, "seed": 0}
    counts = {"correct": 1, "n": 2, "interval95_wilson": [0.1, 0.9]}
    one = report("01") | about | {"split": "test, the first 2 of 9"}
    one["results"] = [result | counts for result in one["results"]]
    (folder / "a.json").write_text(json.dumps(one))
    (folder / "a-zoo-setting.json").write_text(json.dumps(setting))
    for start, flags in ((10, "00"), (0, "11"), (2, "10000000")):
        (folder / f"a-zoo-{start}-{start + len(flags) - 1}.json").write_text(json.dumps(chunk(start, flags)))
    joined = measured.between()["a (zoo)"]
    (result,) = joined["results"]
    assert list(measured.between()) == ["a", "a (zoo)"]
    assert joined["split"] == "test, the first 12 of 9"
    assert (result["flags"], result["n"], result["accuracy"]) == ("111000000000", 12, 0.25)
    assert result["notes"] == ["of 0", "of 2", "of 10"]
    (folder / "a-zoo-2-9.json").unlink()
    with pytest.raises(BadInput) as error:
        measured.between()
    assert (error.value.code, error.value.field) == ("missing", "chunks")
