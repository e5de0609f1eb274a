"""A network of Python code as a subject: the user's own, timm's or torchvision's. The code is run.

path/to/file.py:callable      timm:NAME
package.module:callable       torchvision:NAME
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from atent_ext.core.around import Around
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.model_state import seeded
from atent_ext.core.registry import nearest
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.resizing import as_taken, resized
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import networks
from atent_ext.models import weights as weights_files
from atent_ext.storage import untrusted
from atent_ext.subjects import base

Arguments = Mapping[str, Any]
_LIBRARIES = ("timm", "torchvision")
_NOTHING = Around()


def is_code(reference: str) -> bool:
    """Whether a reference names code: LIBRARY:NAME, FILE.py:callable or package.module:callable."""
    where, colon, name = reference.rpartition(":")
    if where in _LIBRARIES:
        return bool(name)
    module = where.endswith(".py") or all(part.isidentifier() for part in where.split("."))
    return bool(colon) and module and name.isidentifier() and where not in ("zoo", "robustbench", "hf")


def shown(model: str, arguments: Arguments | None = None) -> str:
    """A model in reports: its name without the folders of this machine, its arguments, and the version of its code.

    With other arguments or other code it is another network, even if the weights are the same.
    """
    where, colon, what = model.rpartition(":")
    given = ", ".join(f"{name}={value!r}" for name, value in sorted((arguments or {}).items()))
    text = f"{Path(where).name}{colon}{what}" + (f"({given})" if given else "")
    return f"{text}, {_code(where)}" if is_code(model) else text


def _code(where: str) -> str:
    """The version of the code: that of a library, or the hash of a source file."""
    if where in _LIBRARIES:
        return f"{where} {importlib.metadata.version(where)}"
    path: Path | None = Path(where)
    if not where.endswith(".py"):
        with _importing(where):
            spec = importlib.util.find_spec(where)
        path = Path(spec.origin) if spec is not None and spec.origin else None
    known = path is not None and path.is_file()
    return f"code {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" if path and known else "code of unknown version"


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments in texts KEY=VALUE, as YAML reads the values. Raises BadInput for another form."""
    arguments = {}
    for text in texts:
        key, equals, written = text.partition("=")
        if not equals or not key.isidentifier():
            message = f"--model-arg {text!r} is not of the form key=value, such as width=2"
            raise BadInput(message, code="bad-value", field="model_arg")
        try:
            arguments[key] = yaml.safe_load(written)
        except (yaml.YAMLError, ValueError):
            message = f"--model-arg {text!r}: the value is not YAML; quote it"
            raise BadInput(message, code="bad-value", field="model_arg") from None
    return arguments


def build(name: str, arguments: Arguments, images: Tensor, classes: int) -> nn.Module:
    """A network of the registry, or of code, newly made: for images like `images` (N, C, ...) and `classes` classes.

    The registry's, timm's and torchvision's networks get the number of classes; the user's own code gets `arguments`
    alone. Raises BadInput for an unknown name, for code that fails, and for what is no torch module; MissingExtra if
    timm is not installed.
    """
    with seeded(0):  # the fresh weights are usually replaced, and the caller's random state stays as it is
        if not is_code(name):
            return networks.build_for(name, images, classes, **arguments)
        where, _, what = name.rpartition(":")
        options = {"num_classes": classes, **arguments}
        if where == "torchvision":
            return _made(name, _torchvision(what), options)
        if where == "timm":
            channels = {} if images.shape[1] == 3 else {"in_chans": images.shape[1]}
            return _made(name, _timm(what), channels | options)
        with _importing(where):
            return _made(name, _own(where, what), arguments)


def from_code(
    reference: str,
    file: Path | None,
    arguments: Arguments,
    dataset: str | None,
    threat: Threat,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    key: str | None = None,
    around: Around = _NOTHING,
) -> Subject:
    """The network of a reference, with the weights of `file` (None: as the code makes it), on `dataset`.

    classes: as in `datasets.load`. key: as in `weights.fill`. around: what is stated, and applied.
    Raises what `build` and `wrappers.surrounded` raise, and BadInput without data and for weights that do not fit.
    """
    if dataset is None:
        raise BadInput(f"{reference} is code; it needs --dataset", code="missing", field="dataset")
    where, _, what = reference.rpartition(":")
    pretrained = where in _LIBRARIES and (arguments.get("pretrained") or arguments.get("weights"))
    if pretrained and around.normalisation is None:
        message = f"{reference} is pretrained on normalised images; give --normalisation, which may be none"
        raise BadInput(message, code="missing", field="normalisation")
    images = resized(datasets.load(dataset, root, download, classes), around.resize)
    network = build(reference, arguments, images.test[:1].images, len(images.classes))
    notes: tuple[str, ...] = ("no weights file is given: the network has the weights that its code gives it",)
    if file is not None:
        with images.explaining():
            key, notes = weights_files.load_weights(network, file, key=key, normalisation=around.normalisation)
    files = [] if file is None else [file]
    images = as_taken(network, images)
    about = base.about(f"{Path(where).stem}-{what}", shown(reference, arguments), files, images)
    about = about.model_copy(update={"weights_notes": notes})
    subject = base.surrounded(Subject(network.eval(), images.test, threat, about), around, key)
    base.check_classes(subject.model, images)
    return subject


def _made(name: str, make: Callable[..., Any], arguments: Arguments) -> nn.Module:
    try:
        network = make(**arguments)
    except Exception as error:  # the code may fail in any way
        message = f"{name} cannot be called with {dict(arguments)!r} ({untrusted.line(error)}); see --model-arg"
        raise BadInput(message, code="bad-value", field="model") from error
    if not isinstance(network, nn.Module):
        message = f"{name} returned a {type(network).__name__}; a torch.nn.Module is needed"
        raise BadInput(message, code="bad-type", field="model")
    return network


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise nearest("model of torchvision", name, models.list_models(module=models), field="model")
    return lambda **options: models.get_model(name, **{"weights": None, **options})


def _timm(name: str) -> Callable[..., Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on today's torch it uses what is deprecated
            timm = importlib.import_module("timm")
    except ImportError:
        raise MissingExtra("timm is not installed; pip install timm", field="model") from None
    if not timm.is_model(name.partition(".")[0]):
        raise nearest("model of timm", name, timm.list_models(), field="model")
    return lambda **options: timm.create_model(name, **{"pretrained": False, **options})


def _own(where: str, what: str) -> Callable[..., Any]:
    """The callable of a file or an importable module."""
    try:
        module = _of_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except BadInput:
        raise
    except Exception as error:  # the user's module may raise anything
        message = f"{where} cannot be imported ({untrusted.line(error)}); correct it, or its name"
        raise BadInput(message, code="unreadable", field="model") from error
    make = getattr(module, what, None)
    if not callable(make):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise nearest(f"function or class of {where}", what, public, field="model")
    found: Callable[..., Any] = make
    return found


def _of_file(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"there is no file {path}", code="missing", field="model")
    name = f"atent_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as dataclasses and pickle expect it
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importing(where: str) -> Iterator[None]:
    """Let the code import what lies beside it, as `python FILE.py` does, or in the current folder."""
    folder = Path(where).resolve().parent if where.endswith(".py") else Path.cwd()
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
