"""Data that several owners share does not change."""

import copy
import json
import pickle

import pytest
from pydantic import Field

from atent_ext.core.immutable import frozen
from atent_ext.core.schema import Section


class Part(Section):
    numbers: dict[str, list[int]] = Field(default_factory=dict)


class Whole(Section):
    parts: tuple[Part, ...] = ()
    free: dict = Field(default_factory=dict)


GIVEN = {"a": [1, {"b": [2]}], "c": ([3],)}
CHANGES = {
    "set": lambda value: value.__setitem__("a", 0),
    "delete": lambda value: value.__delitem__("a"),
    "update": lambda value: value.update(a=0),
    "union": lambda value: value.__ior__({"a": 0}),
    "setdefault": lambda value: value.setdefault("z", 0),
    "pop": lambda value: value.pop("a"),
    "popitem": lambda value: value.popitem(),
    "clear": lambda value: value.clear(),
    "deep set": lambda value: value["a"][1].__setitem__("b", 0),
    "list set": lambda value: value["a"].__setitem__(0, 9),
    "list delete": lambda value: value["a"].__delitem__(0),
    "list add": lambda value: value["a"].__iadd__([9]),
    "list multiply": lambda value: value["a"].__imul__(2),
    "in a tuple": lambda value: value["c"][0].append(9),
    **{
        f"list {name}": lambda value, name=name, given=given: getattr(value["a"], name)(*given)
        for name, given in {
            **{"append": (9,), "extend": ([9],), "insert": (0, 9), "remove": (1,)},
            **{"pop": (), "clear": (), "reverse": (), "sort": ()},
        }.items()
    },
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_nothing_of_it_can_be_changed(change):
    value = frozen(GIVEN)
    with pytest.raises(TypeError, match=r"belongs to a value that does not change; change a copy, (dict|list)"):
        change(value)
    assert value == GIVEN


def test_it_is_what_it_was_and_shares_nothing():
    given = copy.deepcopy(GIVEN)
    value = frozen(given)
    given["a"][1]["b"].append(7)
    assert value == GIVEN
    assert isinstance(value, dict)
    assert isinstance(value["a"], list)
    assert json.loads(json.dumps(value)) == json.loads(json.dumps(GIVEN))
    for other in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert other == value
        with pytest.raises(TypeError):
            other["a"].append(9)
    for plain in (dict(value), value.copy(), value | {}):
        plain["a"] = 0
    assert value == GIVEN


def test_a_section_and_its_copies_do_not_change_and_share_nothing_with_what_they_were_given():
    raw = {"parts": [{"numbers": {"a": [1]}}], "free": {"b": [{"c": 1}]}}
    whole = Whole.model_validate(raw)
    update = {"free": {"b": [5]}}
    other = whole.model_copy(update=update)
    raw["free"]["b"][0]["c"] = update["free"]["b"][0] = 9
    for change in (
        lambda: whole.free.update(b=0),
        lambda: whole.free["b"][0].update(c=0),
        lambda: whole.parts[0].numbers["a"].append(2),
        lambda: whole.model_copy().parts[0].numbers["a"].append(2),
        lambda: other.free["b"].append(2),
    ):
        with pytest.raises(TypeError, match="does not change"):
            change()
    assert whole == Whole.model_validate({"parts": [{"numbers": {"a": [1]}}], "free": {"b": [{"c": 1}]}})
    assert other.free == {"b": [5]}
    dumped = whole.model_dump()
    dumped["free"]["b"][0]["c"] = 2  # plain again
    assert whole.free["b"][0]["c"] == 1
