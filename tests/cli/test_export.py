"""`atent export`, and `atent eval robustbench:NAME`."""

import importlib.util
import json

import pytest
import torch
from commands import atent, refused

from atent_ext.core import compat
from atent_ext.data import datasets
from atent_ext.integrations.robustbench import register
from atent_ext.models import networks, weights
from atent_ext.storage import files
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder

if importlib.util.find_spec("robustbench") is None:
    pytest.skip("robustbench is not installed", allow_module_level=True)
compat.robustbench()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder as training leaves it, with fresh weights."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    torch.manual_seed(0)
    with folder.claimed(recipes.load("digits-linf-atent"), resume=False, overwrite=False):
        weights.save_weights(networks.build("digits-cnn", classes=10, channels=1), folder.weights)
    return folder


def test_export_writes_a_checkpoint_and_its_entry(run, tmp_path):
    out = tmp_path / "zoo"
    done = atent("export", run.path, "--to", "robustbench", "--out", out, "--name", "mine")
    assert done.returncode == 0, done.stderr
    weights, entry = out / "digits" / "Linf" / "mine.pt", out / "digits" / "Linf" / "mine.py.txt"
    assert sorted(weights.parent.iterdir()) == [weights, entry]
    assert str(weights) in done.stdout
    assert str(entry) in done.stdout
    state, expected = files.tensors(weights), run.load_model(datasets.load("digits")).state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_export_replaces_only_if_told(run, tmp_path):
    arguments = ["export", run.path, "--out", tmp_path / "zoo"]
    assert atent(*arguments).returncode == 0
    weights = tmp_path / "zoo" / "digits" / "Linf" / "digits-linf-atent.pt"
    weights.write_bytes(b"precious")
    refused(atent(*arguments), str(weights), "--overwrite")
    assert weights.read_bytes() == b"precious"
    assert atent(*arguments, "--overwrite").returncode == 0
    assert weights.read_bytes() != b"precious"


def test_export_of_bad_input(run, tmp_path):
    out = tmp_path / "zoo"
    refused(atent("export", run.path, "--to", "robustbnch", "--out", out), "robustbnch", "'robustbench'")
    refused(atent("export", tmp_path, "--out", out), str(tmp_path), "no run")
    refused(atent("export", run.path, "--out", out, "--name", "a/b"), "a/b")
    assert not out.exists()


def test_eval_scores_a_model_of_the_zoo_as_it_scores_the_run(run, tmp_path):
    out = tmp_path / "zoo"
    assert atent("export", run.path, "--out", out, "--name", "scored").returncode == 0
    register("scored", dataset="digits", threat_model="Linf", model="digits-cnn")
    setting = ["--protocol", "quick", "--n", 20, "--eps", "38/255"]
    place = ["--dataset", "digits", "--model-dir", out]
    done = atent("eval", "robustbench:scored", *place, *setting)
    assert done.returncode == 0, done.stderr
    (report,) = map(json.loads, (file.read_text() for file in tmp_path.glob("runs/scored-*/eval-quick-*.json")))
    assert atent("eval", run.path, *setting, "--out", "own.json").returncode == 0
    own = json.loads((tmp_path / "own.json").read_text())
    assert [r["flags"] for r in report["results"]] == [r["flags"] for r in own["results"]]
    assert report["threat"] == own["threat"] == {"norm": "Linf", "eps": 38 / 255}
    assert "Downloading" not in done.stdout


def test_eval_of_a_model_of_the_zoo_that_is_not_there(run):
    name = "robustbench:Rice2020Overfitting"
    refused(atent("eval", name, "--dataset", "cifar10"), "models/cifar10/Linf/Rice2020Overfitting.pt")
    refused(atent("eval", name, "--dataset", "cifar10", "--norm", "L2", "--model-dir", "here"), "here/cifar10/L2/")
    refused(atent("eval", name.replace("Rice", "Ryce"), "--dataset", "cifar10"), "'Rice2020Overfitting'")
    refused(atent("eval", name), "--dataset")
    refused(atent("eval", run.path, "--model-dir", "here"), "--model-dir")


def test_radii_that_are_no_numbers(run):
    for text in ("8/0", "eight", "8/255/2"):
        done = atent("eval", run.path, "--eps", text)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
