"""Architectures that are not in the registry; `eval/stress/architectures.py` checks the large ones as well."""

import pytest
import scripts

script = scripts.module("stress/architectures")


@pytest.mark.parametrize("name", script.SMALL)
def test_a_network_and_its_program_have_the_same_logits_and_flags(name):
    result = script.checked(name)
    assert result["difference"] <= script.TOLERANCE
    assert result["same_flags"]
    assert 0 < result["right"] <= script.INPUTS
