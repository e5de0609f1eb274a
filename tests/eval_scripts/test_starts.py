"""Held-out images under one attack of AutoAttack, and short chains on those that it broke."""

import json
import re

import pytest
import scripts
import torch

from atent_ext.attacks import accuracy
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.loop import fit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts") / "run"
    fit(recipes.load("digits-linf-pgd-at", ["epochs=2", "validation.count=50"]), datasets.load("digits"), folder)
    return folder


def held_out(run, out, *more):
    """The report of held_out.py."""
    done = scripts.run("experiments/held_out", run, "--out", out, *more)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def apgd(run, tmp_path_factory):
    return held_out(run, tmp_path_factory.mktemp("apgd") / "apgd.json", "--n", 40)


def test_held_out_images_are_counted_under_one_attack(run, apgd):
    subject = run_folder.from_run(run, held_out=True)
    clean = int(accuracy.clean_flags(subject.model, subject.test.take(40)).sum())
    assert apgd["images"] == "the first 40 held-out images"
    assert apgd["robust_after"] == {"clean": clean, "apgd-ce": apgd["correct"]}
    assert apgd["flags"].count("1") == apgd["correct"] < clean


def test_short_chains_are_counted_on_the_images_that_apgd_broke(run, apgd, tmp_path):
    (tmp_path / "apgd.json").write_text(json.dumps(apgd))
    out = tmp_path / "starts.json"
    done = scripts.run("experiments/starts", run, tmp_path / "apgd.json", "--repeats", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    counted, broken = json.loads(out.read_text()), apgd["robust_after"]["clean"] - apgd["correct"]
    assert (counted["broken_images"], counted["eps"]) == (broken, 0.15)
    for chain in counted["chains"]:
        assert len(chain["broken"]) == 3
        assert broken - sum(chain["broken"]) <= chain["left_by_all"] <= broken - max(chain["broken"])
    assert sum(map(sum, (chain["broken"] for chain in counted["chains"]))) > 0


def test_images_that_were_trained_on_can_be_counted_and_take_no_chains(run, tmp_path):
    out = tmp_path / "apgd.json"
    report = held_out(run, out, "--n", 20, "--trained-on")
    kept = datasets.hold_out(datasets.load("digits").train, 50, 0)[0]
    assert torch.equal(scripts.module("experiments/held_out")._trained_on(run).images, kept.images)
    network = run_folder.from_run(run).model
    assert report["robust_after"]["clean"] == int(accuracy.clean_flags(network, kept.take(20)).sum())
    done = scripts.run("experiments/starts", run, out, "--out", tmp_path / "starts.json")
    assert done.returncode == 2
    assert done.stderr.endswith("is of the first 20 training images; run held_out.py without --trained-on\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights_sha256": "0"}, "; run held_out.py on it first"),
        ({"threat": {"norm": "L2", "eps": 1}}, "is of L2; the chains are of Linf, so give a run of that"),
    ],
)
def test_a_report_of_something_else_is_refused(run, apgd, tmp_path, change, message):
    (tmp_path / "apgd.json").write_text(json.dumps(apgd | change))
    with pytest.raises(BadInput, match=re.escape(message)):
        scripts.module("experiments/starts")._report(tmp_path / "apgd.json", run, apgd["weights_sha256"])
