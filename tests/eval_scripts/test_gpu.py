"""The quarter of an hour on a GPU, rehearsed at toy size."""

import json

import scripts


def test_the_rehearsal_measures_trains_and_scores_and_goes_on_where_it_was(tmp_path):
    done = scripts.run("experiments/gpu", "--out", tmp_path, "--rehearse")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "failed" in line]
    found = {tuple(line["what"]): line for line in lines}
    jobs = ("step of PGD-AT", "step of ATENT", "PGD", "torchattacks PGD", "plain loop")
    assert {what[-1] for what in found if what[0] == "speed"} == set(jobs)
    for method in ("atent", "pgd-at"):
        assert found["score", method]["n"] == 4
        assert ("training", method) in found
    assert scripts.run("experiments/gpu", "--out", tmp_path, "--rehearse").returncode == 0
    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8").count("\n") == len(lines)
