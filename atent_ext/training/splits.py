"""The images of a training: those to train on, those held out to choose the epoch, and extra ones."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from atent_ext.attacks.accuracy import predict
from atent_ext.core import validate
from atent_ext.data import extra
from atent_ext.data.datasets import DataSet, Split, digest, hold_out
from atent_ext.data.splits import Stored
from atent_ext.training.batches import Batches, Targets
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder


@dataclass(frozen=True)
class Splits:
    """The images of a training by `recipe`; `classes` is the number of classes of its data set."""

    recipe: Recipe
    rest: Split
    held_out: Split
    extra: Split | None
    classes: int

    def digest(self) -> str:
        """A hash of all images and labels."""
        splits = [self.rest, self.held_out, *([self.extra] if self.extra else [])]
        return digest(*(part for split in splits for part in (split.images, split.labels)))

    def batches(self, accelerator: Accelerator) -> Batches:
        """The batches of this process. Raises BadInput as `Batches`."""
        recipe = self.recipe
        return Batches(
            self.rest,
            recipe.batch_size,
            recipe.augment,
            *(accelerator.device, accelerator.process_index, accelerator.num_processes),
            targets=Targets(self.classes, recipe.mix, recipe.label_smoothing),
            extra=self.extra,
            extra_share=recipe.extra.share if recipe.extra else 0.0,
        )


def split(recipe: Recipe, data: DataSet) -> Splits:
    """Split the training images of `data` for a recipe. Images that lie in files are read only if they are needed.

    Raises BadInput for images outside [0, 1], labels that do not fit, and more images than there are.
    """
    count = len(data.train) if isinstance(data.train, Stored) else len(data.train.images)
    validate.labels(data.train.labels, count, len(data.classes))
    rest, held_out = hold_out(data.train, recipe.validation.count, recipe.seed)
    rest = rest.take(recipe.examples)
    for part in (rest, held_out):
        validate.images(part.images, 0.0, 1.0)
    return Splits(recipe, rest, held_out, _extra(recipe, data), len(data.classes))


def _extra(recipe: Recipe, data: DataSet) -> Split | None:
    """The recipe's extra images, labelled by their file or by the recipe's teacher."""
    if recipe.extra is None:
        return None
    teacher = recipe.extra.teacher
    images = extra.load(recipe.extra.source, data, labelled=teacher is None)
    return images if teacher is None else Split(images.images, _labels(Path(teacher), images.images, data))


def _labels(teacher: Path, images: Tensor, data: DataSet) -> Tensor:
    return predict(RunFolder(teacher).load_model(data), images).argmax(1)
