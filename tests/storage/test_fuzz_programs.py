"""A few mutated programs; `eval/stress/fuzz_programs.py` reads thousands."""

import fuzzing_programs
import pytest


@pytest.fixture(scope="module", params=["drafted", "exported"])
def base(request, tmp_path_factory):
    if request.param == "drafted":
        return fuzzing_programs.drafted()
    request.getfixturevalue("writes_programs")
    return fuzzing_programs.exported(tmp_path_factory.mktemp("base"))


def test_the_bases_run(base):
    assert fuzzing_programs.outcome(base) == "runs"
    assert fuzzing_programs.outcome(fuzzing_programs.packed(fuzzing_programs.members(base))) == "runs"


@pytest.mark.parametrize("part", range(2))
def test_mutated_programs_are_read_or_refused(base, part):
    seen = {fuzzing_programs.outcome(fuzzing_programs.mutated(base, seed)) for seed in range(part, 50, 2)}
    assert len(seen) > 1
    assert not any(outcome.startswith("other") for outcome in seen)
