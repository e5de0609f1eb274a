import json

import pytest
import torch
from problems import visible

from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.models import weights
from atent_ext.models.networks import DigitsCNN
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder, build_model


def recipe(*overrides):
    return recipes.load("digits-linf-atent", overrides)


def images(classes=10, channels=1, side=8):
    part = datasets.Split(torch.zeros(4, channels, side, side), torch.arange(4) % classes)
    return datasets.DataSet("some", tuple(str(k) for k in range(classes)), part, part)


def claim(folder, chosen, resume=False, overwrite=False):
    with folder.claimed(chosen, resume=resume, overwrite=overwrite):
        pass


def refusal(code, field, call, *arguments, **options):
    """The message of the BadInput that a call raises with this code and field."""
    with pytest.raises(BadInput) as error:
        call(*arguments, **options)
    assert (error.value.code, error.value.field) == (code, field)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "deep" / "run")


@pytest.fixture
def claimed(folder):
    claim(folder, recipe())
    return folder


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_a_new_folder_is_made_with_and_without_overwrite(folder, options):
    claim(folder, recipe("epochs=3"), **options)
    assert [path.name for path in visible(folder.path)] == ["recipe.yaml"]
    assert folder.recipe() == recipe("epochs=3")
    assert (folder.weights.name, folder.state.name) == ("weights.safetensors", "state.pt")


def test_a_folder_with_other_files_is_accepted_and_keeps_them(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    claim(folder, recipe())
    assert (folder.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "metrics.jsonl", "eval-mine.json"])
def test_a_folder_with_other_results_is_refused(folder, name):
    folder.path.mkdir(parents=True)
    (folder.path / name).write_text("theirs")
    assert refusal("exists", "out", claim, folder, recipe()) == (
        f"{folder.path / name} is there already; name another --out, or give --overwrite to replace it"
    )
    assert [(path.name, path.read_text()) for path in visible(folder.path)] == [(name, "theirs")]
    claim(folder, recipe(), overwrite=True)
    assert [path.name for path in visible(folder.path)] == ["recipe.yaml"]


def test_a_run_without_its_state_is_not_silently_restarted(claimed):
    claimed.write_metrics([{"epoch": 1}])
    claimed.weights.write_text("good")
    message = refusal("missing", "resume", claim, claimed, recipe(), resume=True)
    assert message == f"{claimed.path} has finished epochs and no state.pt; --overwrite starts the run anew"
    assert claimed.weights.read_text() == "good"


def test_a_folder_that_holds_a_run_is_refused(claimed):
    claimed.weights.write_bytes(b"precious")
    message = refusal("exists", "out", claim, claimed, recipe())
    assert message == f"{claimed.path} already holds a run; give --resume to go on or --overwrite to start anew"
    assert claimed.weights.read_bytes() == b"precious"


def test_resume_accepts_the_same_recipe_and_changes_no_file(claimed):
    claimed.weights.write_bytes(b"precious")
    before = {path: path.stat().st_mtime_ns for path in visible(claimed.path)}
    claim(claimed, recipe(), resume=True)
    assert {path: path.stat().st_mtime_ns for path in visible(claimed.path)} == before


@pytest.mark.parametrize(
    ("override", "before", "now"),
    [
        ("epochs=31", "epochs = 30", "not 31"),
        ("seed=1", "seed = 0", "not 1"),
        ("optimizer.lr=0.2", "optimizer = {'name': 'sgd', 'lr': 0.1", "not {'name': 'sgd', 'lr': 0.2"),
        ("objective.noise=0.002", "'noise': 0.001", "'noise': 0.002"),
        ("objective.gamma=0.1", "objective = {", "'gamma': 0.1"),
        ("ema=0.9", "ema = None", "not 0.9"),
    ],
)
def test_another_recipe_is_not_resumed(claimed, override, before, now):
    stored = (claimed.path / "recipe.yaml").read_bytes()
    field = override.split("=")[0].split(".")[0]
    message = refusal("other-content", field, claim, claimed, recipe(override), resume=True)
    assert message.startswith(f"{claimed.path} was trained with {field} = ")
    assert before in message
    assert now in message
    assert message.endswith(
        "go on with the recipe, --set and --seed that it was started with, or give --overwrite to start anew"
    )
    assert (claimed.path / "recipe.yaml").read_bytes() == stored


def test_the_same_value_written_differently_is_the_same_recipe(folder):
    claim(folder, recipe("objective.step_size=1e-3"))
    claim(folder, recipe("objective.step_size=0.001"), resume=True)
    assert folder.recipe() == recipe("objective.step_size=0.001")


def test_overwrite_starts_anew(claimed):
    claimed.weights.write_bytes(b"old")
    claimed.state.write_bytes(b"old")
    claim(claimed, recipe("epochs=2"), overwrite=True)
    assert [path.name for path in visible(claimed.path)] == ["recipe.yaml"]
    assert claimed.recipe().epochs == 2


@pytest.mark.parametrize("call", ["recipe", "load_model"])
def test_a_folder_without_a_run_is_refused(tmp_path, call):
    folder = RunFolder(tmp_path)
    arguments = [images()] if call == "load_model" else []
    message = refusal("missing", "path", getattr(folder, call), *arguments)
    assert message == f"{tmp_path} holds no run: there is no recipe.yaml in it"


def test_metrics_are_one_json_object_per_line(claimed):
    history = [{"epoch": 1, "loss": 0.1 + 0.2, "selected": True}, {"epoch": 2, "loss": 1e-9, "selected": False}]
    for count in (1, 2):
        claimed.write_metrics(history[:count])
        lines = (claimed.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == history[:count]


def test_the_trained_model_is_loaded_without_changing_the_random_state(claimed):
    trained = DigitsCNN()
    weights.save_weights(trained, claimed.weights)
    before = torch.random.get_rng_state()
    model = claimed.load_model(images())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in model.modules())
    assert model.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_run_without_a_finished_epoch_has_no_model(claimed):
    message = refusal("missing", "path", claimed.load_model, images())
    assert message == f"there is no weights file {claimed.weights}"


def test_weights_of_another_number_of_classes_are_refused(claimed):
    weights.save_weights(DigitsCNN(classes=3), claimed.weights)
    message = refusal("bad-shape", "path", claimed.load_model, images())
    assert message.startswith(f"{claimed.weights} does not fit DigitsCNN")
    assert "8.weight (3, 100) for (10, 100)" in message
    assert "the weights are for 3 classes, the network is for 10" in message


def test_the_model_fits_classes_and_channels_of_the_data():
    model = build_model(recipe(), images(classes=3, channels=2))
    assert model(torch.zeros(5, 2, 8, 8)).shape == (5, 3)


def test_arguments_of_the_recipe_reach_the_model():
    small = build_model(recipe("model.name=small-cnn", "model.arguments.dropout=0.25"), images(side=28))
    assert [m.p for m in small.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]
    wrong = recipe("model.name=small-cnn", "model.arguments.droput=0.25")
    message = refusal("unknown-name", "droput", build_model, wrong, images(side=28))
    assert message.endswith("did you mean 'dropout'?")


def test_a_network_that_cannot_take_the_images_is_refused():
    message = refusal("bad-shape", "images", build_model, recipe("model.name=small-cnn"), images())
    assert "cannot take images of 1x8x8" in message


def test_there_must_be_a_run_to_resume(folder):
    assert "holds no run" in refusal("missing", "resume", claim, folder, recipe(), resume=True)
    message = refusal("conflict", "resume", claim, folder, recipe(), resume=True, overwrite=True)
    assert "exclude each other" in message
    assert not folder.path.exists()


def test_overwriting_removes_the_run_and_nothing_else(claimed):
    for name in ("state.pt", "weights.safetensors", "metrics.jsonl", "eval-quick.json", "certify-1.json", "thesis.tex"):
        (claimed.path / name).write_text("old")
    for name in ("eval-quick.json.chunks", "union-quick.json.parts"):
        (claimed.path / name).mkdir()
        (claimed.path / name / "0.json").write_text("old")
    claim(claimed, recipe("epochs=7"), overwrite=True)
    assert sorted(path.name for path in visible(claimed.path)) == ["recipe.yaml", "thesis.tex"]


def test_a_reworded_description_does_not_prevent_resuming(claimed):
    claim(claimed, recipe("description=reworded"), resume=True)
