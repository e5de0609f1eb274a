"""What is wrong whatever the files hold is refused before any file is looked at: every file here is missing or junk."""

import importlib.util

import pytest
import torch
from commands import atent, refused
from torch.torch_version import TorchVersion

from atent_ext.core.errors import BadInput
from atent_ext.experiments import quickstart
from atent_ext.experiments.runner import Runner
from atent_ext.training import recipes

NOWHERE = "nowhere.pth"
SENT = ["submission", "new", NOWHERE, "--out", "sent", "--license", "MIT", "--authors"]
BENCH = "robustbench:Carmon2019Unlabeled"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", NOWHERE, "--norm", "L7"], "'L7'"),
        (["eval", NOWHERE, "--eps", "-1"], "eps is -1"),
        (["eval", NOWHERE, "--n", "0"], "n is 0"),
        (["eval", NOWHERE, "--speed", "fast"], "speed is 'fast'"),
        (["eval", NOWHERE, "--until-width", "0"], "until_width is 0"),
        (["eval", NOWHERE, "--protocol", "autoatack"], "unknown protocol 'autoatack'"),
        (["eval", NOWHERE, "--protocol", "nowhere.yaml", "--dataset", "imagnet"], "unknown data set 'imagnet'"),
        (["eval", NOWHERE, "--model", "smal-cnn"], "unknown model 'smal-cnn'"),
        (["eval", NOWHERE, "--dataset", "mnits"], "unknown data set 'mnits'"),
        (["eval", BENCH, "--dataset", "imagnet"], "unknown data set 'imagnet'"),
        (["eval", BENCH, "--dataset", "cifar10", "--norm", "L7"], "'L7'"),
        (["certify", NOWHERE, "--sigma", "-1"], "sigma is -1"),
        (["certify", NOWHERE, "--sigma", "0.1", "--n", "10", "--radius", "1"], "n is 10"),
        (["certify", NOWHERE, "--sigma", "0.1", "--model", "smal-cnn"], "unknown model 'smal-cnn'"),
        (["certify", NOWHERE, "--sigma", "0.1", "--dataset", "mnits"], "unknown data set 'mnits'"),
        (["export", NOWHERE, "--out", "zoo", "--to", "robustbank"], "unknown library to export to 'robustbank'"),
        (["verify", NOWHERE, "--speed", "fast"], "speed is 'fast'"),
        (["verify", NOWHERE, "--tolerance", "2"], "--tolerance is 2, and only --until-decided uses it"),
        (["verify", NOWHERE, "--protocol", "verfy"], "unknown protocol 'verfy'"),
        (["verify", NOWHERE, "--dataset", "mnits"], "unknown data set 'mnits'"),
        (["submit", NOWHERE, "--to", "nobody"], "'nobody'"),
        ([*SENT, "A", "--link", "ftp://a.b"], "link"),
        ([*SENT, "A", "--name", "a b"], "name"),
        ([*SENT, "A\x1b"], "authors"),
        (["compare", NOWHERE], "a comparison needs at least two"),
        (["compare", NOWHERE, NOWHERE, "--until-decided", "--seed", "-1"], "seed is -1"),
        (["train", "mnist-linf-atent", "--data-root", NOWHERE, "--resume", "--overwrite"], "exclude each other"),
        (["reproduce", "v2-table2", "--out", "junk", "--row", "nobody"], "'nobody'"),
        (["plot", "landscap", NOWHERE], "unknown figure 'landscap'"),
        (["plot", "curve"], "needs at least one"),
        (["plot", "curve", NOWHERE, "--out", "picture.txt"], "picture.txt"),
        (["plot", "plane", "--dataset", "mnits", "--data-root", NOWHERE], "'mnits'"),
        (["doctor", "nobody"], "unknown neighbour 'nobody'"),
    ],
)
def test_conditions_that_do_not_depend_on_files_come_first(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "v2-table2-smoke.json").write_text("junk")
    refused(atent(*arguments), words)
    assert {path.name for path in tmp_path.rglob("*")} == {"junk", "v2-table2-smoke.json"}


@pytest.mark.integration
@pytest.mark.skipif(importlib.util.find_spec("robustbench") is None, reason="the extra robustbench is not installed")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "robustbench:Carmon2019Unlabelled", "--dataset", "cifar10"], "Carmon2019Unlabeled"),
        # no other test of this process registers a model of that data set
        (["eval", BENCH, "--dataset", "fashion-mnist"], "unknown data set of RobustBench 'fashion-mnist'"),
        (["export", NOWHERE, "--out", "zoo", "--name", "a b"], "name is 'a b'"),
    ],
)
def test_so_do_those_of_robustbench(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(atent(*arguments), words)
    assert list(tmp_path.iterdir()) == []


def test_an_old_torch_is_refused_before_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1+cpu"))
    (tmp_path / "own.py").write_text("import pathlib\npathlib.Path('ran').touch()")
    source = ("own.py:make", "--dataset", "digits")
    refused(atent("export", *source, "--to", "pt2", "--out", "m.pt2"), "torch 2.8.1")
    written = ("--authors", "A", "--license", "MIT", "--out", "sent")
    refused(atent("submission", "new", *source, "--eps", "0.1", *written), "torch 2.8.1")
    refused(
        atent("submission", "new", NOWHERE, "--model", "digits-cnn", *source[1:], "--eps", "0.1", *written), NOWHERE
    )
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


def test_the_quickstart_reads_all_its_recipes_before_it_trains_one(tmp_path, monkeypatch):
    load = recipes.load

    def failing(name, *others):
        if name.endswith("atent"):
            raise BadInput("the last one does not take it", code="bad-value", field="set")
        return load(name, *others)

    monkeypatch.setattr(recipes, "load", failing)
    monkeypatch.setattr(Runner, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(BadInput, match="the last one"):
        quickstart.quickstart(tmp_path)
