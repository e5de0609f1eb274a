"""The 5,000 images of ImageNet's validation set on which RobustBench scores."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.data import image_files
from atent_ext.data.splits import DataSet

_SIDE, _RESIZED = 224, 256


def imagenet(root: Path, download: bool) -> DataSet:
    """ImageNet (Russakovsky et al. 2015), for tests only: RobustBench's 5,000 validation images, in its order.

    They lie in `root`/imagenet/val/<synset>/*.JPEG, or `root`/val, and are prepared as RobustBench does by default: the
    shorter side is resized to 256 (bilinear, antialiased), and the middle 224×224 are cut out. The list of images and
    the labels of the 1,000 synsets are files of the package robustbench. Nothing is fetched. Raises BadInput for images
    that are missing, and MissingExtra without the package.
    """
    folder = next((one for one in (root / "imagenet" / "val", root / "val") if one.is_dir()), None)
    if folder is None:
        message = (
            f"data set 'imagenet' is not in {root / 'imagenet' / 'val'}; its licence forbids --download: name the "
        )
        message += "folder above it with --data-root or ATENT_DATA"
        raise BadInput(message, code="missing", field="root")
    files, label_of = _lists()
    paths = [folder / file for file in files]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        message = f"{missing} is missing, one of the {len(paths)} images of data set 'imagenet'; unpack the validation "
        message += "set into one folder a synset"
        raise BadInput(message, code="missing", field="root")
    labels = torch.tensor([label_of[path.parent.name] for path in paths])
    test = image_files.stored([*map(str, paths)], labels, (3, _SIDE, _SIDE), _prepared)
    note = f"ImageNet, RobustBench's {len(paths)} validation images, resized to {_RESIZED} and cut to {_SIDE}×{_SIDE}"
    return DataSet("imagenet", tuple(sorted(label_of, key=label_of.__getitem__)), test[:0], test, note)


def _lists() -> tuple[list[str], dict[str, int]]:
    """The images as <synset>/<file>, and the label of each synset. The package is not imported for its data files."""
    spec = importlib.util.find_spec("robustbench")
    if spec is None or spec.origin is None:
        message = "data set 'imagenet' needs RobustBench's list of images; pip install 'atent-ext[robustbench]'"
        raise MissingExtra(message, field="name")
    lists = Path(spec.origin).parent / "helper_files"
    try:
        files = (lists / "imagenet_test_image_ids.txt").read_text(encoding="utf-8").split()
        labels = json.loads((lists / "imagenet_class_to_id_map.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{lists} cannot be read: {error}; reinstall robustbench", code="unreadable", field="name"
        ) from error
    return files, labels


def _prepared(image: Any) -> Any:
    from torchvision.transforms.functional import center_crop, resize

    return center_crop(resize(image, [_RESIZED]), [_SIDE])
