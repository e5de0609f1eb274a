"""The reference has every public name, command, attack, objective, protocol, recipe, network and data set."""

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest
import scripts
from typer.main import get_command

import atent_ext
from atent_ext.cli.app import app
from atent_ext.core import registry
from atent_ext.training import recipe_files

HOME = Path(atent_ext.__file__).parent


@pytest.fixture(scope="module")
def pages():
    return scripts.module("pages/reference").pages()


def public():
    """What `__all__` of the packages and of atent_ext.compat says; integrations are not imported."""
    names = ["atent_ext", *(found.name for found in pkgutil.walk_packages([str(HOME)], "atent_ext.") if found.ispkg)]
    modules = [importlib.import_module(name) for name in [*names, "atent_ext.compat"]]
    return [(module.__name__, name) for module in modules for name in getattr(module, "__all__", ())]


def integrations():
    for path in sorted((HOME / "integrations").glob("[a-z]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                yield f"atent_ext.integrations.{path.stem}", node.name


def test_every_public_name_is_documented_once(pages):
    found = [*public(), *integrations()]
    assert len(found) > 80
    for module, name in found:
        page = pages[f"{module}.md"]
        assert f'<a id="{module}.{name}"></a>' in page or f"- [{name}](" in page, (module, name)
    documented = [line for page in pages.values() for line in page.splitlines() if line.startswith("::: ")]
    assert len(documented) == len(set(documented))


def test_what_is_documented_elsewhere_is_there(pages):
    links = [line for page in pages.values() for line in page.splitlines() if line.startswith("- [") and "#" in line]
    assert links
    for link in links:
        page, _, anchor = link.rpartition("(")[2].rstrip(")").partition("#")
        assert f'<a id="{anchor}"></a>' in pages[page], link


def commands(name, command):
    yield name
    for below, child in getattr(command, "commands", {}).items():
        yield from commands(f"{name} {below}", child)


def test_every_command_and_entry_is_documented(pages):
    expected = {
        "commands.md": commands("atent", get_command(app)),
        "protocols.md": registry.files("protocol"),
        "attacks.md": registry.entries("attack"),
        "objectives.md": registry.entries("objective"),
        "models.md": registry.entries("model"),
        "datasets.md": registry.entries("data set"),
    }
    for page, names in expected.items():
        headings = {line.removeprefix("## ") for line in pages[page].splitlines() if line.startswith("## ")}
        assert headings == set(names), page
    for name in recipe_files.names():
        assert f"\n### {name}\n" in pages["recipes.md"]


def test_fields_have_type_and_default(pages):
    assert "| `step_size` | `Positive \\| None` | `None` |" in pages["attacks.md"]
    assert "| `alpha` | `float` | `0.9` |" in pages["objectives.md"]
    assert "| `eps` | `float` | needed |" in pages["objectives.md"]
    assert "| `epochs` | `Count` | needed |" in pages["recipes.md"]


def test_a_list_of_modules_is_a_table_and_a_paragraph_stays_one(pages):
    assert "\n| `langevin` | the kernel, which adds" in pages["atent_ext.attacks.md"]
    assert "\n\nThe public names are imported when" in pages["atent_ext.md"]
    assert "\n\n    from atent_ext.integrations.mair import" in pages["atent_ext.integrations.mair.md"]
