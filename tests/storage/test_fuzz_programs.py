"""A few mutated programs; `eval/stress/fuzz_programs.py` reads thousands."""

import fuzzing_programs
import pytest


@pytest.fixture(scope="module")
def bases(tmp_path_factory, writes_programs):
    return fuzzing_programs.drafted(), fuzzing_programs.exported(tmp_path_factory.mktemp("base"))


def test_the_bases_run(bases):
    assert [fuzzing_programs.outcome(base) for base in bases] == ["runs", "runs"]
    assert all(fuzzing_programs.outcome(fuzzing_programs.packed(fuzzing_programs.members(base))) for base in bases)


@pytest.mark.parametrize("part", range(4))
def test_mutated_programs_are_read_or_refused(bases, part):
    seen = {fuzzing_programs.outcome(fuzzing_programs.mutated(bases[seed % 2], seed)) for seed in range(part, 100, 4)}
    assert len(seen) > 1
    assert not any(outcome.startswith("other") for outcome in seen)
