"""Programs ask of what kind a result or a note is; the words of both are for people and may change."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "atent_ext"
MODULES = sorted(PACKAGE.rglob("*.py"))
VERSION1 = PACKAGE / "evaluation" / "version1.py"
WORDS = ("worst case", "AutoAttack", "not standard", "memory ran out", "left ball or box")
ASKS = ("startswith", "endswith", "removeprefix", "find", "index", "count", "match", "search", "fullmatch")
OF_REPORTS = ("cli", "evaluation", "experiments", "integrations", "leaderboard", "subjects", "submissions")
"""Packages that read or write reports of evaluations; the numbers beside a figure are something else."""


def text(node):
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def worded(node):
    """Whether it is a text that names a result or is a note, or holds one."""
    parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    return any(text(part).startswith(WORDS) for part in parts)


def named(node):
    """Whether it is what an attack is called: x.attack, x["attack"], x.get("attack"), str of those."""
    if isinstance(node, ast.Call):
        function, arguments = node.func, node.args
        asks = isinstance(function, ast.Attribute) and function.attr == "get" and arguments and text(arguments[0])
        return asks == "attack" or (isinstance(function, ast.Name) and any(map(named, arguments)))
    if isinstance(node, ast.Subscript):
        return text(node.slice) == "attack"
    return isinstance(node, ast.Attribute) and node.attr == "attack"


def by_words(tree):
    """The lines of a module that decide something by the words of a result or a note."""
    return [node.lineno for node in ast.walk(tree) if decides(node)]


def decides(node):
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
            texts = any(text(side) or isinstance(side, ast.Tuple | ast.List | ast.Set) for side in sides)
            return any(map(worded, sides)) or (texts and any(map(named, sides)))
        case ast.Call(func=ast.Attribute(attr=attribute, value=value)) if attribute in ASKS:
            return named(value) or any(map(worded, node.args))
        case ast.Dict():
            return any(worded(key) for key in node.keys if key)
        case ast.Subscript():
            return worded(node.slice)
        case ast.MatchValue():
            return worded(node.value)
    return False


def untyped(tree):
    """The lines of a module that take, keep or give a report as a plain mapping."""
    return [node.lineno for node in ast.walk(tree) if plain(node)]


def plain(node):
    match node:
        case ast.arg(arg=name, annotation=kind) | ast.FunctionDef(name=name, returns=kind):
            pass
        case ast.AnnAssign(target=target, annotation=kind):
            name = ast.unparse(target)
        case ast.Assign(targets=[target], value=kind):
            name = ast.unparse(target)
        case _:
            return False
    return "report" in name.lower() and kind is not None and "dict[str, Any]" in ast.unparse(kind)


@pytest.mark.parametrize(
    "line",
    [
        'x.attack == "clean"',
        'one["attack"] != "worst case"',
        'cell.get("attack") in ("clean", name)',
        'found == "AutoAttack"',
        'str(one["attack"]).startswith("AutoAttack")',
        'note.startswith("not standard AutoAttack: ")',
        'results["worst case"]',
        'KINDS = {"AutoAttack": 1}',
        're.match("memory ran out", note)',
    ],
)
def test_the_search_finds_what_is_to_be_found(line):
    assert by_words(ast.parse(line)) == [1]


@pytest.mark.parametrize(
    "line",
    [
        "Report = dict[str, Any]",
        "def f(report: dict[str, Any]): ...",
        "report: dict[str, Any] = {}",
        "def report() -> dict[str, Any]: ...",
    ],
)
def test_the_search_finds_untyped_reports(line):
    assert untyped(ast.parse(line)) == [1]


@pytest.mark.parametrize("line", ['x.kind == "clean"', 'title = f"AutoAttack: {x.attack}"', 'note.kind != "changed"'])
def test_the_search_leaves_the_rest_alone(line):
    assert by_words(ast.parse(line)) == []


def test_nothing_is_decided_by_the_words_of_a_result():
    """Version 1 had nothing but words; reading it is what evaluation/version1.py does alone."""
    found = {path: by_words(ast.parse(path.read_text(encoding="utf-8"))) for path in MODULES}
    assert {path for path, lines in found.items() if lines} <= {VERSION1}
    assert found[VERSION1]


def test_no_report_is_a_plain_mapping():
    inside = [path for path in MODULES if path.relative_to(PACKAGE).parts[0] in OF_REPORTS]
    assert {str(path): lines for path in inside if (lines := untyped(ast.parse(path.read_text("utf-8"))))} == {}
