"""Architectures that are not in the registry; `eval/stress/architectures.py` checks the large ones as well."""

import json

import pytest
import scripts

from atent_ext.figures import gallery
from atent_ext.submissions import masking

script = scripts.module("stress/architectures")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No signs of gradient masking are looked for, and nothing is drawn."""
    monkeypatch.setattr(masking, "signs", lambda *_, **__: ((), {}))
    monkeypatch.setattr(gallery, "draw", lambda *_, **__: None)


@pytest.mark.usefixtures("writes_programs")
@pytest.mark.parametrize("name", script.SMALL)
def test_a_network_has_the_same_logits_and_flags_by_every_route(name):
    result = script.checked(name)
    assert script.good(result), result
    assert set(result["routes"]) == {"code", "program", "card"}
    assert result["routes"]["card"]["off_board"] is (name != "a tuple of results")


@pytest.mark.parametrize(
    ("route", "change"),
    [
        ("code", {"same_flags": False}),
        ("program", {"difference": 2e-5}),
        ("card", {"off_board": False}),
        ("card", {"has_digest": False}),
        ("card", {"same_flags": False, "difference": None}),
    ],
)
def test_a_route_that_differs_is_not_good(route, change):
    same = {"difference": 0.0, "same_flags": True}
    routes = {"code": same, "program": same, "card": {**same, "has_digest": True, "off_board": True}}
    result = {"data": "random (20,)", "right": 3, "routes": routes}
    assert script.good(result)
    assert not script.good({**result, "routes": {**routes, route: {**routes[route], **change}}})
    assert not script.good({**result, "right": 0})


def test_what_was_measured_is_kept_and_the_rest_goes_on(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(script, "checked", lambda name: called.append(name) or {"name": name})
    monkeypatch.setattr(script, "good", lambda result: True)
    first, second = script.SMALL[:2]
    for only in ([second], [first, second]):
        with pytest.raises(SystemExit) as ended:
            script.main(only=only, out=tmp_path / "out.json", anew=False)
        assert not ended.value.code
    assert called == [second, first]
    assert list(json.loads((tmp_path / "out.json").read_text())["architectures"]) == [first, second]
