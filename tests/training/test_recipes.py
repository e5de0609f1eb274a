import re

import pytest
import torch
import yaml

from atent_ext import objectives
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.experiments.study import run_name
from atent_ext.training import recipes
from atent_ext.training.entropy_sgd import EntropySGD

METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
SHIPPED = {
    *(f"{family}-{method}" for family in ("digits-linf", "mnist-linf", "cifar10-linf") for method in METHODS),
    *(f"{family}-{method}" for family in ("mnist-l2", "cifar10-l2") for method in ("pgd-at", "trades", "atent")),
    "cifar10-l2-mart",
}

# The settings of the papers: data, model, batch, lr, momentum, weight decay, epochs, lr / 10 at, norm, eps.
FAMILIES = {
    "mnist-l2": ("mnist", "lenet5-madry", 50, 0.001, 0.9, 0.0, 30, (), "L2", 2.0),
    "mnist-linf": ("mnist", "small-cnn", 128, 0.01, 0.9, 0.0, 30, (), "Linf", 0.3),
    "cifar10-linf": ("cifar10", "wrn-34-10", 128, 0.1, 0.9, 5e-4, 76, (75,), "Linf", 8 / 255),
    "cifar10-l2": ("cifar10", "resnet-20", 256, 0.1, 0.9, 1e-4, 54, (50,), "L2", 1.0),
}
# eps, K, eta, noise, gamma, alpha, projection, start.
ATENT = {
    "mnist-l2-atent": (2.0, 40, 0.125, 0.001, 0.05, 0.9, "every", "ball"),
    "mnist-linf-atent": (0.3, 40, 0.01, 0.001, 0.0, 0.9, "last", "corner"),
    "cifar10-linf-atent": (0.031, 10, 0.007, 0.001, 0.0, 0.9, "last", "corner"),
    "cifar10-l2-atent": (1.0, 10, 0.2, 0.001, 0.08, 0.9, "never", "ball"),
    "digits-linf-atent": (0.15, 10, 0.0375, 0.001, 0.0, 0.9, "last", "corner"),
}
# eps, K, step size, beta.
RIVALS = {
    "cifar10-linf-pgd-at": (0.031, 10, 0.007, None),
    "cifar10-linf-trades": (0.031, 10, 0.007, 6),
    "cifar10-linf-mart": (0.031, 10, 0.007, 6),
    "cifar10-l2-pgd-at": (1.0, 10, 0.25, None),
    "cifar10-l2-trades": (1.0, 10, 0.2, 6),
    "cifar10-l2-mart": (1.0, 10, 0.2, 5),
    "mnist-linf-pgd-at": (0.3, 40, 0.01, None),
    "mnist-linf-trades": (0.3, 40, 0.01, 1),
    "mnist-linf-mart": (0.3, 40, 0.01, 5),
    "mnist-l2-pgd-at": (2.0, 40, 0.125, None),
    "mnist-l2-trades": (2.0, 40, 0.1, 1),
    "digits-linf-pgd-at": (0.15, 10, 0.0375, None),
    "digits-linf-trades": (0.15, 10, 0.0375, 6),
    "digits-linf-mart": (0.15, 10, 0.0375, 5),
}
NORMS = {"linf": "Linf", "l2": "L2"}


def refusal(name, *overrides):
    """The one line that `load` refuses with."""
    with pytest.raises(BadInput) as error:
        recipes.load(name, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


def changed(*overrides):
    return recipes.load("digits-linf-atent", overrides)


def write(folder, name, text):
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / f"{name}.yaml")


@pytest.fixture
def trap(tmp_path):
    """YAML that makes a folder if objects are built from it, and the folder."""
    made = tmp_path / "made"
    return f'!!python/object/apply:os.mkdir ["{made}"]', made


# ---- what is shipped


def test_recipes_from_before_a_field_existed_are_written_as_then():
    # Names of finished runs hold a digest of all that a recipe writes.
    assert run_name(recipes.load("digits-linf-atent")) == "digits-linf-atent-6f8c8496"
    assert run_name(recipes.load("digits-linf-entropy-sgd")) == "digits-linf-entropy-sgd-1373cb5b"
    assert run_name(recipes.load("cifar10-linf-atent")) == "cifar10-linf-atent-5346162a"
    assert run_name(recipes.load("digits-linf-atent", ["clip=1"])) != "digits-linf-atent-6f8c8496"


def test_each_piece_has_a_recipe():
    fields, changes, models, optimizers = set(), set(), set(), set()
    for name in recipes.names():
        recipe = recipes.load(name)
        fields |= recipe.model_dump().keys() & recipe.added
        changes |= {recipe.augment} if isinstance(recipe.augment, str) else {*recipe.augment}
        models.add(recipe.model.name)
        optimizers |= {recipe.optimizer.name, recipe.schedule.name, f"nesterov {recipe.optimizer.nesterov}"}
    of_files = {"classes", "init_weights_key", "init_normalisation"}  # what arrays and weights files leave open
    assert fields == recipes.Recipe.added - of_files
    assert changes >= {"cutout", "affine-sharp", "elastic"}
    assert models >= {"wrn-normfree", "wrn-28-10"}
    assert optimizers >= {"adamw", "cosine", "nesterov True"}


def test_every_recipe_that_is_asked_for_is_shipped():
    assert set(recipes.names()) >= SHIPPED
    assert not any(name.startswith("_") for name in recipes.names())


NAMED = {"entropy-sgd": "sgd", "fgsm-at": "pgd-at", "smooth-atent": "atent", "atent-finetune": "atent"}
"""Objectives of the recipes that are not called by them."""
PIECES = "annealed|awp|augmented|cutmix|mixup|swa|certified|normfree|extra"
"""What recipes add to a method, at the end of their names."""


@pytest.mark.parametrize("name", recipes.names())
def test_a_shipped_recipe_is_whole(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    last = name.endswith(("-v1", "-starts"))  # the first paper stops nowhere early; PGD does not see what starts mend
    dataset, norm, method = re.sub(f"-(fast|v1|zoo|best|tuned|starts|{PIECES})$", "", name).split("-", 2)
    assert recipe.dataset == dataset
    assert recipe.threat.norm == NORMS[norm]
    assert recipe.objective["name"] == NAMED.get(method, method)
    assert recipe.objective.get("norm", recipe.threat.norm) == recipe.threat.norm
    if name.endswith(("-best", "-tuned", "-starts")):  # trained for a larger radius
        most = 1.34 if name in ("mnist-linf-atent-tuned", "mnist-linf-atent-starts") else 1.25  # 0.4 for 0.3
        assert recipe.threat.eps <= recipe.objective["eps"] <= most * recipe.threat.eps
    elif method != "mma":  # its eps is the largest margin asked for
        assert recipe.objective.get("eps", recipe.threat.eps) == pytest.approx(recipe.threat.eps, rel=0.02)
    undefended = method in ("sgd", "entropy-sgd", "gaussian-noise", "smooth-trades")
    expected = "last" if last else "clean" if undefended else "proven" if name == "mnist-linf-ibp" else "robust"
    assert recipe.validation.select == expected
    assert max(recipe.schedule.milestones, default=0) < recipe.epochs


@pytest.mark.parametrize("name", sorted(SHIPPED - {"mnist-linf-sgd"} - {f"digits-linf-{m}" for m in METHODS}))
def test_training_settings_are_the_papers(name):
    recipe = recipes.load(name)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert optimizer.name == "sgd"
    assert schedule.name == ("multi-step" if schedule.milestones else "constant")
    found = (
        *(recipe.dataset, recipe.model.name, recipe.batch_size),
        *(optimizer.lr, optimizer.momentum, optimizer.weight_decay),
        *(recipe.epochs, schedule.milestones, recipe.threat.norm, recipe.threat.eps),
    )
    assert found == FAMILIES["-".join(name.split("-", 2)[:2])]
    assert recipe.augment == ("crop-flip" if recipe.dataset == "cifar10" else "none")
    assert (recipe.eps_ramp, recipe.ema, recipe.mixed_precision) == (0, None, "no")


def test_plain_training_on_mnist_has_the_papers_own_settings():
    recipe = recipes.load("mnist-linf-sgd")
    assert (recipe.optimizer.lr, recipe.epochs, recipe.batch_size, recipe.optimizer.momentum) == (0.1, 50, 128, 0.9)


@pytest.mark.parametrize("method", METHODS)
def test_digits_settings(method):
    recipe = recipes.load(f"digits-linf-{method}")
    found = (recipe.model.name, recipe.batch_size, recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.epochs)
    assert found == ("digits-cnn", 64, 0.05 if method == "mart" else 0.1, 1e-4, 30)
    assert (recipe.threat.eps, recipe.schedule.name, recipe.eps_ramp) == (0.15, "one-cycle", 0.3)


def test_the_fast_mnist_recipes_differ_in_the_objective_only_and_say_what_they_change():
    atent, rival = (recipes.load(f"mnist-linf-{method}-fast") for method in ("atent", "pgd-at"))
    one, other = (
        recipe.model_dump(exclude={"name", "description", "differs", "objective"}) for recipe in (atent, rival)
    )
    assert one == other
    for recipe in (atent, rival):
        kernel = recipe.build_objective().kernel
        assert (kernel.eps, kernel.steps, kernel.step_size, kernel.project) == (0.3, 10, 0.06, "every")
        assert f"{recipe.epochs} epochs of {kernel.steps} steps" in recipe.description
    assert f"{atent.epochs} epochs instead of 30" in atent.differs
    assert f"one-cycle learning rate up to {atent.optimizer.lr} " in atent.differs
    assert (atent.schedule.name, atent.model.name, atent.threat.eps) == ("one-cycle", "small-cnn", 0.3)


@pytest.mark.parametrize("name", ATENT)
def test_atent_settings(name):
    objective = recipes.load(name).build_objective()
    kernel = objective.kernel
    assert isinstance(objective, objectives.ATENT)
    found = (kernel.eps, kernel.steps, kernel.step_size, kernel.noise, kernel.gamma, objective.alpha)
    assert (*found, kernel.project, kernel.start) == ATENT[name]
    assert kernel.norm.name == NORMS[name.split("-")[1]]


@pytest.mark.parametrize("name", RIVALS)
def test_settings_of_the_rivals(name):
    objective = recipes.load(name).build_objective()
    assert (objective.eps, objective.steps, objective.step_size, getattr(objective, "beta", None)) == RIVALS[name]
    assert objective.norm == NORMS[name.split("-")[1]]


# ---- files: bases, round trip


def test_a_recipe_overrides_its_base_field_by_field(tmp_path):
    write(tmp_path, "_low", "dataset: digits\nthreat: {norm: Linf, eps: 0.1}\nepochs: 9\nvalidation: {count: 50}\n")
    write(
        tmp_path,
        "_middle",
        "base: _low\nmodel: {name: digits-cnn}\noptimizer: {lr: 0.3, momentum: 0.5}\nbatch_size: 8\n"
        "objective: {name: trades, eps: 0.1, steps: 3, step_size: 0.05}\n",
    )
    top = "base: _middle\nname: n\ndescription: d\nepochs: 2\noptimizer: {lr: 0.2}\nobjective: {steps: 4}\n"
    recipe = recipes.load(write(tmp_path, "top", top))
    assert (recipe.epochs, recipe.batch_size, recipe.threat.eps, recipe.validation.count) == (2, 8, 0.1, 50)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum) == (0.2, 0.5)
    assert recipe.objective == {"name": "trades", "eps": 0.1, "steps": 4, "step_size": 0.05}


@pytest.mark.parametrize("base", ["loop", "nowhere", "../loop/loop", "[1]", "''", "_a"])
def test_a_base_that_is_not_there_or_goes_in_a_circle_is_refused(tmp_path, base):
    folder = tmp_path / "loop"
    folder.mkdir()
    write(folder, "_a", "base: _b\n")
    write(folder, "_b", "base: loop\n")
    message = refusal(write(folder, "loop", f"base: {base}\nname: n\n"))
    assert "beside it" in message
    assert (folder / "_b.yaml" if base == "_a" else folder / "loop.yaml").name in message


@pytest.mark.parametrize("name", recipes.names())
def test_dump_and_load_give_the_same_recipe(tmp_path, name):
    recipe = recipes.load(name)
    assert recipes.load(write(tmp_path, "copy", recipes.dump(recipe))) == recipe


def test_dump_and_load_keep_every_kind_of_value(tmp_path):
    recipe = changed(
        *("objective.box=[0, 1]", "objective.gamma=null", "objective.step_size=1e-3", "objective.noise=3e-05"),
        *("ema=0.999", "schedule.name=multi-step", "schedule.milestones=[2, 3]", "model.arguments={a: [1, x]}"),
        *("description='ℓ∞: \"quoted\" # no comment'", "augment=crop-flip", "optimizer.name=adam"),
    )
    again = recipes.load(write(tmp_path, "copy", recipes.dump(recipe)))
    assert again == recipe
    assert again.build_objective() == recipe.build_objective()
    assert again.build_objective().box == (0.0, 1.0)
    assert again.schedule.milestones == (2, 3)
    assert again.description == 'ℓ∞: "quoted" # no comment'


def test_dump_holds_the_defaults_too():
    written = list(yaml.safe_load(recipes.dump(changed())))
    assert written == [name for name in recipes.Recipe.model_fields if name not in {*recipes.Recipe.added, "tracker"}]


def test_values_do_not_change():
    recipe = changed()
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 3


def test_parse_leaves_its_input_alone():
    raw = yaml.safe_load(recipes.dump(changed("objective.step_size=1")))
    raw["objective"]["step_size"] = "1e-3"
    assert recipes.parse(raw, "mine").objective["step_size"] == 0.001
    assert raw["objective"]["step_size"] == "1e-3"


# ---- what recipes share


def test_recipes_do_not_change_each_other():
    one, other = (recipes.load("mnist-linf-atent-best") for _ in range(2))
    copied = one.model_copy(update={"epochs": 3})
    for recipe in (one, other, copied):
        for part in (recipe.objective, recipe.model.arguments, recipe.optimizer.arguments):
            with pytest.raises(TypeError, match="does not change"):
                part["steps"] = 99
    assert one == other == recipes.load("mnist-linf-atent-best")
    assert copied.objective == one.objective


def test_checking_a_recipe_changes_nothing_that_was_given():
    raw = recipes.load("digits-linf-atent").model_dump()
    raw["objective"] |= {"step_size": "1e-3", "box": [0, 1]}
    before = recipes.parse(raw, "mine")
    raw["model"]["arguments"]["dropout"] = raw["objective"]["box"][0] = 0.5
    assert before.model.arguments == {}
    assert (before.objective["box"], before.objective["step_size"]) == ((0.0, 1.0), 0.001)


# ---- overrides


def test_overrides():
    recipe = changed("objective.steps=7", "epochs=3", "optimizer.lr=1e-3", "ema=0.5", "epochs=4", "name=mine")
    assert (recipe.objective["steps"], recipe.build_objective().steps) == (7, 7)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.ema, recipe.name) == (4, 0.001, 0.5, "mine")
    assert recipe.optimizer.momentum == 0.9
    assert changed("ema=0.5", "ema=null").ema is None
    assert changed("objective.gamma=0.2", "objective.gamma=null").build_objective().kernel.gamma == 0
    assert changed("model.arguments.dropout=0.2").model.arguments == {"dropout": 0.2}
    assert changed("dataset=folder:/a/b=c").dataset == "folder:/a/b=c"


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "0.001", "'1e-3'"])
def test_a_float_is_the_same_value_however_it_is_written(text):
    # A run is resumed only by an equal recipe, and PyYAML takes 1e-3 for a text.
    recipe = changed(f"objective.step_size={text}")
    assert recipe.objective["step_size"] == 0.001
    assert recipe == changed("objective.step_size=0.001")


@pytest.mark.parametrize("override", ["epochs", "=3", "", "epochs 3", "--seed"])
def test_an_override_that_is_none_is_refused(override):
    assert refusal("digits-linf-atent", override) == f"--set {override!r} is not of the form key=value"


@pytest.mark.parametrize("value", ["[1", "{a: ", "'", "2024-13-45", "@x"])
def test_an_override_whose_value_is_no_yaml_is_refused(value):
    assert refusal("digits-linf-atent", f"epochs={value}").endswith("the value is not YAML")


@pytest.mark.parametrize(("override", "parent"), [("epochs.x=3", "epochs"), ("optimizer.lr.x=3", "lr")])
def test_an_override_below_a_value_is_refused(override, parent):
    assert refusal("digits-linf-atent", override) == f"--set {override!r}: {parent} has no fields"


# ---- names and values that are wrong


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("epoch=3", "'epochs'"),
        ("optimizer.lrr=1", "'optimizer.lr'"),
        ("optimizer.weight_decy=1", "'optimizer.weight_decay'"),
        ("schedule.milestone=[1]", "'schedule.milestones'"),
        ("validation.cuont=3", "'validation.count'"),
        ("threat.epsilon=3", "'threat.eps'"),
        ("objective.stepz=3", "'objective.steps'"),
        ("objective.stepsize=3", "'objective.step_size'"),
        ("objective.name=atnt", "'atent'"),
        ("model.name=digits-cn", "'digits-cnn'"),
        ("dataset=digit", "'digits'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(override, nearest):
    message = refusal("digits-linf-atent", override)
    key, _, value = override.partition("=")
    assert message.startswith("recipe digits-linf-atent: unknown ")
    assert f"{(value if key in ('objective.name', 'model.name', 'dataset') else key)!r}" in message
    assert message.endswith(f"did you mean {nearest}?")


def test_a_name_near_to_none_is_refused_with_all():
    message = refusal("digits-linf-atent", "zzzzzz=3")
    assert "unknown field 'zzzzzz'; known: " in message
    assert "awp, batch_size, certified" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-linf-aten", "unknown recipe 'digits-linf-aten'; did you mean 'digits-linf-atent'?"),
        ("cifar-linf-trades", "unknown recipe 'cifar-linf-trades'; did you mean 'cifar10-linf-trades'?"),
        ("nowhere/mine.yaml", "there is no recipe file nowhere/mine.yaml"),
    ],
)
def test_an_unknown_recipe_is_refused(name, expected):
    assert refusal(name) == expected


def test_a_base_lies_in_the_same_folder(tmp_path):
    write(tmp_path, "outside", "epochs: 2\n")
    (tmp_path / "inner").mkdir()
    message = refusal(write(tmp_path / "inner", "recipe", "base: ../outside\nname: n\n"))
    assert "base is '../outside'; it must name another recipe file beside it" in message


def test_a_base_is_no_recipe_of_its_own():
    assert "name: Field required" in refusal("_digits-linf")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("epochs=0", ["epochs is 0", "greater than or equal to 1"]),
        ("epochs=3.5", ["epochs is 3.5", "integer"]),
        ("epochs=many", ["epochs is 'many'", "integer"]),
        ("epochs=", ["epochs is None", "integer"]),
        ("batch_size=-1", ["batch_size is -1"]),
        ("seed=-1", ["seed is -1"]),
        ("optimizer.lr=0", ["optimizer.lr is 0", "greater than 0"]),
        ("optimizer.lr=.nan", ["optimizer.lr is nan", "finite"]),
        ("optimizer.lr=.inf", ["optimizer.lr is inf", "finite"]),
        ("optimizer.momentum=1.1", ["optimizer.momentum is 1.1"]),
        ("optimizer.name=lion", ["optimizer.name is 'lion'", "'sgd', 'adam', 'adamw' or 'entropy-sgd'"]),
        ("optimizer=5", ["optimizer is 5"]),
        ("schedule.milestones=[3, 0]", ["schedule.milestones.1 is 0"]),
        ("schedule.warmup=1", ["schedule.warmup is 1", "less than 1"]),
        ("eps_ramp=1.5", ["eps_ramp is 1.5"]),
        ("ema=1", ["ema is 1"]),
        ("augment=flip", ["augment is 'flip'"]),
        ("mixed_precision=fp8", ["mixed_precision is 'fp8'"]),
        ("threat.norm=l2", ["threat.norm is 'l2'", "'Linf', 'L2' or 'L1'"]),
        ("threat.eps=-1", ["threat.eps is -1"]),
        ("validation=null", ["validation is None"]),
        ("validation.select=best", ["validation.select is 'best'"]),
        ("name=2024-01-01", ["name is datetime.date(2024, 1, 1)"]),
        ("objective=5", ["objective is 5"]),
        ("objective.name=null", ["objective has no name", "atent, desgd, gaussian-noise, ibp, mart, mma, pgd-at, "]),
        ("objective.steps=0", ["steps is 0", "whole number >= 1"]),
        ("objective.steps=few", ["objective.steps is 'few'"]),
        ("objective.eps=.nan", ["eps is nan"]),
        ("objective.eps=-1", ["eps is -1.0"]),
        ("objective.alpha=0", ["alpha is 0.0", "(0, 1]"]),
        ("objective.norm=Linfty", ["objective.norm is 'Linfty'"]),
        ("objective.project=sometimes", ["objective.project is 'sometimes'"]),
        ("objective.box=[1, 0]", ["box is (1.0, 0.0)"]),
        ("objective={name: atent}", ["objective.eps: Field required", "objective.step_size: Field required"]),
        ("objective={norm: L2}", ["objective has no name"]),
        ("objective.norm=L2", ["objective.norm is 'L2', but the threat model's is 'Linf'"]),
        ("objective.box=[-1, 1]", ["objective.box is (-1.0, 1.0), but the threat model's is (0.0, 1.0)"]),
        ("model.arguments.classes=3", ["model.arguments.classes is decided by the data set; remove it"]),
        ("objective={1: 2, name: sgd}", ["objective.1"]),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_one_line(override, parts):
    message = refusal("digits-linf-atent", override)
    assert message.startswith("recipe digits-linf-atent: ")
    for part in parts:
        assert part in message


ENTROPY = "optimizer={name: entropy-sgd, lr: 0.1, arguments: {steps: 2, gamma: 1e-4, h: 0.2, outer: paper}}"


def test_entropy_sgd_takes_arguments(tmp_path):
    recipe = changed(ENTROPY, "optimizer.weight_decay=1e-3")
    optimizer = recipe.optimizer.build([torch.ones(1, requires_grad=True)])
    assert type(optimizer) is EntropySGD
    given = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.001, "steps": 2, "gamma": 1e-4, "h": 0.2, "outer": "paper"}
    assert optimizer.defaults == given | {"noise": 1e-4, "average": 0.75}
    assert recipe.optimizer.needs_closure
    assert recipes.load(write(tmp_path, "copy", recipes.dump(recipe))) == recipe
    assert recipe == changed(ENTROPY, "optimizer.weight_decay=0.001", "optimizer.arguments.gamma=0.0001")


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_torchs_optimizers_need_no_closure(name, kind):
    optimizer = changed(f"optimizer={{name: {name}, lr: 0.2, weight_decay: 0.1}}").optimizer
    built = optimizer.build([torch.ones(1, requires_grad=True)])
    assert type(built) is kind
    assert (built.defaults["lr"], built.defaults["weight_decay"], built.defaults.get("momentum")) == (
        0.2,
        0.1,
        0.9 if name == "sgd" else None,
    )
    assert not optimizer.needs_closure


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["optimizer.arguments.steps=0"], "steps is 0; it must be a whole number >= 1"),
        (["optimizer.arguments.steps=2.5"], "steps is 2.5; it must be a whole number"),
        (["optimizer.arguments.gamma=-1"], "gamma is -1"),
        (["optimizer.arguments.average=1"], "average is 1; it must lie in [0, 1)"),
        (["optimizer.arguments.average=high"], "average is 'high'; it must be a finite number"),
        (["optimizer.arguments.average=null"], "average"),
        (["optimizer.arguments.noise=.nan"], "noise"),
        (["optimizer.arguments.outer=mine"], "outer is 'mine'; known: authors, paper"),
        (["optimizer.arguments.outer=[1]"], "outer"),
        (["optimizer.arguments=5"], "optimizer.arguments is 5"),
        (["optimizer.arguments.gama=1"], "optimizer.arguments.gama is not an argument of entropy-sgd; remove it"),
        (["optimizer.arguments.lr=1"], "optimizer.arguments.lr is not an argument of entropy-sgd; remove it"),
        (["optimizer.arguments.momentum=1"], "optimizer.arguments.momentum is not an argument of entropy-sgd"),
        (["optimizer.arguments.params=1"], "optimizer.arguments.params is not an argument of entropy-sgd"),
        (["optimizer.name=sgd", "optimizer.arguments={nesterov: 1}"], "nesterov is not an argument of sgd; remove it"),
        (["optimizer.name=adam", "optimizer.arguments={steps: 1}"], "steps is not an argument of adam; remove it"),
        (["mixed_precision=fp16"], "mixed_precision is 'fp16', whose scaled steps Entropy-SGD cannot take"),
    ],
)
def test_an_argument_of_the_optimizer_that_does_not_fit_is_refused(overrides, part):
    message = refusal("digits-linf-atent", ENTROPY, *overrides)
    assert message.startswith("recipe digits-linf-atent: ")
    assert part in message


def test_a_run_to_start_from_is_a_path():
    assert changed().init_from is None
    assert changed("init_from=runs/plain").init_from == "runs/plain"
    assert "init_from is 5" in refusal("digits-linf-atent", "init_from=5")


def test_all_that_is_wrong_is_named_at_once():
    message = refusal("digits-linf-atent", "epochs=0", "optimizer.lrr=2", "threat.norm=L7")
    assert message.count(";") >= 2
    for part in ("epochs is 0", "'optimizer.lr'", "threat.norm is 'L7'"):
        assert part in message


def test_plain_training_takes_no_eps():
    assert refusal("digits-linf-sgd", "objective.eps=0.1").startswith(
        "recipe digits-linf-sgd: unknown field 'objective.eps'"
    )


# ---- files that are no recipes


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"a: [1", "is not YAML"),
        (b"\x00", "is not YAML"),
        (b"name: \xff\xfe", "is not YAML"),
        (b"date: 2024-13-45", "is not YAML"),
        (b"? {a: 1}\n: 2", "is not YAML"),
        (b"", "holds no fields"),
        (b"- 1\n- 2", "holds no fields"),
        (b"just text", "holds no fields"),
        (b"{}", "name: Field required"),
        (b"1: 2", "Keys should be strings"),
        (b"epochs: &a [*a]", "epochs is [[...]]"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, part):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    message = refusal(str(path))
    assert part in message
    assert str(path) in message


def test_yaml_with_objects_runs_nothing(tmp_path, trap):
    text, made = trap
    yaml.unsafe_load(text)  # the trap works, where someone lets it
    made.rmdir()
    assert "is not YAML" in refusal(write(tmp_path, "evil", f"name: {text}\n"))
    assert "is not YAML" in refusal(write(tmp_path, "child", "base: evil\nname: n\n"))
    assert "the value is not YAML" in refusal("digits-linf-atent", f"name={text}")
    assert not made.exists()


def test_the_error_of_the_registry_where_files_are_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(registry._FOLDERS, "recipe", (tmp_path / "none",))
    assert refusal("digits-linf-atent") == "the installed package lacks its recipe files; reinstall atent-ext"


@pytest.mark.parametrize(
    ("override", "code", "field"),
    [
        ("epochs=0", "bad-value", "epochs"),
        ("epoch=3", "unknown-name", "epoch"),
        ("optimizer.lr=-1", "bad-value", "optimizer.lr"),
        ("optimizer.arguments.gamma=1", "unused", "optimizer.arguments.gamma"),
        ("objective.steps=x", "bad-value", "objective.steps"),
        ("objective.eps=-1", "bad-value", "objective.eps"),
        ("objective.stepz=3", "unknown-name", "field"),
        ("objective={steps: 3}", "missing", "objective.name"),
        ("model.arguments.classes=3", "unused", "model.arguments.classes"),
        ("epochs.x=3", "unknown-name", "epochs.x"),
        ("epochs", "bad-value", "set"),
    ],
)
def test_an_error_gives_the_code_and_the_first_wrong_field(override, code, field):
    with pytest.raises(BadInput) as error:
        recipes.load("digits-linf-atent", [override])
    assert (error.value.code, error.value.field) == (code, field)


@pytest.mark.parametrize("written", ["no", "'no'", "false"])
def test_the_precision_of_the_weights_is_no_in_any_spelling(written, tmp_path):
    assert recipes.load("mnist-l2-atent-zoo", [f"mixed_precision={written}"]).mixed_precision == "no"
    text = recipes.dump(recipes.load("mnist-l2-atent-zoo"))
    assert "\nmixed_precision: bf16\n" in text
    text = text.replace("mixed_precision: bf16", f"mixed_precision: {written}")
    assert recipes.load(write(tmp_path, "top", text)).mixed_precision == "no"
    assert "mixed_precision is True" in refusal("mnist-l2-atent-zoo", "mixed_precision=yes")
