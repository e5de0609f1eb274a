"""The pages docs/reference/: every public name, command, attack, objective, protocol and recipe, with its fields.

The site's hooks (site_hooks.py) take them from here while the site is built, so that they are never behind the code.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import typer
import yaml
from typer.main import get_command

import atent_ext
from atent_ext.attacks.spec import AttackSpec
from atent_ext.cli.app import app
from atent_ext.core import registry
from atent_ext.core.literals import NormName
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.training import recipe_files, recipes

HOME = Path(atent_ext.__file__).parent
MODULES = (
    "compat",
    *(f"integrations.{name}" for name in ("torchattacks", "foolbox", "art", "art_trainer", "huggingface", "mair")),
)
"""Public modules that have no stub; their public names are the classes and functions in them without an underscore."""
WIDTH = 100


class Name(NamedTuple):
    """A public name: where users import it from, and where it is defined."""

    public: str
    defined: str

    @property
    def home(self) -> str:
        return self.public.rpartition(".")[0]


# ---- names


@functools.cache
def packages() -> list[str]:
    """The packages whose stub lists what is public, the top one first."""
    found = [module.name for module in pkgutil.walk_packages([str(HOME)], "atent_ext.") if module.ispkg]
    return ["atent_ext", *(name for name in found if stub(name).is_file())]


def stub(package: str) -> Path:
    return HOME.joinpath(*package.split(".")[1:], "__init__.pyi")


@functools.cache
def names(module: str) -> list[Name]:
    """The public names of a package, from its stub, or of one of MODULES."""
    if module.removeprefix("atent_ext.") in MODULES:
        return _of_module(module)
    imports = [node for node in ast.parse(stub(module).read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
    return [
        Name(f"{module}.{alias.asname}", f"{module}.{node.module}.{alias.name}")
        for node in imports
        for alias in node.names
    ]


def _of_module(module: str) -> list[Name]:
    tree = ast.parse(HOME.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text("utf-8"))
    imported = [
        Name(f"{module}.{alias.name}", f"{node.module}.{alias.name}")
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and module == "atent_ext.compat"
        for alias in node.names
    ]
    own = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return imported + [Name(f"{module}.{name}", f"{module}.{name}") for name in own if not name.startswith("_")]


def homes() -> list[str]:
    return [*packages(), *(f"atent_ext.{name}" for name in MODULES)]


@functools.cache
def definitions() -> dict[str, str]:
    """What is defined -> the page that documents it: that of the innermost package that makes it public."""
    found: dict[str, str] = {}
    for home in homes():
        for name in names(home):
            if home != "atent_ext" or not any(name.defined in map(_defined, names(one)) for one in homes()[1:]):
                found[_root(name.defined)] = home
    return found


def _defined(name: Name) -> str:
    return name.defined


def _root(defined: str) -> str:
    """Where a name is defined in the end, past packages that pass it on."""
    module = defined.rpartition(".")[0]
    if module in packages():
        return next((_root(one.defined) for one in names(module) if one.public == defined), defined)
    return defined


# ---- pages


def api(home: str) -> str:
    """The page of a package or module: what it is for, and each of its names."""
    documented = definitions()
    text = inspect.getdoc(importlib.import_module(home)) if home in packages() else _docstring(home)
    lines = [f"# {home}", "", *_summary(text or ""), ""]
    elsewhere = []
    for name in names(home):
        defined, short = _root(name.defined), name.public.rpartition(".")[2]
        if documented[defined] == home:
            lines += [f'<a id="{name.public}"></a>', "", f"::: {defined}", ""]
        else:
            page = documented[defined]
            elsewhere.append(f"- [{short}]({page}.md#{page}.{defined.rpartition('.')[2]})")
    return "\n".join([*lines, *(["## Documented elsewhere", "", *elsewhere] if elsewhere else [])]) + "\n"


def _docstring(module: str) -> str:
    path = HOME.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""


def _summary(text: str) -> list[str]:
    """The paragraphs of a docstring; a list of modules in columns becomes a table."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        rows = [re.split(" {2,}", line, maxsplit=1) for line in paragraph.splitlines()]
        if all(len(row) == 2 and row[0] for row in rows):
            lines += [
                "| module | what it is for |",
                "| --- | --- |",
                *(f"| `{name}` | {what} |" for name, what in rows),
            ]
        else:
            lines.append(paragraph)
        lines.append("")
    return lines[:-1]


def commands() -> str:
    """Every command with its help, as the terminal shows it."""
    lines = ["# Commands", "", "`atent COMMAND --help` shows the same in a terminal.", ""]
    for name, text in helps("atent", get_command(app)):
        lines += [f"## {name}", "", "```text", text, "```", ""]
    return "\n".join(lines)


def helps(name: str, command: Any) -> Iterator[tuple[str, str]]:
    """(command, its help), the groups' own commands after them."""
    context = typer.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield name, command.get_help(context).strip()
    for below, child in getattr(command, "commands", {}).items():
        yield from helps(f"{name} {below}", child)


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


def fields(kind: Any) -> list[str]:
    """A table of the fields of a pydantic model or a dataclass: name, type, default."""
    if dataclasses.is_dataclass(kind):
        default = {one.name: one.default for one in dataclasses.fields(kind) if one.init}
    else:
        default = {
            name: dataclasses.MISSING if one.is_required() else one.get_default(call_default_factory=True)
            for name, one in kind.model_fields.items()
        }
    types = _types(kind)
    lines = [row("field", "type", "default"), row("---", "---", "---")]
    for name, value in default.items():
        lines.append(
            row(f"`{name}`", f"`{types[name]}`", "needed" if value is dataclasses.MISSING else f"`{_shown(value)}`")
        )
    return [*lines, ""]


def _shown(value: Any) -> str:
    return repr(value.model_dump(mode="json") if hasattr(value, "model_dump") else value)


def _types(kind: type) -> dict[str, str]:
    """Field -> its type, as the source says it."""
    found: dict[str, str] = {}
    for owner in reversed([one for one in kind.__mro__ if one.__module__.startswith("atent_ext.")]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        found |= {one.target.id: ast.unparse(one.annotation) for one in body if isinstance(one, ast.AnnAssign)}
    return found


def registered(kind: str, title: str, text: str) -> str:
    """A page of the entries of the registry of a kind, with docstring and fields."""
    lines = [f"# {title}", "", text, ""]
    for name, target in registry.entries(kind).items():
        entry = registry.resolve(kind, name)
        lines += [f"## {name}", "", f"`{target}`", "", inspect.getdoc(entry) or "", ""]
        if dataclasses.is_dataclass(entry) or hasattr(entry, "model_fields"):
            lines += fields(entry)
    return "\n".join(lines)


def dumped(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=WIDTH).rstrip()


def protocols() -> str:
    lines = ["# Protocols", "", "A protocol lists attacks in order; `--protocol` takes a name or a YAML file.", ""]
    for name in registry.files("protocol"):
        content = load_protocol(name).model_dump(mode="json")
        lines += [f"## {name}", "", content.pop("description"), "", "```yaml", dumped(content), "```", ""]
    return "\n".join(lines)


def all_recipes() -> str:
    """The fields of a recipe, and each recipe in full."""
    lines = ["# Recipes", "", "A recipe is one training as data. `--set key=value` changes any field.", ""]
    lines += ["## Fields", "", inspect.getdoc(recipes.Recipe) or "", "", *fields(recipes.Recipe)]
    for part in (recipes.Optimizer, recipes.Schedule, recipes.Validation):
        lines += [f"### {part.__name__.lower()}", "", inspect.getdoc(part) or "", "", *fields(part)]
    for dataset, own in _by_dataset().items():
        lines += [f"## {dataset}", ""]
        for name in own:
            content = recipe_files.read(name)
            lines += [f"### {name}", "", f"{content.get('description', '')} {content.get('differs', '')}".strip(), ""]
            shown = {key: value for key, value in content.items() if key not in ("name", "description", "differs")}
            lines += ['??? note "All fields"', "", "    ```yaml"]
            lines += [f"    {line}" for line in dumped(shown).splitlines()] + ["    ```", ""]
    return "\n".join(lines)


def _by_dataset() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in recipe_files.names():
        found.setdefault(str(recipe_files.read(name)["dataset"]), []).append(name)
    return found


def index() -> str:
    lines = ["# Reference", "", "Generated from the code while the site is built.", ""]
    lines += [f"- [{title}]({path})" for path, title in TITLES.items()]
    lines += ["", "## Python", "", row("import from", "names"), row("---", "---")]
    for home in homes():
        shown = ", ".join(f"`{name.public.rpartition('.')[2]}`" for name in names(home))
        lines.append(row(f"[{home}]({home}.md)", shown))
    return "\n".join(lines) + "\n"


TITLES = {
    "commands.md": "Commands",
    "attacks.md": "Attacks of protocols",
    "protocols.md": "Protocols",
    "objectives.md": "Objectives: training methods",
    "recipes.md": "Recipes",
    "models.md": "Networks",
    "datasets.md": "Data sets",
}


def pages() -> dict[str, str]:
    """File name below docs/reference/ -> Markdown."""
    norms = " or ".join(f"`{name}`" for name in NormName.__args__)
    return {
        "index.md": index(),
        "commands.md": commands(),
        "attacks.md": registered(
            "attack", "Attacks of protocols", f"Fields that a protocol may set. {inspect.getdoc(AttackSpec)}"
        ),
        "protocols.md": protocols(),
        "objectives.md": registered(
            "objective", "Objectives", f"Training methods, called with `(model, x, y)`; `norm` is {norms}."
        ),
        "recipes.md": all_recipes(),
        "models.md": registered(
            "model", "Networks", "Called with `classes` and `channels`; they map images in [0, 1] to logits."
        ),
        "datasets.md": registered(
            "data set",
            "Data sets",
            "`folder:PATH`, `npz:FILE`, `npy:PATH` and `hf-dataset:PATH` are read without an entry here, too.",
        ),
        **{f"{home}.md": api(home) for home in homes()},
    }
