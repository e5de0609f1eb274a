"""Repositories of the Hugging Face hub, of which a stand-in on the loopback is asked."""

import hashlib
import json

import hub
import pytest
import sample_cards
import torch
import yaml
from commands import atent
from strangers import CARD, digits_cnn, same_weights

from atent_ext import subjects
from atent_ext.core.around import Around
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.integrations import huggingface
from atent_ext.models import programs, weights
from atent_ext.subjects import hub_config
from atent_ext.submissions import cards, masking, verification
from atent_ext.submissions import folder as submission_folder

DATA = {"dataset": "digits", "eps": 0.1}
WEIGHTS = weights.serialised(digits_cnn())
CARD_YAML = yaml.safe_dump(CARD).encode()

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(scope="module")
def server():
    with hub.serving() as server:
        yield server


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")

    def repository(files, name="someone/net"):
        server.files.clear()
        server.files.update({(name, path): content for path, content in files.items()})
        server.asked.clear()
        return f"hf:{name}"

    return repository


def refusal(*arguments, **options):
    with pytest.raises(BadInput) as error:
        subjects.load(*arguments, **options)
    assert str(error.value).isprintable()
    return error.value.code, error.value.field


def config(name="digits-cnn", **fields):
    return json.dumps({"architecture": name, **fields}).encode()


def test_weights_with_a_card_are_scored_as_the_card_says(publish, server):
    reference = publish({"card.yaml": CARD_YAML, "model.safetensors": WEIGHTS, "model.py": b"1 / 0"})
    subject = subjects.load(reference)
    assert same_weights(subject.model, digits_cnn())
    assert (subject.about.name, subject.about.data, subject.threat.eps) == ("a-model", "digits", 0.15)
    assert subject.about.weights_sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert f"from {reference}, commit {server.commit('someone/net')}, file model.safetensors" in subject.notes
    assert not any("model.py" in path for path in server.asked)
    assert subjects.load(f"{reference}@main/model.safetensors", eps=0.05).threat.eps == 0.05


def test_the_cache_is_enough_without_a_network(publish, server, monkeypatch):
    reference = publish({"card.yaml": CARD_YAML, "model.safetensors": WEIGHTS})
    subjects.load(reference)
    server.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert same_weights(subjects.load(reference).model, digits_cnn())
    assert refusal("hf:someone/other", **DATA) == ("missing", "subject")
    assert server.asked == []


@pytest.mark.usefixtures("writes_programs")
def test_a_program_needs_no_architecture(publish, tmp_path):
    x = datasets.load("digits").test.images[:4]
    programs.export(digits_cnn(), x, tmp_path / "m.pt2")
    content = (tmp_path / "m.pt2").read_bytes()
    card = yaml.safe_dump({name: value for name, value in CARD.items() if name != "architecture"}).encode()
    for files, options in (({"card.yaml": card}, {}), ({}, DATA)):
        subject = subjects.load(publish({"model.pt2": content, **files}), **options)
        assert torch.equal(subject.model(x), digits_cnn()(x))
        assert subject.about.weights_sha256 == hashlib.sha256(content).hexdigest()


def test_a_config_names_a_known_network_and_its_normalisation(publish):
    scale = {"mean": [0.5], "std": [0.25]}
    files = {"config.json": config(pretrained_cfg=scale, num_classes=10), "model.safetensors": WEIGHTS}
    subject = subjects.load(publish(files), **DATA)
    x = datasets.load("digits").test.images[:4]
    torch.testing.assert_close(subject.model(x), digits_cnn()((x - 0.5) / 0.25))
    assert subject.about.name == "net"
    assert "mean (0.5,) and std (0.25,)" in subject.about.model
    assert "config.json says the normalisation, which is applied" in subject.notes
    plain = subjects.load("hf:someone/net", **DATA, around=Around(normalisation="none")).model
    assert torch.equal(plain(x), digits_cnn()(x))


def test_a_network_of_timm(publish):
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", num_classes=10, in_chans=1).eval()
    files = {"config.json": config("resnet10t", model_args={"in_chans": 1}), "model.safetensors": None}
    subject = subjects.load(publish(files | {"model.safetensors": weights.serialised(network)}), **DATA)
    x = datasets.load("digits").test.images[:4]
    assert torch.equal(subject.model(x), network(x))
    assert subject.about.model.startswith("timm:resnet10t, timm ")


def test_arguments_of_usual_sizes_are_taken():
    arguments = {
        "drop_path_rate": 0.1,
        "embed_dim": 4096,
        "depths": [3, 200],
        "num_classes": 21843,
        "act_layer": "gelu",
    }
    found = hub_config.read(config("swin", model_args=arguments), "config.json")
    assert found.arguments == {name: value for name, value in arguments.items() if name != "num_classes"}


def test_the_file_of_a_repository_and_a_network_may_be_named(publish):
    reference = publish({"deep/w.safetensors": WEIGHTS, "deep/card.yaml": CARD_YAML, "config.json": b"[]"})
    assert subjects.load(f"{reference}/deep/w.safetensors").about.name == "a-model"
    assert same_weights(
        subjects.load(f"{reference}/deep/w.safetensors", model="digits-cnn", **DATA).model, digits_cnn()
    )


PICKLE = b"\x80\x04cos\nsystem\n(S'touch ran'\ntR."


@pytest.mark.parametrize(
    ("files", "reference", "options", "code", "field"),
    [
        ({"a": b""}, "hf:someone", DATA, "bad-value", "subject"),
        ({"a": b""}, "hf:someone/net/../x", DATA, "bad-value", "subject"),
        ({"a": b""}, "hf:someone/none", DATA, "missing", "subject"),
        ({"a": b""}, "hf:someone/net@v2", DATA, "missing", "subject"),
        ({"a": b""}, "hf:someone/net", DATA, "missing", "subject"),
        ({"a": b""}, "hf:someone/net/b.pt2", DATA, "missing", "subject"),
        ({"model.safetensors": WEIGHTS}, "hf:someone/net", DATA, "missing", "model"),
        ({"model.safetensors": WEIGHTS}, "hf:someone/net", {"eps": 0.1}, "missing", "dataset"),
        ({"config.json": config()}, "hf:someone/net", DATA, "missing", "subject"),
        ({"config.json": config("no-such-network")}, "hf:someone/net", DATA, "unknown-name", "model"),
        ({"config.json": b'{"architectures": ["ViT"]}'}, "hf:someone/net", DATA, "unsupported", "config"),
        ({"config.json": b"{"}, "hf:someone/net", DATA, "unreadable", "config"),
        (
            {"config.json": config("resnet18", model_args={"checkpoint_path": "x"})},
            "hf:someone/net",
            DATA,
            "unsafe",
            "config",
        ),
        ({"config.json": config(model_args={"width": {}})}, "hf:someone/net", DATA, "unsafe", "config"),
        *(
            ({"config.json": config("resnet18", model_args=large)}, "hf:someone/net", DATA, "too-large", "config")
            for large in ({"embed_dim": 4097}, {"depth": 201}, {"layers": [2, 2, 201]}, {"mlp_ratio": 1e9})
        ),
        (
            {"card.yaml": CARD_YAML},
            "hf:someone/net",
            {"around": Around(normalisation="none")},
            "unused",
            "normalisation",
        ),
        ({"card.yaml": CARD_YAML}, "hf:someone/net", {"held_out": True}, "unused", "held_out"),
        ({"card.yaml": CARD_YAML, "w.bin": PICKLE}, "hf:someone/net/w.bin", {}, "unsafe", "path"),
    ],
)
def test_repositories_that_are_refused(publish, files, reference, options, code, field):
    if "config.json" in files and code != "missing":
        files = files | {"model.safetensors": WEIGHTS}
    publish(files)
    assert refusal(reference, **options) == (code, field)


def test_a_hub_that_cannot_be_reached_and_a_missing_package(publish, monkeypatch):
    publish({})

    def unreachable(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    with monkeypatch.context() as patch:  # the package itself tries for half a minute
        patch.setattr(huggingface_hub, "hf_hub_download", unreachable)
        assert refusal("hf:someone/net", **DATA) == ("missing", "subject")
    assert refusal("hf:someone/net/a/./b.pt2", **DATA) == ("missing", "subject")
    with pytest.raises(BadInput):  # the package refuses the path by a ValueError
        huggingface.fetch(huggingface.parse("hf:someone/net"), "..")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtra, match=r"atent-ext\[hub\]"):
        subjects.load("hf:someone/net", **DATA)


def test_a_card_and_its_weights_make_a_round_trip_over_the_hub(publish, server, tmp_path, monkeypatch):
    """verify, submit, push, pull: the same hash, and the same flags as the card's."""
    folder = tmp_path / "sent"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "card.yaml").write_bytes(CARD_YAML)
    monkeypatch.setattr(masking, "signs", lambda *_, **__: ((), {}))
    card = verification.verify(submission_folder.read(folder), n=12, protocol="quick", speed="plain")
    cards.write_card(card, tmp_path / "sent.card.json")
    reference = publish({}, "someone/a-model")
    out = tmp_path / "repository"
    done = atent("submit", tmp_path / "sent.card.json", "--to", "huggingface", "--out", out)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "card.json", "model.safetensors"]
    measured = huggingface_hub.ModelCard.load(out / "README.md").data
    assert [result.metric_value for result in measured.eval_results] == [one.accuracy for one in card.report.results]
    assert (measured.license, measured.model_name) == ("mit", "a-model")

    api = huggingface_hub.HfApi(endpoint=server.address, token="none")
    api.create_repo("someone/a-model")
    with monkeypatch.context() as patch:  # older versions of huggingface_hub know no other address in their answer
        patch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
        api.upload_folder(repo_id="someone/a-model", folder_path=out)
    scored = ("--n", "12", "--protocol", "quick", "--speed", "plain")
    done = atent("eval", reference, *scored, "--out", tmp_path / "pulled.json")
    assert done.returncode == 0, done.stderr
    pulled = Report.load(tmp_path / "pulled.json")
    assert pulled.weights_sha256 == card.weights["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert [one.flags for one in pulled.results] == [one.flags for one in card.report.results]
    assert f"commit {server.commit('someone/a-model')}" in pulled.prepared[0]

    server.files["someone/a-model", "model.safetensors"] = weights.serialised(digits_cnn(seed=1))
    assert refusal(reference) == ("other-content", "weights")


def test_what_is_not_written_for_the_hub(tmp_path):
    card = sample_cards.card()
    with pytest.raises(BadInput) as error:
        huggingface.write(card.model_copy(update={"report": None}), tmp_path / "w", tmp_path / "out")
    assert (error.value.code, error.value.field) == ("missing", "report")
    (tmp_path / "w").write_bytes(b"other")
    with pytest.raises(BadInput) as error:
        huggingface.write(card, tmp_path / "w", tmp_path / "out")
    assert (error.value.code, error.value.field) == ("other-content", "weights")
    assert not (tmp_path / "out").exists()
