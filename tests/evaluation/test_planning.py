"""What an evaluation will take: passes as they are, time as two samples say, and nothing written."""

from dataclasses import replace

import pytest
import torch
from commands import atent, refused
from problems import LinearTwoClass, attack_spec

from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import planning, scoring
from atent_ext.evaluation.planning import Cost, Estimate
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject

PLAN = Protocol(name="mine", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=3)))
PLAN_L1 = Protocol(name="mine", description="", attacks=(attack_spec("clean"),))


def subject():
    torch.manual_seed(0)
    model, images = LinearTwoClass((1, 4, 4)).float(), torch.rand(60, 1, 4, 4)
    labels = model(images).argmax(1)
    labels[::2] = 1 - labels[::2]
    return Subject(model, Split(images, labels), Threat(norm="Linf", eps=0.01), About(name="a", model="b", data="c"))


def test_passes_are_those_of_the_evaluation():
    found = planning.estimate(subject(), PLAN, n=40, chunk=10)
    assert 0 < found.share < 1
    assert found.passes(40) == scoring.score(subject(), PLAN, n=40, chunk=10).passes == 40 * (1 + 3 + 2)


@pytest.mark.parametrize("seconds", [0.0, 100.0])  # several images are measured, or only one and plain passes
def test_images_of_either_kind_have_their_cost(monkeypatch, seconds):
    monkeypatch.setattr(
        planning, "_measured", lambda model, split, *_: (seconds + 2 + 0.5 * len(split), 7 * len(split))
    )
    monkeypatch.setattr(planning, "_marginal", lambda *_: 0.25)
    found = planning.estimate(subject(), PLAN, chunk=10)
    image = (seconds + 2.5) * 0.25 if seconds else 0.5
    for cost in (found.dear, found.cheap):
        assert (cost.image, cost.batch, cost.passes) == pytest.approx((image, seconds + 2.5 - image, 7))


def test_whole_batches_are_extrapolated():
    found = Estimate(0.25, Cost(batch=3.0, image=2.0, passes=100), Cost(batch=1.0, image=0.4, passes=20), 100, 50)
    assert found.passes(1000) == 1000 * 40
    assert found.seconds(1000) == pytest.approx(20 * 3 + 1000 * 0.8)
    assert found.seconds(230) == pytest.approx(5 * 3 + 230 * 0.8)
    assert [planning.duration(seconds) for seconds in (5, 300, 90_000)] == ["5 s", "5 min", "25 h"]


def test_the_command_prints_it_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = atent("eval", "quickstart-digits-linf-sgd", "--protocol", "clean", "--plan")
    assert done.returncode == 0, done.stderr
    assert [word in done.stdout for word in ("time here", "100", "360", "nothing was scored or written")] == [True] * 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option", [["--until-width", "5"], ["--save-adversaries", "x.npz"], ["--out", "x.json"], ["--overwrite"]]
)
def test_options_that_a_plan_would_ignore_are_refused(option):
    refused(atent("eval", "nowhere", "--plan", *option), option[0], "--plan")


def test_a_plan_in_l1_has_both_kinds_of_images():
    found = planning.estimate(replace(subject(), threat=Threat(norm="L1", eps=1e-3)), PLAN_L1, n=40, chunk=10)
    assert 0 < found.share < 1
    assert found.passes(40) == 40
