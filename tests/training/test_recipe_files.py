"""Recipes as files: what `--set` takes, and all of them at once."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.training import overrides, recipe_files, recipes


def takes_text(annotation):
    """Whether 1/2 is a value of a field as it stands."""
    try:
        return TypeAdapter(annotation).validate_python("1/2") == "1/2"
    except ValidationError:
        return False


def test_a_number_may_be_a_fraction():
    given = ("threat.eps=8/255", "objective.eps= 8 / 255", "objective.noise=1/1000", "epochs=6/2", "ema=999/1000")
    recipe = recipes.load("digits-linf-atent", given)
    assert (recipe.threat.eps, recipe.objective["eps"], recipe.build_objective().eps) == (8 / 255, 8 / 255, 8 / 255)
    assert (recipe.objective["noise"], recipe.epochs, recipe.ema) == (0.001, 3, 0.999)  # noise is of no base


def test_a_fraction_is_a_number_in_a_file_too_and_inside_a_mapping(tmp_path):
    path = tmp_path / "mine.yaml"
    fields = recipe_files.read("digits-linf-atent")
    fields["threat"] = {"norm": "Linf", "eps": "2/255"}
    fields["objective"] |= {"eps": "2/255", "step_size": "1/1000"}
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    recipe = recipes.load(str(path))
    assert (recipe.threat.eps, recipe.objective["eps"], recipe.objective["step_size"]) == (2 / 255, 2 / 255, 0.001)
    assert recipes.parse(fields, "a stranger's") == recipe
    given = "objective={name: pgd-at, norm: Linf, eps: 2/255, steps: 1, step_size: 1/255}"
    recipe = recipes.load("digits-linf-atent", ["threat={norm: Linf, eps: 2/255}", given])
    assert (recipe.threat.eps, recipe.objective["eps"]) == (2 / 255, 2 / 255)


def test_what_is_a_text_stays_one():
    given = ("name=1/2", "description=1/2", "differs=1/2", "dataset=1/2", "init_from=1/2", "objective.eps='8/255'")
    fields = recipe_files.read("digits-linf-atent", given)
    assert {fields[key] for key in ("name", "description", "differs", "dataset", "init_from")} == {"1/2"}
    assert fields["objective"]["eps"] == "8/255"  # in quotes


def test_the_fields_in_which_a_fraction_is_a_text_are_all_of_a_recipe_that_take_any_text():
    found = {name for name, field in recipes.Recipe.model_fields.items() if takes_text(field.annotation)}
    sections = (recipes.Optimizer, recipes.Schedule, recipes.Validation, recipes.Threat, recipes.Network, recipes.Extra)
    for section in sections:
        found |= {name for name, field in section.model_fields.items() if takes_text(field.annotation)}
    assert found == set(overrides._TEXTS)
    for name in registry.OBJECTIVES:
        objective = registry.resolve("objective", name)
        assert is_dataclass(objective)
        hints = get_type_hints(objective)
        assert not [field.name for field in fields(objective) if field.init and takes_text(hints[field.name])]


def test_a_fraction_that_divides_by_0_and_one_where_no_number_is_meant_are_refused():
    with pytest.raises(BadInput) as error:
        recipes.load("digits-linf-atent", ["objective.eps=8/0"])
    assert (error.value.code, error.value.field) == ("bad-value", "objective.eps")
    for override in ("objective.norm=1/2", "epochs=1/2", "objective.eps=8/255/2"):
        with pytest.raises(BadInput):
            recipes.load("digits-linf-atent", [override])


def test_every_recipe_is_read_as_it_is_alone():
    found = dict(recipe_files.every())
    assert list(found) == recipes.names()
    assert all(found[name] == recipe_files.read(name) for name in found)


def test_a_file_that_cannot_be_read_disturbs_no_other(tmp_path, monkeypatch):
    texts = {"_base": "epochs: 3", "a": "base: _base\nname: a", "b": "base: nowhere", "c": "[1", "d": "{name: d}"}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(registry, "files", lambda kind: {name: tmp_path / f"{name}.yaml" for name in (*texts, "gone")})
    found = dict(recipe_files.every())
    assert found["a"] == {"epochs": 3, "name": "a"}
    assert found["d"] == {"name": "d"}
    assert all(isinstance(found[name], BadInput) for name in ("b", "c", "gone"))
