"""Guide and README are short: lines, and words a sentence."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROSE = [ROOT / "README.md", DOCS / "index.md", DOCS / "method.md", DOCS / "faq.md", DOCS / "footguns.md"]
PROSE += [DOCS / "anytime.md", *sorted((DOCS / "guide").rglob("*.md"))]
MOST_WORDS = 40


def sentences(text):
    """The sentences outside of code, tables, formulas and comments; a list item or a heading ends one."""
    text = re.sub(r"```.*?```|<!--.*?-->|\$\$.*?\$\$", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^( *\|.*|!!! .*|#+ .*|---)$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        plain = re.sub(r"\]\([^)]*\)|`[^`]*`", "]", paragraph)
        yield from re.split(r"(?<=[.!?:])[\s*)]+", " ".join(plain.split()))


def test_a_sentence_is_told_from_code_and_tables():
    text = "# Title\n\nOne two. Three [four](a.md) `five six`!\n\n```sh\na b c\n```\n\n| a | b |\n\n- one\n- two"
    assert [len(one.split()) for one in sentences(text) if one] == [2, 3, 2, 2]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_no_sentence_is_long(path):
    long = [one for one in sentences(path.read_text(encoding="utf-8")) if len(one.split()) > MOST_WORDS]
    assert long == []


def test_the_readme_and_the_results_are_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []
    assert len((DOCS / "results.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_link_of_the_readme_and_of_the_guides_for_contributors_leads_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "eval/README.md", "registry/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
            assert ((ROOT / page).parent / link).exists(), (page, link)
