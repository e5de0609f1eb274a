import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from problems import LinearTwoClass, OnlyBuffers, SmallNet, attack_spec
from torch import nn

from atent_ext.attacks import accuracy, autoattack
from atent_ext.attacks.accuracy import robust_flags
from atent_ext.attacks.langevin import atent, fgsm, pgd
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import Note, Outcome, Setting
from atent_ext.core import registry, statistics
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import run
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import result_of

SHAPE = (1, 6, 6)
EPS = {"Linf": 0.02, "L2": 0.1}


def setting(norm="Linf", eps=None, **options):
    return Setting(Threat(norm=norm, eps=EPS[norm] if eps is None else eps), **options)


def attack(norm="Linf", eps=None, steps=100, start=None):
    eps = EPS[norm] if eps is None else eps
    # In ℓ2 the way from a random start to the optimum is long: with 2.5 eps / steps 1 % of eps would be missing.
    return pgd(norm_called(norm), eps, steps, 10 * eps / steps, start=start)


def protocol(*attacks):
    return Protocol(name="mine", description="", attacks=[{"attack": a} if isinstance(a, str) else a for a in attacks])


def linear(dtype=torch.float32):
    """A linear model that is undecided at the middle of the box."""
    model = LinearTwoClass(SHAPE)
    with torch.no_grad():
        model.b.copy_(-0.5 * model.w.sum())
    return model.to(dtype)


def linear_split(count=200, dtype=torch.float32):
    """Images near the middle of the box, 10 % of the labels wrong."""
    generator = torch.Generator().manual_seed(1)
    images = 0.5 + 0.6 * (torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64) - 0.5)
    labels = linear(torch.float64)(images).argmax(1)
    labels[::10] = 1 - labels[::10]
    return Split(images.to(dtype), labels)


def margins(split):
    """By how much each label is right, and the dual norms of the weights by norm."""
    model = linear(torch.float64)
    score = model(split.images.double())[:, 1].detach()
    return (2 * split.labels - 1) * score, {"Linf": model.w.detach().abs().sum(), "L2": model.w.detach().norm()}


def closed_form(split, norm, eps=None):
    """An attack in the eps ball lowers the margin by eps times the dual norm, and not by more."""
    margin, dual = margins(split)
    return margin > (EPS[norm] if eps is None else eps) * dual[norm]


class Flat(nn.Module):
    """Class 1 where the first feature exceeds `threshold`, else class 0, and a zero gradient everywhere."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        found = (x.flatten(1)[:, 0] > self.threshold).to(x) + 0 * x.flatten(1).sum(1)
        return torch.stack([torch.full_like(found, 0.5), found], 1)


# ---- interval


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # 81/263: Newcombe 1998 (Stat. Med. 17, Table I), like 15/148, 0/20 and 1/29.
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_has_the_published_values(right, count, low, high):
    assert statistics.interval(right, count) == pytest.approx((low, high), abs=5e-5)


def test_flags_are_paired_by_mcnemars_exact_test():
    # 1 against 7 of 8 that differ: 2 (C(8,0) + C(8,1)) / 2^8 = 18 / 256.
    assert statistics.paired("1" + "0" * 7 + "11", "0" + "1" * 7 + "11") == (1, 7, pytest.approx(18 / 256))
    assert statistics.paired("0101", "0101") == (0, 0, 1.0)
    with pytest.raises(ValueError, match="longer"):
        statistics.paired("01", "011")


# ---- flags in closed form


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("factor", [0.25, 1, 1.5])
def test_robust_flags_are_the_closed_form(dtype, norm, factor):
    split, eps = linear_split(dtype=dtype), factor * EPS[norm]
    margin, dual = margins(split)
    expected = closed_form(split, norm, eps)
    assert 10 < int(expected.sum()) < 170
    assert float((margin - eps * dual[norm]).abs().min()) > 1e-4  # no example lies where rounding decides
    flags = robust_flags(linear(dtype), split, attack(norm, eps), setting(norm, eps))
    assert flags.dtype is torch.bool
    assert torch.equal(flags, expected)


def test_clean_flags_and_eps_zero_are_the_sign_of_the_margin():
    split = linear_split()
    expected = margins(split)[0] > 0
    assert int((~expected).sum()) == 20
    assert torch.equal(accuracy.clean_flags(linear(), split, batch_size=7), expected)
    assert torch.equal(robust_flags(linear(), split, attack(eps=0.0), setting(eps=0)), expected)


def test_fgsm_is_exact_on_a_linear_model_for_every_batch_size():
    split = linear_split(60)
    for batch_size in (1, 7, 60, 250):
        flags = robust_flags(linear(), split, fgsm(norm_called("Linf"), 0.02), setting(batch_size=batch_size))
        assert torch.equal(flags, closed_form(split, "Linf"))


def test_predict_is_the_logits_in_eval_mode():
    model = SmallNet()  # its dropout would show in train mode
    images = torch.linspace(0, 1, 7 * 36).reshape(7, *SHAPE)
    logits = accuracy.predict(model, images, batch_size=3)
    assert logits.shape == (7, 4)
    assert torch.allclose(logits, model.eval()(images), atol=1e-6)
    assert not logits.requires_grad


def test_images_go_to_the_buffers_of_a_network_without_parameters():
    model = OnlyBuffers("meta")
    assert accuracy.predict(model, torch.rand(3, *SHAPE)).argmax(1).tolist() == [1, 1, 1]
    assert autoattack.run(model, torch.rand(3, *SHAPE), torch.ones(3).long(), norm="Linf", eps=0.0).robust.all()
    assert {device.type for device in model.seen} == {"meta"}


# ---- restarts


def test_robust_only_if_every_restart_fails():
    split = Split(torch.full((50, *SHAPE), 0.5), torch.zeros(50, dtype=torch.long))
    model, eps = Flat(0.58), 0.1
    starts = torch.Generator().manual_seed(3)
    found = []
    for _ in range(8):  # the gradient is zero, so that each restart stays where it started
        draw = torch.rand(split.images.shape, generator=starts)
        found.append(0.5 + eps * (2 * draw[:, 0, 0, 0] - 1) > 0.58)
    for restarts in (1, 3, 8):
        flags = robust_flags(model, split, attack(eps=eps, steps=2), setting(eps=eps, seed=3), restarts)
        assert torch.equal(flags, ~torch.stack(found[:restarts]).any(0))
    assert 0 < sum(map(int, found[0])) < int(torch.stack(found).any(0).sum()) < 50
    spec = attack_spec("pgd", steps=2, restarts=8)
    (result,) = run.run_protocol(model, split, protocol(spec), setting(eps=eps, seed=3))
    assert torch.equal(result.flags, ~torch.stack(found).any(0))


def test_more_restarts_never_make_an_example_robust():
    model, split = rough_net(), small_split()
    few, many = (robust_flags(model, split, attack(eps=0.05, steps=1), setting(eps=0.05), n) for n in (1, 5))
    assert not bool((many & ~few).any())
    assert not torch.equal(few, many)


def test_the_seed_decides():
    split = Split(torch.full((50, *SHAPE), 0.5), torch.zeros(50, dtype=torch.long))
    once, again, other = (
        robust_flags(Flat(0.55), split, attack(eps=0.1, steps=1), setting(eps=0.1, seed=seed)) for seed in (7, 7, 8)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def rough_net():
    """A network whose gradient leads astray, so that the start matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallNet(dropout=0.0)
    with torch.no_grad():
        model.conv.weight.mul_(20)
    return model


def small_split(count=100):
    """Random images, labelled by the network itself."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))
    return Split(images, accuracy.predict(rough_net(), images).argmax(1))


# ---- an attack that cheats does not count


@pytest.mark.parametrize(
    ("cheat", "counts"),
    [
        (lambda x: x + 0.099, True),
        (lambda x: x + 0.1, True),
        (lambda x: x + 0.1 + 5e-6, True),
        (lambda x: x + 0.102, False),
        (lambda x: x + 0.4, False),
    ],
)
def test_only_what_stays_in_the_ball_counts(monkeypatch, cheat, counts):
    split = Split(torch.full((9, *SHAPE), 0.5), torch.zeros(9, dtype=torch.long))
    monkeypatch.setattr(accuracy, "adversaries", lambda kernel, model, x, *_, **__: cheat(x))
    flags = robust_flags(Flat(0.59), split, attack(eps=0.1), setting(eps=0.1))
    assert torch.equal(flags, torch.full((9,), not counts))
    wrong = Split(split.images, 1 - split.labels)  # what is wrong without an attack stays wrong
    assert not bool(robust_flags(Flat(0.59), wrong, attack(eps=0.1), setting(eps=0.1)).any())


def test_an_attack_that_runs_into_nan_is_refused():
    """The gradient of log is infinite at 0 and NaN behind `where`: what cannot be attacked is not robust."""

    class Broken(torch.nn.Module):
        def forward(self, x):
            flat = x.flatten(1)
            logs = torch.where(flat > 0, flat.log(), torch.full_like(flat, -4.0)).sum(1)
            return torch.stack([logs, -logs], 1)

    images = torch.full((6, *SHAPE), 0.5)
    images[:4, 0, 0, 0] = 0
    split = Split(images, torch.zeros(6, dtype=torch.long))
    for name in ("Linf", "L2"):
        kernel = pgd(norm_called(name), 0.05, 3, start="clean")
        with pytest.raises(BadInput, match="not finite for 4 of 6 images"):
            robust_flags(Broken(), split, kernel, setting(name))


def test_logits_that_are_not_finite_are_refused():
    model = linear()
    with torch.no_grad():
        model.w[0] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinite for 20 of 20"):
        run.run_protocol(model, linear_split(20), protocol("clean"), setting())


def test_a_field_that_does_not_apply_is_refused():
    with pytest.raises(BadInput, match="attack 'fgsm': unknown field 'restarts'") as error:
        attack_spec("fgsm", restarts=10)
    assert (error.value.code, error.value.field) == ("unknown-name", "restarts")
    with pytest.raises(ValueError, match="at least 1 item"):
        Protocol(name="none", description="", attacks=())


def test_the_ball_is_the_norms_own_and_every_example_has_its_own(monkeypatch):
    x = torch.full((2, *SHAPE), 0.5)
    moved = x.clone()
    moved[0, 0, 0, 0] += 0.3  # ℓ2 0.3
    moved[1] += 0.1  # ℓ2 0.6
    assert allowed(norm_called("L2"), 0.3, x, moved).tolist() == [True, False]
    assert allowed(norm_called("Linf"), 0.1, x, moved).tolist() == [False, True]


def test_only_what_stays_in_the_box_counts(monkeypatch):
    x = torch.tensor([[0.0], [0.02], [0.98], [1.0]]).expand(4, 5)
    moved = x + torch.tensor([[-0.05], [-0.02], [0.02], [0.05]])
    assert allowed(norm_called("Linf"), 0.1, x, moved).tolist() == [False, True, True, False]


# ---- outcomes


def outcome(name, text, seconds=1.0):
    return Outcome("attack", name, {}, torch.tensor([letter == "1" for letter in text]), seconds)


def test_the_worst_case_is_right_under_all():
    worst = run.worst_case([outcome("a", "11100", 1), outcome("b", "11010", 2), outcome("c", "01111", 4)])
    assert worst.flags.tolist() == [False, True, False, False, False]
    assert (worst.kind, worst.attack, worst.settings, worst.seconds) == (
        *("worst_case", "worst case"),
        {"over": "a, b, c"},
        7,
    )
    assert worst.accuracy == 0.2


def test_a_result_is_plain_data():
    flags = torch.arange(263) < 81
    notes = (Note(kind="other", text="slow"),)
    result = result_of(Outcome("attack", "PGD-7", {"steps": 7, "restarts": 2}, flags, 1.26, notes))
    plain = json.loads(result.model_dump_json())
    assert plain.pop("interval95_wilson") == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert plain == {
        "kind": "attack",
        "attack": "PGD-7",
        "settings": {"steps": 7, "restarts": 2},
        "correct": 81,
        "n": 263,
        "accuracy": 81 / 263,
        "robust_after": {},
        "seconds": 1.3,
        "notes": [{"kind": "other", "text": "slow"}],
        "flags": "1" * 81 + "0" * 182,
    }


def test_evaluate_runs_the_protocol_in_order():
    split, reported = linear_split(), []
    pgd_spec = attack_spec("pgd", steps=50, restarts=2)
    results = run.run_protocol(linear(), split, protocol("clean", "fgsm", pgd_spec), setting(), reported.append)
    assert reported == results
    assert [result.attack for result in results] == ["clean", "FGSM", "PGD-50 x 2", "worst case"]
    assert [result.kind for result in results] == ["clean", "attack", "attack", "worst_case"]
    clean, robust = margins(split)[0] > 0, closed_form(split, "Linf")
    for result, expected in zip(results, (clean, robust, robust, robust), strict=True):
        assert torch.equal(result.flags, expected)
        assert result_of(result).flags == "".join(str(int(flag)) for flag in expected)
        assert result_of(result).correct == int(expected.sum())
    assert results[2].settings == {"steps": 50, "step_size": pytest.approx(2.5 * 0.02 / 50), "restarts": 2}
    assert results[3].settings == {"over": "clean, FGSM, PGD-50 x 2"}
    assert all(result.seconds > 0 for result in results)


def test_one_attack_has_no_worst_case():
    results = run.run_protocol(linear(), linear_split(20), protocol("clean"), setting())
    assert [result.attack for result in results] == ["clean"]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_atent_as_an_attack_of_a_protocol_runs_the_chain_of_the_kernel(norm):
    model, split = linear(), linear_split(20)
    spec = attack_spec("atent", steps=3, restarts=2, step_size=0.02, noise=0.1, project="every")
    (result,) = run.run_protocol(model, split, protocol(spec), setting(norm, seed=4))
    kernel = atent(norm_called(norm), setting(norm).threat.eps, 3, 0.02, noise=0.1, project="every")
    assert result.attack == "ATENT-3 x 2"
    assert result.settings == {"steps": 3, "step_size": 0.02, "restarts": 2, "noise": 0.1, "project": "every"}
    assert torch.equal(result.flags, robust_flags(model, split, kernel, setting(norm, seed=4), 2))


def test_autoattack_beside_atent_is_reported_as_a_worst_case_over_named_attacks(monkeypatch):
    found = {"robust": torch.arange(20) % 2 == 0, "adversaries": linear_split(20).images, "notes": ()}
    monkeypatch.setattr(
        "atent_ext.attacks.autoattack.run",
        lambda *a, **k: SimpleNamespace(**found, package="pyautoattack 0.2.0", attacks=("apgd-ce",), robust_after={}),
    )
    outcomes = run.run_protocol(linear(), linear_split(20), load_protocol("autoattack+atent"), setting(eps=0.0))
    assert [outcome.attack for outcome in outcomes] == ["clean", "AutoAttack", "ATENT-40 x 5", "worst case"]
    assert outcomes[-1].settings == {"over": "clean, AutoAttack, ATENT-40 x 5"}
    assert torch.equal(outcomes[-1].flags, found["robust"] & outcomes[0].flags)


def test_pgd_takes_the_step_size_that_the_protocol_names():
    spec = attack_spec("pgd", steps=2, step_size=0.0125)
    result = run.run_protocol(linear(), linear_split(20), protocol(spec), setting())[0]
    assert result.settings == {"steps": 2, "step_size": 0.0125, "restarts": 1}


def test_the_l2_threat_reaches_the_attacks():
    split = linear_split()
    results = run.run_protocol(linear(), split, protocol("fgsm", attack_spec("pgd", step_size=0.025)), setting("L2"))
    for result in results:
        assert torch.equal(result.flags, closed_form(split, "L2"))


@pytest.mark.parametrize(
    ("note", "name"),
    [
        (Note(kind="warning", text="not standard AutoAttack: the words do not matter"), "AutoAttack"),
        (Note(kind="changed", text="2 classes"), "AutoAttack, changed"),
    ],
)
def test_autoattack_gets_the_threat_and_its_flags_are_kept(monkeypatch, note, name):
    split, calls = linear_split(20), []
    robust = closed_form(split, "L2")
    signature = inspect.signature(autoattack.run)

    def fake(*arguments, **options):
        calls.append(signature.bind(*arguments, **options).arguments)
        calls[-1].pop("on_attack")("apgd-ce", 20)
        found = {"robust": robust, "adversaries": split.images, "robust_after": {"clean": 18, "apgd-ce": 9}}
        return SimpleNamespace(**found, package="pyautoattack 0.2.0", attacks=("apgd-ce",), notes=(note,))

    monkeypatch.setattr(autoattack, "run", fake)
    model, spec = linear(), attack_spec("autoattack", version="rand")
    clean, result, worst = run.run_protocol(model, split, protocol("clean", spec), setting("L2", seed=5, batch_size=9))
    (call,) = calls
    assert call.pop("model").network is model  # counted
    assert torch.equal(call.pop("x"), split.images)
    assert torch.equal(call.pop("y"), split.labels)
    assert call == {"norm": "L2", "eps": 0.1, "version": "rand", "seed": 5, "batch_size": 9}
    assert torch.equal(result.flags, robust)
    assert torch.equal(worst.flags, robust & clean.flags)
    assert (result.kind, result.attack, result.notes) == ("autoattack", name, (note,))
    assert result.settings == {"version": "rand", "package": "pyautoattack 0.2.0", "attacks": ["apgd-ce"], "draws": 21}
    assert result_of(result).robust_after == {"clean": 18, "apgd-ce": 9}
    assert result_of(result).changed == (note.kind == "changed")
    json.dumps(result_of(result).model_dump(mode="json"))


def test_autoattack_beyond_its_budget_does_not_count(monkeypatch):
    split = linear_split(20)
    far = split.images.clone()
    far[:5] = 1 - far[:5]
    found = SimpleNamespace(
        adversaries=far,
        robust=torch.zeros(20, dtype=torch.bool),
        package="p",
        attacks=("square",),
        notes=(),
        robust_after={},
    )
    monkeypatch.setattr(autoattack, "run", lambda *_, **__: found)
    clean, result, _ = run.run_protocol(
        linear(), split, protocol("clean", attack_spec("autoattack")), setting(eps=0.01)
    )
    assert torch.equal(result.flags[:5], clean.flags[:5])
    assert not result.flags[5:].any()
    assert result.notes == (Note(kind="outside", text="5 adversaries left ball or box and do not count"),)


# ---- the model comes back as found


def odd_model():
    """Train mode with one frozen part, one weight without gradient, one with a gradient."""
    model = SmallNet(norm=True).train()
    model.norm.eval()
    model.conv.bias.requires_grad_(False)
    model.out.bias.grad = torch.full_like(model.out.bias, 7.0)
    return model


def found(model):
    modes = [module.training for module in model.modules()]
    weights = [(p.requires_grad, p.grad is None or p.grad.clone()) for p in model.parameters()]
    return modes, weights, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before, after):
    assert before[0] == after[0]
    for (required, gradient), (requires, now) in zip(before[1], after[1], strict=True):
        assert required == requires
        assert gradient is now if now is True else torch.equal(gradient, now)
    assert all(torch.equal(tensor, after[2][name]) for name, tensor in before[2].items())


ALL = protocol("clean", "fgsm", attack_spec("pgd", steps=2, restarts=2))


def test_the_model_and_the_random_state_come_back():
    model, split = odd_model(), small_split(10)
    before, state = found(model), torch.random.get_rng_state()
    first = run.run_protocol(model, split, ALL, setting(batch_size=4))
    same(before, found(model))
    assert torch.equal(state, torch.random.get_rng_state())
    second = run.run_protocol(model, split, ALL, setting(batch_size=4))
    assert all(torch.equal(one.flags, other.flags) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("at", [1, 2, 4, 6, 9])
def test_the_model_comes_back_when_it_breaks(at):
    model, split = odd_model(), small_split(10)
    before, state = found(model), torch.random.get_rng_state()

    def break_down(module, arguments):
        if module.passes == at:
            raise ZeroDivisionError("broken")

    handle = model.drop.register_forward_pre_hook(lambda _, arguments: break_down(model, arguments))
    with pytest.raises(ZeroDivisionError, match="broken"):
        run.run_protocol(model, split, ALL, setting())
    handle.remove()
    same(before, found(model))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_without_weights_is_evaluated():
    split = Split(torch.tensor([[[[0.2]]], [[[0.9]]]]), torch.tensor([0, 1]))
    results = run.run_protocol(Flat(0.5), split, ALL, setting(eps=0.1))
    assert [result.accuracy for result in results] == [1, 1, 1, 1]


# ---- bad input


def refusal(split, model=None):
    with pytest.raises(BadInput) as error:
        run.run_protocol(model or linear(), split, ALL, setting())
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (torch.zeros(0, *SHAPE), [], "there are no images to evaluate on"),
        (torch.full((2, *SHAPE), 255.0), [0, 1], "they look like 0-255 images: divide them by 255"),
        (torch.full((2, *SHAPE), -2.1), [0, 1], "they look normalised"),
        (torch.full((2, *SHAPE), float("nan")), [0, 1], "images hold NaN or infinity"),
        (torch.zeros(2, *SHAPE, dtype=torch.uint8), [0, 1], "images are torch.uint8"),
        (torch.zeros(2, *SHAPE), [0, 2], "labels span [0, 2]; they must be at least 0 and at most 1"),
        (torch.zeros(2, *SHAPE), [-1, 1], "labels span [-1, 1]"),
        (torch.zeros(2, *SHAPE), [[0], [1]], "labels have shape (2, 1)"),
        (torch.zeros(3, *SHAPE), [0, 1], "labels have shape (2,); one class number per image is needed: (3,)"),
        (torch.zeros(2, *SHAPE), [0.0, 1.0], "labels are torch.float32"),
    ],
)
def test_a_split_that_cannot_be_evaluated_is_refused(images, labels, part):
    labels = torch.tensor(labels) if labels else torch.zeros(0, dtype=torch.long)
    assert part in refusal(Split(images, labels))


def test_nothing_is_attacked_before_the_check(monkeypatch):
    monkeypatch.setattr("atent_ext.attacks.specs.gradient.robust_flags", lambda *_: pytest.fail("attacked"))
    assert "divide them by 255" in refusal(Split(torch.full((2, *SHAPE), 255.0), torch.tensor([0, 1])))


# ---- protocols


def test_the_shipped_protocols():
    loaded = {name: load_protocol(name) for name in registry.files("protocol")}
    assert loaded.keys() >= {"autoattack", "autoattack+atent", "pgd", "quick"}
    assert all(protocol.name == name for name, protocol in loaded.items())
    specs = {name: [spec.model_dump() for spec in protocol.attacks] for name, protocol in loaded.items()}
    pgd = {"attack": "pgd", "steps": 40, "restarts": 1, "step_size": None, "keep": "last"}
    assert specs["pgd"] == [{"attack": "clean"}, {"attack": "fgsm"}, pgd | {"restarts": 10}]
    assert specs["clean"] == [{"attack": "clean"}]
    assert specs["quick"] == [{"attack": "clean"}, {"attack": "fgsm"}, pgd | {"steps": 20}]
    assert specs["autoattack"] == [{"attack": "clean"}, pgd, {"attack": "autoattack", "version": "standard"}]


def test_a_step_size_of_a_protocols_file_may_be_a_fraction(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: 1/2\ndescription: d\nattacks: [{attack: pgd, step_size: 2/255}]")
    protocol = load_protocol(str(path))
    assert (protocol.name, protocol.attacks[0].step_size) == ("1/2", 2 / 255)


def test_an_unknown_protocol_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="unknown protocol 'autoatack'; did you mean 'autoattack'"):
        load_protocol("autoatack")


@pytest.mark.parametrize(
    "text",
    [
        "name: mine\ndescription: d\nattacks: [{attack: pgdd}]",
        "name: mine\ndescription: d\nattacks: [{attack: pgd, step: 3}]",
        "name: mine\ndescription: d\nattacks: [{attack: pgd, steps: 0}]",
        "name: mine\ndescription: d\nattacks: [{attack: pgd, step_size: 0}]",
        "- 1",
    ],
)
def test_a_protocol_that_is_wrong_is_refused_in_one_line(tmp_path, monkeypatch, text):
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setitem(registry._FOLDERS, "protocol", (tmp_path,))
    with pytest.raises(BadInput, match="protocol mine: ") as error:
        load_protocol("mine")
    assert "\n" not in str(error.value)
