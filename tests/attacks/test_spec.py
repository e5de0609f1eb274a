"""Attacks of protocols as data: what describes one, what is refused, and which the shipped files name."""

from pathlib import Path

import pytest
import torch
import yaml
from commands import atent, refused
from problems import attack_spec

from atent_ext.attacks.spec import AttackSpec, parse
from atent_ext.attacks.specs.gradient import PGDSpec
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation import places
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.experiments.study import Column
from atent_ext.models import networks, weights

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "eval" / "protocols").rglob("*.yaml"))
MINE = """\
name: mine
description: Two attacks.
attacks:
  - {attack: clean}
  - {attack: pgd, steps: 2}
"""

# ---- from a mapping


def refusal(raw):
    with pytest.raises(BadInput) as error:
        parse(raw)
    assert str(error.value).isprintable()
    return error.value


def test_a_mapping_becomes_the_attack_that_it_names():
    spec = parse({"attack": "pgd", "steps": 7})
    assert spec == PGDSpec(steps=7)
    assert parse(spec) is spec
    assert spec.model_dump() == {"attack": "pgd", "steps": 7, "restarts": 1, "step_size": None, "keep": "last"}
    for name in registry.ATTACKS:
        assert attack_spec(name).attack == name
        assert isinstance(attack_spec(name), AttackSpec)


@pytest.mark.parametrize("raw", [None, 3, "pgd", [], {}, {"steps": 3}, {"attack": 3}, {"attack": ["pgd"]}])
def test_what_names_no_attack_is_refused(raw):
    error = refusal(raw)
    assert (error.code, error.field) == ("bad-type", "attack")


@pytest.mark.parametrize(("name", "near"), [("pdg", "pgd"), ("autoatack", "autoattack"), ("PGD", "pgd")])
def test_an_unknown_attack_is_refused_with_the_nearest(name, near):
    error = refusal({"attack": name})
    assert (error.code, error.field) == ("unknown-name", "attack")
    assert near in str(error)


@pytest.mark.parametrize(
    ("raw", "field", "near"),
    [
        ({"attack": "pgd", "step": 3}, "step", "'steps'"),
        ({"attack": "pgd", "restart": 3}, "restart", "'restarts'"),
        ({"attack": "autoattack", "versions": "rand"}, "versions", "'version'"),
        ({"attack": "pgd", "noise": 0.1}, "noise", "restarts"),  # ATENT's, as no other has it
        ({"attack": "clean", "steps": 40}, "steps", "attack"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest(raw, field, near):
    error = refusal(raw)
    assert (error.code, error.field) == ("unknown-name", field)
    assert f"attack {raw['attack']!r}" in str(error)
    assert near in str(error)


@pytest.mark.parametrize(
    "raw",
    [
        {"attack": "pgd", "steps": 0},
        {"attack": "pgd", "steps": 2.5},
        {"attack": "pgd", "steps": "many\nlines"},
        {"attack": "pgd", "step_size": 0},
        {"attack": "pgd", "step_size": float("inf")},
        {"attack": "pgd", "keep": "best"},
        {"attack": "atent", "noise": -0.1},
        {"attack": "atent", "noise": float("nan")},
        {"attack": "atent", "project": "never"},
        {"attack": "cw", "steps": -1},
        {"attack": "autoattack", "version": "custom"},
    ],
)
def test_a_wrong_value_is_refused(raw):
    error = refusal(raw)
    assert (error.code, error.field) == ("bad-value", next(name for name in raw if name != "attack"))


@pytest.mark.parametrize("found", [3, dict, len])
def test_an_entry_that_is_no_attack_is_refused(monkeypatch, found):
    monkeypatch.setattr(registry, "resolve", lambda kind, name: found)
    assert refusal({"attack": "odd"}).code == "bad-type"


def test_a_share_of_the_radius_as_step_needs_an_attack_that_steps():
    own = Threat(norm="Linf", eps=0.3)
    assert Column(name="a", attack=attack_spec("atent"), step_share=0.1).spec(own).step_size == pytest.approx(0.03)
    with pytest.raises(ValueError, match="fgsm has no step_size"):
        Column(name="a", attack=attack_spec("fgsm"), step_share=0.1)


# ---- for networks that answer at random


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_what_changes_for_a_network_that_answers_at_random(name):
    keeps = name in ("pgd", "atent", "malt")
    spec = attack_spec(name, **{"steps": 3, "keep": "success"} if keeps else {})
    changed = {"autoattack": {"version": "rand"}}.get(name, {"keep": "last"} if keeps else {})
    assert spec.for_random_network() == attack_spec(name, **spec.model_dump(exclude={"attack"}) | changed)
    assert (spec.for_random_network() == spec) == (not changed)


# ---- the files that ship


def attacks(value):
    """Every attack in nested data, as it was written."""
    if isinstance(value, dict) and isinstance(value.get("attack"), str):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from attacks(part)


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_shipped_file_names_every_field_of_its_attacks(path):
    """What a protocol measures does not change where a default does."""
    for raw in attacks(yaml.safe_load(path.read_text(encoding="utf-8"))):
        spec = parse(raw)
        assert raw.keys() == type(spec).model_fields.keys(), raw
        assert spec.model_dump(mode="json") == raw
        assert raw.get("gamma", 0.0) is not None
        assert raw.get("project", "last") is not None  # which is another one in each norm


def test_the_shipped_files_hold_attacks_of_all_kinds():
    found = {raw["attack"] for path in SHIPPED for raw in attacks(yaml.safe_load(path.read_text(encoding="utf-8")))}
    assert found == registry.ATTACKS.keys()


@pytest.mark.parametrize("name", registry.files("protocol"))
def test_a_protocol_as_plain_data_is_the_protocol(name):
    protocol = load_protocol(name)
    assert Protocol.model_validate(protocol.model_dump(mode="json")) == protocol


# ---- a protocol of the user's


@pytest.fixture
def network(tmp_path):
    """The options of `atent eval` for weights of no training."""
    torch.manual_seed(0)
    weights.save_weights(networks.build("digits-cnn", classes=10, channels=1), tmp_path / "model.safetensors")
    return [tmp_path / "model.safetensors", "--model", "digits-cnn", "--dataset", "digits", "--norm", "Linf"]


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_protocol_is_read_from_a_file(tmp_path, network, suffix):
    file = tmp_path / f"own{suffix}"
    file.write_text(MINE)
    done = atent("eval", *network, "--eps", 0.1, "--n", 4, "--protocol", file, "--out", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = Report.load(tmp_path / "r.json")
    assert (report.protocol, [one.attack for one in report.results]) == ("mine", ["clean", "PGD-2", "worst case"])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("name: [", "unreadable"),
        (b"\xff\xfe", "unreadable"),
        ("[" * 3000, "unreadable"),
        ("", "bad-value"),
        ("- 1", "bad-value"),
        ("name: mine", "bad-value"),
        (MINE.replace("pgd", "pdg"), "bad-value"),
        (MINE.replace("steps", "step"), "bad-value"),
        (f"{MINE}color: red", "bad-value"),
        ("name: mine\ndescription: none\nattacks: []", "bad-value"),
    ],
)
def test_a_broken_protocol_file_is_refused_in_one_line(tmp_path, content, code):
    file = tmp_path / "own.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as error:
        load_protocol(str(file))
    assert (error.value.code, error.value.field) == (code, "protocol")
    assert str(error.value).startswith(f"protocol {file}")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("place", ["nowhere.yaml", "folder.yaml"])
def test_a_protocol_file_that_is_not_there_is_refused(tmp_path, place):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(BadInput) as error:
        load_protocol(str(tmp_path / place))
    assert (error.value.code, error.value.field) == ("missing", "protocol")
    assert place in str(error.value)


def test_the_command_refuses_a_protocol_file_in_one_line(tmp_path, network):
    (tmp_path / "own.yaml").write_text(MINE.replace("steps", "step"))
    options = [*network, "--eps", 0.1, "--n", 2, "--protocol"]
    refused(atent("eval", *options, tmp_path / "own.yaml"), "own.yaml", "did you mean 'steps'?")
    refused(atent("eval", *options, tmp_path / "nowhere.yaml"), "there is no protocol file", "nowhere.yaml")


@pytest.mark.parametrize("name", ["../../mine", "/etc/mine", "a/b", "a\\b", "a\nb"])
def test_the_name_of_a_protocol_leads_to_no_other_folder(tmp_path, name):
    images = datasets.Split(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long))
    about = About(name="x", model="x", weights_sha256="12345678", data="x")
    subject = Subject(torch.nn.Identity(), images, Threat(norm="Linf", eps=0.1), about)
    protocol = Protocol(name=name, description="", attacks=({"attack": "clean"},))
    path = places.default_path(tmp_path, subject, protocol, 2, 0)
    assert path.parent == tmp_path
    assert path.name.isprintable()
    assert path.name.endswith("-Linf-0.1-n2-seed0.json")
