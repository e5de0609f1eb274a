import re
import sys

import pytest
import torch
from original_autoattack import choose
from torch import nn

from atent_ext.attacks import autoattack
from atent_ext.attacks.spec import Note
from atent_ext.core.errors import BadInput

pyautoattack = pytest.importorskip("pyautoattack")
RADII = {"Linf": 0.08, "L2": 0.3}


@pytest.fixture(autouse=True)
def no_original(monkeypatch):
    """These tests compare with pyautoattack, also where the original package is installed."""
    choose(monkeypatch, "pyautoattack")


@pytest.fixture(params=["pyautoattack", "autoattack"])
def package(request, monkeypatch):
    """Each of the two packages in turn, the original as a stand-in."""
    choose(monkeypatch, request.param)
    return request.param


def changed(text):
    """The note of an AutoAttack that did not run as published."""
    return Note(kind="changed", text=f"not standard AutoAttack: {text}")


def linear(shape, classes, images=20, scale=1.0):
    """A linear classifier; images well inside the box, so that the box never helps the model; every tenth is wrong."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(torch.Size(shape).numel(), classes)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(-layer.weight.sum(1) / 2)
    model = nn.Sequential(nn.Flatten(), layer)
    x = torch.rand(images, *shape, generator=generator) * 0.6 + 0.2
    y = model(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return model, x, y


def truly_robust(model, x, y, norm, eps):
    """For a linear model: the gap to each other class exceeds eps times the dual norm of the difference of weights."""
    weight, logits = model[1].weight.detach(), model(x).detach()
    gap = logits.gather(1, y[:, None]) - logits
    reach = eps * (weight[y][:, None] - weight[None]).norm(p=1 if norm == "Linf" else 2, dim=2)
    return ((gap > reach) | (torch.arange(logits.shape[1]) == y[:, None])).all(dim=1)


def size(result, x, norm):
    return (result.adversaries - x).flatten(1).norm(p=float("inf") if norm == "Linf" else 2, dim=1)


def directly(attack, x, y, batch_size):
    """The images that pyautoattack finds when called as it is, but for its switching off of coverage measurement."""
    trace = sys.gettrace()
    adversaries, _ = attack.run_standard_evaluation(x, y, batch_size=batch_size)
    sys.settrace(trace)
    return adversaries


def tiny_cnn():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * 36, 5))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_flags_are_those_of_pyautoattack(norm, package):
    model = tiny_cnn().eval()
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    eps = {"Linf": 0.03, "L2": 0.12}[norm]
    direct = pyautoattack.AutoAttack(model, norm=norm, eps=eps, seed=1)
    direct.attacks_to_run = ["apgd-ce", "apgd-t"]
    direct.apgd_targeted.n_target_classes = direct.fab.n_target_classes = 4
    expected = directly(direct, x, y, 5)
    result = autoattack.run(model, x, y, norm=norm, eps=eps, seed=1, batch_size=5, attacks=direct.attacks_to_run)
    assert torch.equal(result.adversaries, expected)
    assert result.package.split()[0] == package
    assert torch.equal(result.robust, model(expected).argmax(1) == y)
    assert 0 < result.robust.sum() < len(x)
    assert result.notes == (
        changed("only apgd-ce, apgd-t"),
        changed("target classes lowered from 9 to 4, the model has 5 classes"),
    )


def test_the_standard_version_is_that_of_pyautoattack():
    model, x, y = linear((1, 6, 6), 12, scale=0.2)
    expected = directly(pyautoattack.AutoAttack(model, eps=0.02, seed=0), x, y, 250)
    result = autoattack.run(model, x, y, norm="Linf", eps=0.02)
    assert torch.equal(result.adversaries, expected)
    assert torch.equal(result.robust, model(expected).argmax(1) == y)
    assert 0 < result.robust.sum() < (model(x).argmax(1) == y).sum()
    assert result.attacks == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert (result.target_classes, result.package, result.notes) == (9, "pyautoattack 0.2.0", ())
    counts = list(result.robust_after.values())
    assert list(result.robust_after) == ["clean", *result.attacks]
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (18, int(result.robust.sum()))


def test_where_nothing_is_left_no_other_attack_runs_and_0_follows():
    model, x, y = linear((1, 4, 4), 12)
    heard = []
    result = autoattack.run(model, x, y, norm="Linf", eps=0.5, on_attack=lambda *batch: heard.append(batch))
    assert heard == [("apgd-ce", 18)]
    assert result.robust_after == {"clean": 18, "apgd-ce": 0, "apgd-t": 0, "fab-t": 0, "square": 0}


def test_the_counts_after_each_attack_are_those_of_autoattacks_log(caplog):
    model, x, y = linear((1, 4, 4), 12)
    eps, attacks = 0.06, ["square", "apgd-dlr", "apgd-ce"]
    attacker = pyautoattack.AutoAttack(model, eps=eps, seed=0, version="plus")
    attacker.attacks_to_run, attacker.square.n_queries = attacks, 5000
    with caplog.at_level("DEBUG", "auto-attack"):
        directly(attacker, x, y, 7)
    shares = re.findall(r"(?:initial|robust) accuracy(?: after \S+)?: ([\d.]+)%", caplog.text)[:4]
    result = autoattack.run(model, x, y, norm="Linf", eps=eps, version="plus", attacks=attacks, batch_size=7)
    assert list(result.robust_after) == ["clean", *attacks]
    assert list(result.robust_after.values()) == [round(float(share) / 100 * len(x)) for share in shares]
    assert len(set(result.robust_after.values())) >= 3


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_few_classes_reach_the_closed_form(classes):
    model, x, y = linear((1, 5, 5), classes)
    result = autoattack.run(model, x, y, norm="Linf", eps=0.04)
    expected = truly_robust(model, x, y, "Linf", 0.04)
    assert torch.equal(result.robust, expected)
    assert 0 < expected.sum() < (model(x).argmax(1) == y).sum()
    assert result.attacks == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert result.target_classes == classes - 1
    assert {note.kind for note in result.notes} == {"changed"}
    assert f"the model has {classes} classes" in result.notes[0].text
    assert ("targeted cross-entropy" in " ".join(note.text for note in result.notes)) == (classes < 4)


def test_a_confident_two_class_model_hides_from_the_cross_entropy_only():
    model, x, y = linear((1, 4, 4), 2, scale=1000)
    expected = truly_robust(model, x, y, "Linf", 0.08)
    plain = autoattack.run(model, x, y, norm="Linf", eps=0.08, attacks=["apgd-ce"])
    targeted = autoattack.run(model, x, y, norm="Linf", eps=0.08, attacks=["apgd-t"])
    assert torch.equal(targeted.robust, expected)
    assert plain.robust.sum() > expected.sum()


def test_attacks_that_cannot_run_are_left_out():
    model, x, y = linear((1, 4, 4), 2)
    plus = autoattack.run(model, x, y, norm="Linf", eps=0.5, version="plus")
    assert plus.attacks == ("apgd-ce", "fab", "square", "apgd-t", "fab-t")
    assert plus.notes[0] == changed("version 'plus'")
    rand = autoattack.run(model, x, y, norm="Linf", eps=0.08, version="rand")
    assert rand.attacks == ("apgd-ce",)
    assert rand.target_classes == 0
    assert "version 'rand'" in rand.notes[0].text
    assert "apgd-dlr left out" in rand.notes[1].text
    assert {note.kind for note in rand.notes} == {"changed"}
    for name in ("L2", "L1"):
        assert "square left out" in autoattack.run(model, x, y, norm=name, eps=0.3).notes[0].text
    with pytest.raises(BadInput, match="no attack can run: only apgd-dlr; apgd-dlr left out, the DLR loss needs 3"):
        autoattack.run(model, x, y, norm="Linf", eps=0.08, attacks=["apgd-dlr"])


@pytest.mark.parametrize(
    ("shape", "norm", "attacks"),
    [
        ((16,), "Linf", None),
        ((16,), "L2", None),
        ((4, 4), "Linf", ["square", "apgd-ce", "fab-t"]),
        ((2, 2, 2, 2), "Linf", ["apgd-t", "fab-t"]),
        ((2, 3, 2, 2), "L2", ["apgd-t", "fab-t"]),
    ],
)
def test_any_input_rank(shape, norm, attacks):
    model, x, y = linear(shape, 3)
    result = autoattack.run(model, x, y, norm=norm, eps=RADII[norm], attacks=attacks)
    assert result.adversaries.shape == x.shape
    assert torch.equal(result.robust, truly_robust(model, x, y, norm, RADII[norm]))
    assert torch.equal(result.robust, model(result.adversaries).argmax(1) == y)
    assert size(result, x, norm).max() <= RADII[norm] * 1.0001
    assert result.attacks == tuple(attacks or ["apgd-ce", "apgd-t", "fab-t", "square"])


def test_features_are_searched_one_by_one_by_square():
    model, x, y = linear((24,), 2)
    square = autoattack.run(model, x, y, norm="Linf", eps=0.05, attacks=["square"])
    expected = truly_robust(model, x, y, "Linf", 0.05)
    assert expected.sum() <= square.robust.sum() <= expected.sum() + 2
    assert square.robust.sum() < 18


def test_model_random_state_and_trace_come_back_as_found(package):
    model = tiny_cnn().eval()
    x = torch.rand(4, 1, 6, 6)
    y = model(x).argmax(1)
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state, trace = torch.random.get_rng_state(), sys.gettrace()

    def stop(name, images):
        if name == "square":
            raise RuntimeError("stopped before square")

    with pytest.raises(RuntimeError, match="stopped before square"):
        autoattack.run(model, x, y, norm="Linf", eps=1e-4, attacks=["fab", "square"], on_attack=stop)
    autoattack.run(model, x, y, norm="Linf", eps=1e-4, attacks=["apgd-ce", "fab"])
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.gettrace() is trace


def test_a_seed_gives_the_same_result_and_another_seed_another():
    model, x, y = linear((1, 4, 4), 5)
    arguments = {"norm": "Linf", "eps": 0.3, "attacks": ["square"]}
    first, again, other = (autoattack.run(model, x, y, seed=seed, **arguments) for seed in (1, 1, 2))
    assert torch.equal(first.adversaries, again.adversaries)
    assert not torch.equal(first.adversaries, other.adversaries)


@pytest.mark.parametrize("attack", autoattack.ATTACKS)
def test_on_attack_hears_of_every_batch(attack):
    model, x, y = linear((1, 4, 4), 3, images=12)
    heard = []
    arguments = {"norm": "Linf", "eps": 0.5, "batch_size": 7, "attacks": [attack]}
    result = autoattack.run(model, x, y, on_attack=lambda name, images: heard.append((name, images)), **arguments)
    assert heard == [(attack, 7), (attack, 3)]
    assert not result.robust.any()
    assert result.notes[0] == changed(f"only {attack}")


def test_no_radius_and_no_images():
    model, x, y = linear((1, 4, 4), 5)
    clean = autoattack.run(model, x, y, norm="Linf", eps=0)
    assert torch.equal(clean.robust, model(x).argmax(1) == y)
    assert clean.robust.sum() == 18
    assert torch.equal(clean.adversaries, x)
    assert clean.robust_after == {"clean": 18}
    assert clean.attacks == ()
    assert (clean.notes[0].kind, clean.notes[0].text.split(":")[0]) == ("no-attack", "eps is 0")
    empty = autoattack.run(model, x[:0], y[:0], norm="L2", eps=0.5)
    assert empty.adversaries.shape == (0, 1, 4, 4)
    assert (empty.robust.shape, empty.robust.dtype) == ((0,), torch.bool)
    assert (empty.notes[0].kind, empty.notes[0].text.split(":")[0]) == ("no-attack", "no images")


def test_float64_models_and_channels_last_images():
    model, x, y = linear((2, 3, 3), 4, images=10)
    arguments = {"norm": "Linf", "eps": 0.02, "attacks": ["apgd-ce", "fab-t"]}
    expected = autoattack.run(model, x, y, **arguments)
    last = autoattack.run(model, x.to(memory_format=torch.channels_last), y.int(), **arguments)
    assert torch.equal(last.robust, expected.robust)
    double = autoattack.run(model.double(), x.double() + 1e-12, y, **arguments)
    assert double.adversaries.dtype == torch.float64
    assert torch.equal(double.robust, expected.robust)
    assert 0 < double.robust.sum() < 9
    assert torch.equal(double.adversaries[double.robust], x.double()[double.robust] + 1e-12)


def test_what_autoattack_warns_of_becomes_a_note(caplog, capsys, package):
    model, x, y = linear((1, 4, 4), 12)
    result = autoattack.run(
        nn.Sequential(model, nn.Softmax(1)), x, y, norm="Linf", eps=0.05, attacks=["apgd-ce", "apgd-dlr"]
    )
    said = [note.text for note in result.notes if note.kind == "warning"]
    assert any("AutoAttack warns: it seems that the output is a probability" in text for text in said)
    assert caplog.text == ""

    def masked(images):
        return model((images * 4).round() / 4) + 0 * images.sum()

    notes = autoattack.run(masked, x, y, norm="Linf", eps=0.05, attacks=["apgd-dlr", "apgd-t"]).notes
    assert sum("zero gradient" in note.text for note in notes if note.kind == "warning") == 1
    assert capsys.readouterr().out == ""


def test_the_original_package_is_used_and_a_disagreement_is_noted(monkeypatch):
    def disagreeing(self, x, y, bs, return_labels, state_path):
        return x, torch.cat([y[:-3], (y[-3:] + 1) % 12])

    choose(monkeypatch, "autoattack")
    monkeypatch.setattr(sys.modules["autoattack"].AutoAttack, "run_standard_evaluation", disagreeing)
    model, x, _ = linear((1, 4, 4), 12)
    result = autoattack.run(model, x, model(x).argmax(1), norm="Linf", eps=0.1)
    assert result.package == "autoattack 0.1"
    assert result.robust.all()
    assert result.notes[0].kind == "boundary"
    assert result.notes[0].text.startswith("3 images are answered otherwise in a second pass")


@pytest.mark.parametrize(
    ("change", "code", "field", "message"),
    [
        ({"norm": "L7"}, "unknown-name", "norm", "unknown norm 'L7'"),
        ({"eps": -0.1}, "bad-value", "eps", "eps is -0.1"),
        ({"eps": float("nan")}, "bad-value", "eps", "eps is nan"),
        ({"eps": torch.ones(20)}, "bad-type", "eps", "one number for all images"),
        ({"batch_size": 0}, "bad-value", "batch_size", "batch_size is 0"),
        ({"version": "standrad"}, "unknown-name", "version", "did you mean 'standard'"),
        ({"version": "custom"}, "missing", "attacks", "attacks is None; name at least one"),
        ({"attacks": []}, "missing", "attacks", r"attacks is \[\]"),
        ({"attacks": ["apgd"]}, "unknown-name", "attacks", "unknown attack of AutoAttack 'apgd'; did you mean"),
        (
            {"norm": "L2", "attacks": ["square"]},
            "unsupported",
            "attacks",
            "no attack can run: only square; square left out",
        ),
        ({"x": torch.full((20, 1, 4, 4), 200.0)}, "bad-value", "images", "0-255"),
        ({"y": torch.full((20,), 5)}, "bad-value", "labels", "at most 4"),
        ({"y": torch.zeros(3, dtype=torch.long)}, "bad-shape", "labels", "labels have shape"),
        ({"model": lambda x: x.flatten(1)[:, :1]}, "bad-shape", "logits", "1 logit"),
        ({"model": lambda x: x.flatten(1)[:, :5] / 0}, "broken-model", "logits", "NaN or infinite logits for 20 of 20"),
        ({"model": lambda x: x.sum()}, "bad-shape", "logits", r"returns \(\) for 20 images"),
        ({"model": lambda x: (x,)}, "bad-type", "logits", "returns a tuple"),
    ],
)
def test_bad_input(change, code, field, message):
    model, x, y = linear((1, 4, 4), 5)
    arguments = {"model": model, "x": x, "y": y, "norm": "Linf", "eps": 0.1} | change
    with pytest.raises(BadInput, match=message) as error:
        autoattack.run(**arguments)
    assert (error.value.code, error.value.field) == (code, field)


def test_custom_takes_the_settings_of_the_package():
    model, x, y = linear((1, 4, 4), 12, scale=0.5)
    direct = pyautoattack.AutoAttack(model, eps=0.02, seed=4, version="custom", attacks=["apgd-ce", "apgd-dlr"])
    expected = directly(direct, x, y, 12)
    arguments = {"version": "custom", "attacks": ("apgd-ce", "apgd-dlr"), "seed": 4, "batch_size": 12}
    result = autoattack.run(model, x, y, norm="Linf", eps=0.02, **arguments)
    assert torch.equal(result.adversaries, expected)
    assert result.notes == (changed("version 'custom'"),)
