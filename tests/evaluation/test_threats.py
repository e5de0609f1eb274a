"""Several threat models at once: each part is what it is alone, the union is their AND, one report has all of it."""

import json
import re

import pytest
import torch
from commands import atent, refused
from problems import attack_spec
from reports import report, result
from torch import nn

import atent_ext
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.evaluation import engine, threats
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.union import UnionReport
from atent_ext.leaderboard import view
from atent_ext.submissions.cards import Card

PGD = Protocol(name="mine", description="", attacks=(attack_spec("clean"), attack_spec("pgd", steps=3)))
ASKED = ["Linf:0.02", ("L2", 0.06)]


class Gated(nn.Module):
    """The last pixel chooses: the margin is that of the sum of all others, or that of the first alone."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        moved = x.flatten(1) - self.level
        margin = torch.where(moved[:, -1] > 0, moved[:, :-1].sum(1), moved[:, 0])
        return torch.stack([-margin, margin], 1)


@pytest.fixture(scope="module")
def problem():
    """Of 24 images 8 fall in Linf alone, 8 in L2 alone, 8 in neither."""
    images = torch.full((24, 1, 4, 4), 0.5)
    images[:8] += 0.28 / 15  # a sum of 0.28, of which Linf 0.02 takes 0.3, and L2 0.06 takes 0.23
    images[8:16, :, 0, 0] += 0.04  # of which Linf takes 0.02, and L2 0.06
    images[16:, :, 0, 0] += 0.2
    images[:8, :, 3, 3], images[8:, :, 3, 3] = 1, 0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    return Gated(), images[order], torch.ones(24, dtype=torch.long), order


def evaluate(problem, asked=ASKED, **options):
    return atent_ext.evaluate(*problem[:3], threats=asked, **{"protocol": PGD, "chunk": 8, "seed": 3} | options)


def without_seconds(one):
    plain = one.model_dump(mode="json")
    return plain | {"results": [result | {"seconds": 0} for result in plain["results"]]}


def two(first="1100", second="1010", **fields):
    parts = []
    for norm, eps, flags in (("Linf", 8 / 255, first), ("L2", 0.5, second)):
        right = flags.count("1") / len(flags)
        threat = {"norm": norm, "eps": eps}
        parts.append(report(result("AutoAttack", right, len(flags), flags=flags), threat=threat, **fields))
    return UnionReport.of(parts)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "union.json"
    two().save(path)
    return path


def test_parts_are_those_of_single_evaluations_and_the_union_is_their_and(problem):
    seen = []
    both = evaluate(problem, progress=seen.append)
    singles = [
        atent_ext.evaluate(*problem[:3], norm=norm, eps=eps, protocol=PGD, chunk=8, seed=3)
        for norm, eps in (("Linf", 0.02), ("L2", 0.06))
    ]
    assert [without_seconds(part) for part in both.reports] == [without_seconds(single) for single in singles]
    linf, l2 = (single.worst.robust() for single in singles)
    assert torch.equal(both.flags(), linf & l2)
    order = problem[3]
    assert torch.equal(linf, order >= 8)
    assert torch.equal(l2, (order < 8) | (order >= 16))
    assert both.worst_case == 1 / 3
    assert both.union.settings == {"over": "Linf eps 0.02, L2 eps 0.06"}
    assert both.passes == sum(single.passes for single in singles)
    assert both.report(Threat(norm="L2", eps=0.06)) == both.reports[1]
    assert [(one.done, one.chunks) for one in seen][-1] == (6, 6)
    assert UnionReport.parse(json.loads(both.to_json()), "it") == both
    for row in ("Linf eps 0.02", "L2 eps 0.06", "all of them"):
        assert row in str(both)


def test_autoattack_has_the_form_of_each_norm():
    standard = load_protocol("autoattack")
    assert threats.protocol_of(standard, Threat(norm="L2", eps=1)) is standard
    assert threats.protocol_of(standard, Threat(norm="L1", eps=1)) == load_protocol("autoattack-l1")


def test_it_goes_on_where_it_stopped_and_shows_what_is_finished(problem, tmp_path, monkeypatch):
    path, scored, run = tmp_path / "out.json", [], engine.run_protocol

    def interrupted(model, split, protocol, setting, *more):
        if setting.threat.norm == "L2" and setting.seed == 4:
            raise KeyboardInterrupt
        return run(model, split, protocol, setting, *more)

    def counted(model, split, protocol, setting, *more):
        scored.append((setting.threat.norm, setting.seed))
        return run(model, split, protocol, setting, *more)

    monkeypatch.setattr(engine, "run_protocol", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(problem, out=path)
    assert not path.exists()
    monkeypatch.setattr(engine, "run_protocol", counted)
    whole = evaluate(problem, out=path, overwrite=True)
    assert scored == [("L2", 4), ("L2", 5)]
    assert without_seconds(whole.reports[1]) == without_seconds(evaluate(problem).reports[1])
    scored.clear()
    assert evaluate(problem, out=path) == whole == UnionReport.load(path)
    assert scored == []
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["out.json"]
    for other, field in (({"seed": 4}, "seed"), ({"asked": ["Linf:0.02", "L2:0.2"]}, "threats")):
        with pytest.raises(BadInput) as error:
            evaluate(problem, out=path, **other)
        assert (error.value.code, error.value.field) == ("other-content", field)
    with pytest.raises(BadInput) as error:
        atent_ext.evaluate(*problem[:3], norm="Linf", eps=0.02, protocol=PGD, out=path)
    assert (error.value.code, error.value.field) == ("exists", "out")
    atent_ext.evaluate(*problem[:3], norm="Linf", eps=0.02, protocol=PGD, out=path, overwrite=True)
    with pytest.raises(BadInput) as error:
        evaluate(problem, out=path)
    assert (error.value.code, error.value.field) == ("exists", "out")


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        ({"asked": ["Linf:0.1"]}, "bad-value", "threats"),
        ({"asked": []}, "bad-value", "threats"),
        ({"asked": ["Linf:8/255", ("Linf", 8 / 255)]}, "conflict", "threats"),
        ({"asked": ["Linf:much", "L2:1"]}, "bad-value", "threat"),
        ({"asked": ["Linf:1/0", "L2:1"]}, "bad-value", "threat"),
        ({"asked": ["L7:1", "L2:1"]}, "unknown-name", "norm"),
        ({"asked": ["Linf:8", "L2:1"]}, "bad-value", "eps"),
        ({"asked": ["Linf:0.1", "L1:2"]}, "unsupported", "norm"),
        ({"norm": "Linf"}, "conflict", "norm"),
        ({"until_width": 5}, "conflict", "until_width"),
        ({"asked": None}, "missing", "norm"),
    ],
)
def test_what_contradicts_is_refused_before_anything_is_scored(problem, options, code, field):
    with pytest.raises(BadInput) as error:
        evaluate(problem, **options)
    assert (error.value.code, error.value.field) == (code, field)


def test_a_union_that_is_not_of_its_parts_is_refused():
    raw = two().model_dump(mode="json")
    raised = raw["union"] | {"flags": "1100", "correct": 2, "accuracy": 0.5}
    other = [raw["reports"][0], raw["reports"][1] | {"seed": 1}]
    same = [raw["reports"][0], raw["reports"][0]]
    for wrong in ({"union": raised}, {"reports": other}, {"reports": same}, {"reports": raw["reports"][:1]}):
        with pytest.raises(BadInput) as error:
            UnionReport.parse(raw | wrong, "it")
        assert error.value.code == "unreadable"


def test_readers_of_one_threat_model_refuse_it_by_name(written, tmp_path):
    report(result("AutoAttack", 0.5, 4)).save(tmp_path / "one.json")
    with pytest.raises(BadInput, match="several threat models") as error:
        Report.load(written)
    assert (error.value.code, error.value.field) == ("conflict", "threats")
    with pytest.raises(BadInput, match="several threat models"):
        atent_ext.compare(written, tmp_path / "one.json")
    with pytest.raises(ValueError, match="several threat models"):
        Card.model_validate({"report": json.loads(written.read_text())})
    refused(atent("compare", written, tmp_path / "one.json"), str(written), "several threat models")
    refused(atent("view", written, tmp_path / "one.json"), "several threat models")
    refused(atent("view", written, "--subject", "quickstart-digits-linf-sgd"), "several threat models")


def test_the_page_names_the_threat_model_of_each_figure(written):
    assert atent("view", written).returncode == 0
    page = written.with_suffix(".html").read_text(encoding="utf-8").partition("<main")[2]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "Under all 2 threat models" in words
    for row in ("ℓ∞ eps 8/255 50.0", "ℓ2 eps 0.5 50.0", "union 25.0", "digits, ℓ∞ eps 8/255", "digits, ℓ2 eps 0.5"):
        assert row in words
    assert view.read(written).report is None


def test_the_command_scores_under_each(tmp_path):
    out = tmp_path / "out.json"
    command = ["eval", "quickstart-digits-linf-sgd", "--protocol", "clean", "--n", 5]
    both = ["--threat", "Linf:8/255", "--threat", "L1:2"]
    done = atent(*command, *both, "--out", out)
    assert done.returncode == 0, done.stderr
    written = UnionReport.load(out)
    assert written.threats == (Threat(norm="Linf", eps=8 / 255), Threat(norm="L1", eps=2))
    for text in ("Linf eps 0.03137", "L1 eps 2", "union", "written: "):
        assert text in done.stdout
    assert "nothing was scored" in atent(*command, *both, "--out", out).stdout
    plan = atent(*command, *both, "--plan")
    assert "L1 eps 2:" in plan.stdout, plan.stderr
    one = [*command, "--threat", "L2:1/2", "--out", tmp_path / "one.json"]
    assert atent(*one).returncode == 0
    assert Report.load(tmp_path / "one.json").threat == Threat(norm="L2", eps=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threat", "Linf:0.1", "--norm", "L2"], "--norm is L2"),
        (["--threat", "Linf"], "threat is 'Linf'"),
        (["--threat", "Linf:0.1", "--threat", "L2:1", "--until-width", "2"], "--until-width is 2"),
        (["--threat", "Linf:0.1", "--threat", "L2:1", "--save-adversaries", "x.npz"], "--save-adversaries is x.npz"),
        (["--threat", "Linf:0.1", "--threat", "L1:1", "--protocol", "fast"], "'L1'"),
    ],
)
def test_the_command_refuses_before_it_looks_at_files(options, words):
    refused(atent("eval", "nowhere.pth", *options), words)
