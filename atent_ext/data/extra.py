"""Images to train on beside those of a data set: generated ones, or more of the same kind."""

from pathlib import Path

from atent_ext.core.errors import BadInput
from atent_ext.data import arrays
from atent_ext.data.datasets import DataSet, Split


def load(source: str, like: DataSet, labelled: bool = True) -> Split:
    """The images and labels in `npz:FILE` (see `arrays.pool`), of the classes and image size of the data set `like`.

    labelled: False does not read the labels, and gives all images the label 0. Raises BadInput for a file that is no
    such archive, for images of another size, and for labels that are no classes of `like`.
    """
    path = Path(source.removeprefix("npz:")).expanduser()
    images, labels = arrays.pool(path, len(like.classes), labelled)
    if images.shape[1:] != like.train.shape:
        sizes = ["×".join(map(str, part.shape[1:])) for part in (images, like.train.images)]
        message = f"{path}: images are {sizes[0]}, and those of {like.name} {sizes[1]}; make them alike"
        raise BadInput(message, code="bad-shape", field="extra.source")
    return Split(images, labels)
