"""A run folder as a subject."""

from pathlib import Path

from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import base
from atent_ext.training.run_folder import RunFolder, load_data


def from_run(path: Path, root: Path | None = None, download: bool = False, held_out: bool = False) -> Subject:
    """The selected weights of a run folder, on the test split of its data set. Raises BadInput if it holds no run.

    held_out: use the images that the run held out of training instead; choose between runs by them, not by test images.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    images = load_data(recipe, root, download)
    split = datasets.hold_out(images.train, recipe.validation.count, recipe.seed)[1] if held_out else images.test
    about = base.about(recipe.name, recipe.model.name, [folder.weights], images)
    about = about.model_copy(update={"recipe": recipe.model_dump(mode="json")})
    return Subject(
        folder.load_model(images), split, recipe.threat, about, datasets.HELD_OUT if held_out else datasets.TEST
    )
