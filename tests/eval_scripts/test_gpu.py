"""The quarter of an hour on a GPU, rehearsed at toy size."""

import json

import pytest
import scripts
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


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
    epochs = (tmp_path / "runs" / "atent" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert found["training", "atent"]["seconds"] == round(sum(json.loads(line)["seconds"] for line in epochs), 1)
    assert scripts.run("experiments/gpu", "--out", tmp_path, "--rehearse").returncode == 0
    assert (tmp_path / "lines.jsonl").read_text(encoding="utf-8").count("\n") == len(lines)


class Operations(TorchDispatchMode):
    """Counts those that run; torch's FlopCounterMode fails under `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        if (count := flop_registry.get(operator.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


@pytest.mark.parametrize("job", ["step of PGD-AT", "step of ATENT", "PGD", "plain loop"])
def test_operations_are_those_that_the_job_runs(job):
    gpu = scripts.module("experiments/gpu")
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)).train("step" in job)
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([3, 5])
    with Operations() as counter:
        gpu.JOBS[job](model, x, y)
    assert gpu.operations(job, model, x) == counter.total
    assert [parameter.grad for parameter in model.parameters()] == [None] * 4 or "step" in job


def test_the_seconds_of_a_training_are_those_of_all_its_epochs(tmp_path):
    lines = [{"epoch": 1, "seconds": 553.6}, {"epoch": 2, "seconds": 537.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gpu = scripts.module("experiments/gpu")
    assert gpu.seconds_of(gpu.RunFolder(tmp_path)) == 1091.1
