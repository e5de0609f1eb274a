"""The command show: prints a recipe, a protocol or a card. Only for cards it imports torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import typer
import yaml

from atent_ext.cli import card_text, catalog
from atent_ext.cli.options import AsJson, console, print_json, print_line, print_notes, print_table
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.training import recipe_files

Shown = Literal["recipe", "protocol", "card"]


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(show)


def show(
    name: Annotated[str, typer.Argument(help="A recipe, a protocol, a card or a zoo model; or a recipe's file.")],
    kind: Annotated[str | None, typer.Option(help="Only the recipe, the protocol or the card of that name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a recipe with its base, a protocol, or a card: what was claimed and measured of a model.

    A recipe and a model of the zoo may be different trainings of one name; both are shown. The card names its recipe.
    """
    if kind is not None and kind not in get_args(Shown):
        raise registry.nearest("kind", kind, get_args(Shown))
    contents = {label: content for label, content in _contents(name) if kind in (None, label)}
    if not contents:
        raise _unknown(name, kind)
    if as_json:
        return print_json(contents)
    for number, (label, content) in enumerate(contents.items()):
        if len(contents) > 1:
            print_line(f"{chr(10) if number else ''}# {label} {name}")
        _SHOW[label](content)


def _contents(name: str) -> Iterator[tuple[Shown, Any]]:
    """The kinds that have this name, each with its content: fields of a recipe or a protocol, a list of cards."""
    if name in recipe_files.names() or name.endswith((".yaml", ".yml")):
        yield "recipe", recipe_files.read(name)
    if name in registry.files("protocol"):
        yield "protocol", catalog.protocol(name)
    if cards := [catalog.card(path) for path in catalog.cards_of(name)]:
        yield "card", cards


def _unknown(name: str, kind: str | None) -> BadInput:
    known = [entry for label, names in catalog.names().items() if kind in (None, label) for entry in names]
    what = kind or "recipe, protocol or card"
    hint = registry.hint(name, known) or "`atent ls` says what there is"
    return BadInput(f"there is no {what} {name!r}; {hint}", code="unknown-name", field="name")


def _show_fields(fields: Mapping[str, Any]) -> None:
    ordered = {key: fields[key] for key in ("name", "description", "differs") if key in fields} | dict(fields)
    console.print(yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=80), soft_wrap=True, end="")


def _show_cards(cards: Sequence[Mapping[str, Any]]) -> None:
    from atent_ext.evaluation.report import Report

    for content in cards:
        for line in card_text.about(content):
            print_line(line)
        if content["report"]:
            report = Report.parse(content["report"], f"the card of {content['submission']['name']}")
            print_table(report.table())
            print_notes([report])
        for line in (*card_text.remarks(content), *card_text.evidence(content)):
            print_line(line)


_SHOW: Mapping[str, Callable[[Any], None]] = {"recipe": _show_fields, "protocol": _show_fields, "card": _show_cards}
