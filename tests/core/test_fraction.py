import pytest

from atent_ext.core.errors import BadInput
from atent_ext.core.fraction import fraction, fractions


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 1.5 / 3 ", 0.5), ("-1/4", -0.25), ("1e-1/2", 0.05), (".5/2.", 0.25), ("0/3", 0.0)],
)
def test_a_fraction_is_its_value(text, value):
    assert fraction(text, "eps") == value


@pytest.mark.parametrize(
    "text", ["", "8", "8/", "/255", "8/255/2", "a/b", "8/b", "1_0/2", "٣/2", "inf/2", "runs/1", "1/2a"]
)
def test_any_other_text_is_none(text):
    assert fraction(text, "eps") is None


@pytest.mark.parametrize("text", ["8/0", "8/0.0", "0/0", "1/1e-400"])
def test_a_division_by_0_is_refused(text):
    with pytest.raises(BadInput) as error:
        fraction(text, "eps")
    assert (error.value.code, error.value.field) == ("bad-value", "eps")


def test_fractions_are_numbers_at_every_depth_of_plain_data_but_in_its_texts():
    raw = {"name": "1/2", "eps": "8/255", "steps": 3, "deep": {"list": ["1/4", "a/b", {"name": "1/2", "x": "1/8"}]}}
    read = fractions(raw, ("name",))
    assert read == {
        **{"name": "1/2", "eps": 8 / 255, "steps": 3},
        "deep": {"list": [0.25, "a/b", {"name": "1/2", "x": 0.125}]},
    }
    assert raw["eps"] == "8/255"
    itself = {"eps": "1/2"}
    itself["again"] = itself
    assert fractions(itself)["again"]["again"]["eps"] == 0.5
    with pytest.raises(BadInput) as error:
        fractions({"deep": {"eps": "1/0"}})
    assert error.value.field == "deep.eps"
