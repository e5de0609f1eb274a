"""Trackers: what is logged, that a resumed run goes on in its log, and that a recipe stays the same recipe."""

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker
from training_runs import STEPS, metrics, recipe, refusal, stop_after, weights

from atent_ext.core.errors import MissingExtra
from atent_ext.training import loop, recipes, tracking
from atent_ext.training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "tiny_net")


@pytest.fixture(params=["tensorboard", "wandb", "mlflow"])
def log(request, monkeypatch):
    """A stand-in for the tracker's package: every start with its arguments, every value with its step."""

    class Tracker(GeneralTracker):
        name, requires_logging_directory = request.param, request.param == "tensorboard"
        starts, configs, values, open = [], [], [], 0

        def __init__(self, *arguments, **options):
            super().__init__()
            self.starts.append((arguments, options))
            if not hasattr(GeneralTracker, "start"):  # older versions of accelerate start it here
                self.start()

        @property
        def tracker(self):
            return self

        @property
        def info(self):
            return type("Info", (), {"run_id": self.starts[-1][1]["run_id"] or "made by mlflow"})

        def start(self):
            type(self).open += 1

        def store_init_configuration(self, values):
            self.configs.append(values)

        def log(self, values, step=None):
            self.values.append((step, values))

        def finish(self):
            type(self).open -= 1

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, request.param, Tracker)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [accelerate.utils.LoggerType(request.param)])
    return Tracker


def test_a_resumed_run_goes_on_in_its_log(tmp_path, tiny, log):
    plain = loop.fit(recipe("sgd"), tiny, tmp_path / "plain")
    assert log.starts == []
    assert not plain.tracker.exists()
    chosen = recipe("sgd", f"tracker={log.name}")
    with pytest.raises(KeyboardInterrupt):
        loop.fit(chosen, tiny, tmp_path / "run", reporter=stop_after(STEPS + 2))
    run = loop.fit(recipe("sgd"), tiny, tmp_path / "run", resume=True)  # the tracker need not be named again
    assert weights(run) == weights(plain)
    assert metrics(run) == metrics(plain)
    assert log.open == 0
    assert [step for step, _ in log.values] == [1, 2, 3]
    curves = [{key: value for key, value in values.items() if key != "seconds"} for _, values in log.values]
    assert curves == [
        {key: value for key, value in line.items() if key not in ("epoch", "selected")} for line in metrics(plain)
    ]
    assert log.configs[0].items() >= {"epochs": 3, "threat.norm": "Linf", "optimizer.name": "sgd"}.items()
    (where, first), (again, second) = log.starts
    assert where == again
    if log.name == "tensorboard":
        assert where == ("tensorboard", run.path)
    if log.name == "wandb":
        assert first == second
        assert (first["name"], first["resume"], first["dir"]) == (chosen.name, "allow", str(run.path))
    if log.name == "mlflow":
        assert (first["run_id"], second["run_id"]) == (None, "made by mlflow")


def test_a_run_that_is_replaced_gets_a_new_log(tmp_path, tiny, log):
    chosen = recipe("sgd", "epochs=1", f"tracker={log.name}")
    run = loop.fit(chosen, tiny, tmp_path)
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events").touch()
    loop.fit(recipe("sgd", "epochs=1"), tiny, tmp_path, overwrite=True)
    assert len(log.starts) == 1
    assert not run.tracker.exists()
    assert not (run.path / "tensorboard").exists()


def test_a_tracker_is_no_part_of_a_recipe(tmp_path):
    plain, tracked = recipe("sgd"), recipe("sgd", "tracker=wandb")
    assert tracked.tracker == "wandb"
    assert tracked.model_dump() == plain.model_dump()
    assert recipes.dump(tracked) == recipes.dump(plain)


def test_a_tracker_that_cannot_be_had_is_refused(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", [])
    chosen = recipe("sgd", "tracker=wandb")
    message = refusal("missing-extra", "tracker", loop.fit, chosen, tiny, tmp_path / "run", kind=MissingExtra)
    assert "pip install wandb" in message
    assert not (tmp_path / "run").exists()
    assert "'tensorboard'" in refusal("bad-value", "tracker", recipe, "sgd", "tracker=excel")


@pytest.mark.parametrize("text", ["{", "[]", '{"tracker": "evil-package"}', '{"tracker": "wandb", "run": 3}', "\ud800"])
def test_a_broken_log_is_one_line(tmp_path, text):
    folder = RunFolder(tmp_path)
    folder.tracker.write_text(text, encoding="utf-8", errors="surrogatepass")
    for chosen in (recipe("sgd"), recipe("sgd", "tracker=wandb")):
        message = refusal("unreadable", "tracker", tracking.chosen, chosen, folder, True)
        assert "remove it" in message
        assert "\n" not in message


def test_a_tracker_that_does_not_start_is_one_line(tmp_path, tiny, monkeypatch, log):
    def start(self):
        raise RuntimeError("no account\nlog in")

    monkeypatch.setattr(log, "start", start)
    chosen = recipe("sgd", f"tracker={log.name}")
    assert "no account log in" in refusal("unsupported", "tracker", loop.fit, chosen, tiny, tmp_path)
