"""What an override changes besides its own field, what it leaves, and what it may not contradict."""

import pytest
import yaml

from atent_ext.core.errors import BadInput
from atent_ext.training import recipes

BEST = "mnist-linf-atent-best"
"""Trained at eps 0.36 for a threat of 0.3, by a network with an argument."""


def told(name, *overrides):
    """The recipe and what a user hears."""
    heard = []
    return recipes.load(name, overrides, heard.append), heard


def refusal(name, *overrides):
    with pytest.raises(BadInput) as error:
        recipes.load(name, overrides)
    assert "\n" not in str(error.value)
    return error.value


# ---- the radius


@pytest.mark.parametrize(
    "override", ["threat.eps=0.05", "threat.eps='0.05'", "threat={norm: Linf, eps: 0.05}", "threat.eps=5e-2"]
)
def test_a_radius_of_training_that_was_the_threats_follows_it_and_the_step_size_stays(override):
    recipe, heard = told("digits-linf-atent", override)
    assert (recipe.threat.eps, recipe.objective["eps"], recipe.objective["step_size"]) == (0.05, 0.05, 0.0375)
    assert recipe.build_objective().eps == 0.05
    assert heard[0] == "objective.eps follows threat.eps: 0.05 instead of 0.15; objective.step_size stays 0.0375"


@pytest.mark.parametrize(
    "overrides",
    [
        ("threat.eps=0.05", "objective.eps=0.1"),
        ("objective.eps=0.1", "threat.eps=0.05"),
        ("threat.eps=0.05", "objective={name: atent, eps: 0.1, steps: 2, step_size: 0.1}"),
    ],
)
def test_a_radius_of_training_that_is_stated_stays(overrides):
    recipe, heard = told("digits-linf-atent", *overrides)
    assert (recipe.threat.eps, recipe.objective["eps"]) == (0.05, 0.1)
    assert not any("objective.eps" in text for text in heard)


def test_a_radius_of_training_that_was_another_one_is_asked_for():
    error = refusal(BEST, "threat.eps=0.2")
    assert (error.code, error.field) == ("conflict", "objective.eps")
    assert str(error) == (
        "threat.eps changed from 0.3 to 0.2, but objective.eps, the radius of training, is 0.36; "
        "give objective.eps, too"
    )
    assert refusal("digits-linf-mma", "threat.eps=0.2").field == "objective.eps"  # d_max
    assert refusal("cifar10-linf-atent", "threat.eps=0.05").field == "objective.eps"  # 0.031 for 8/255
    for eps, given in ((0.2, ["objective.eps=0.36"]), (0.36, []), (0.3, [])):  # said, equal now, unchanged
        recipe = recipes.load(BEST, [f"threat.eps={eps}", *given])
        assert (recipe.threat.eps, recipe.objective["eps"]) == (eps, 0.36)


def test_the_radius_of_training_alone_may_be_changed():
    recipe, heard = told("digits-linf-atent", "objective.eps=0.2")
    assert (recipe.threat.eps, recipe.objective["eps"], heard) == (0.15, 0.2, [])


def test_plain_training_has_no_radius_that_follows():
    recipe, heard = told("digits-linf-sgd", "threat.eps=0.05")
    assert recipe.objective == {"name": "sgd"}
    assert not any("objective" in text for text in heard)


def test_a_radius_of_another_norm_is_asked_for():
    error = refusal("digits-linf-sgd", "threat.norm=L2")
    assert (error.code, error.field) == ("missing", "threat.eps")
    assert str(error) == "threat.norm is L2 now, and threat.eps, 0.15, is a radius of Linf; give threat.eps, too"
    recipe = recipes.load("digits-linf-pgd-at", ["threat.norm=L2", "threat.eps=0.75", "objective.norm=L2"])
    assert (recipe.threat.norm, recipe.threat.eps, recipe.objective["eps"]) == ("L2", 0.75, 0.75)
    assert "objective.norm is 'Linf'" in str(refusal("digits-linf-pgd-at", "threat.norm=L2", "threat.eps=0.75"))


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("threat.eps=few", "threat.eps is 'few'"),
        ("threat.eps=[0.1]", "threat.eps is [0.1]"),
        ("threat.eps=-1", "threat.eps is -1"),
        ("threat.eps=.nan", "threat.eps is nan"),
        ("threat.norm=[]", "threat.norm is []"),
        ("threat=5", "threat is 5"),
        ("model=small-cnn", "model is 'small-cnn'"),
        ("model.name=[1]", "model.name is [1]"),
    ],
)
def test_what_does_not_fit_by_itself_is_refused_as_before(override, part):
    error = refusal("digits-linf-atent", override)
    assert str(error).startswith("recipe digits-linf-atent: ")
    assert part in str(error)


# ---- network, names, schedule


def test_arguments_of_another_network_are_asked_for():
    error = refusal(BEST, "model.name=resnet-20")
    assert (error.code, error.field) == ("conflict", "model.arguments")
    assert "model.arguments (width) are those of 'small-cnn'" in str(error)
    for given, found in (
        (["model.arguments={}"], {}),
        (["model.arguments.width=3"], {"width": 3}),
        (["model={name: resnet-20}"], {}),
    ):
        model = recipes.load(BEST, ["model.name=resnet-20", *given]).model
        assert (model.name, model.arguments) == ("resnet-20", found)
    assert recipes.load("digits-linf-sgd", ["model.name=resnet-20"]).model.name == "resnet-20"  # it had none
    assert recipes.load(BEST, ["model.arguments.dropout=0"]).model.arguments == {"width": 2, "dropout": 0}


def test_names_that_say_something_else_now_are_told():
    _, heard = told("digits-linf-sgd", "dataset=mnist", "epochs=3")
    assert len(heard) == 1
    assert heard[0].startswith("dataset changed, and the recipe is still called 'digits-linf-sgd' and described as ")
    assert told("digits-linf-sgd", "dataset=mnist", "name=mine")[1] == []
    assert told("digits-linf-sgd", "dataset=digits", "epochs=3")[1] == []


def test_milestones_that_are_never_reached_are_told():
    _, heard = told("cifar10-linf-atent", "epochs=4")
    assert heard == ["schedule.milestones [75] lie beyond the 4 epochs: the learning rate is not lowered there"]
    assert told("cifar10-linf-atent", "epochs=4", "schedule={name: one-cycle}")[1] == []
    assert told("cifar10-linf-atent", "epochs=80")[1] == []
    never = ["schedule.milestones is empty: the learning rate is never lowered; name the epochs at which it is"]
    assert told("cifar10-linf-atent", "schedule={name: multi-step, factor: 0.5}")[1] == never


# ---- files with a base


def child(folder, base, **fields):
    for name, text in (("_base", yaml.safe_dump(base)), ("child", yaml.safe_dump({"base": "_base", **fields}))):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return str(folder / "child.yaml")


def test_a_file_with_a_base_follows_the_same_rules(tmp_path):
    base = recipes.load("digits-linf-atent").model_dump(mode="json")
    recipe = recipes.load(child(tmp_path, base, threat={"eps": 0.05}))
    assert (recipe.threat.eps, recipe.objective["eps"], recipe.objective["step_size"]) == (0.05, 0.05, 0.0375)
    recipe = recipes.load(child(tmp_path, base, threat={"eps": 0.05}, objective={"eps": 0.1}))
    assert (recipe.threat.eps, recipe.objective["eps"]) == (0.05, 0.1)
    base["objective"]["eps"] = 0.2
    assert refusal(child(tmp_path, base, threat={"eps": 0.05})).field == "objective.eps"
    assert refusal(child(tmp_path, base, threat={"norm": "L2"})).field == "threat.eps"
    base["model"] = {"name": "small-cnn", "arguments": {"width": 2}}
    assert refusal(child(tmp_path, base, model={"name": "resnet-20"})).field == "model.arguments"
    assert recipes.load(child(tmp_path, base, model={"name": "resnet-20", "arguments": {"width": 3}}))


def test_a_file_that_holds_itself_is_refused(tmp_path):
    (tmp_path / "_base.yaml").write_text("name: n\n", encoding="utf-8")
    path = tmp_path / "child.yaml"
    path.write_text("base: _base\nthreat: &a {eps: *a}\n", encoding="utf-8")
    assert "threat.eps is {'eps': {...}}" in str(refusal(str(path)))
