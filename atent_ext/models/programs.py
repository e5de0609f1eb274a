"""Write a network as an exported program (.pt2) that says nothing about its author's machine."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of, kept, seeded
from atent_ext.storage import files, untrusted_program
from atent_ext.storage.untrusted_program import Program

_MOST = 2**16
"""Images of one batch of the program, at most."""
_TOLERANCE = 1e-5
"""Largest difference between the logits of network and program, relative to the largest logit (or 1)."""
_OLDEST = "2.9"
"""The oldest torch that writes the format that is read here."""


def export(network: nn.Module, images: Tensor, path: Path, *, overwrite: bool = False) -> Program:
    """Write the network in eval mode as the program `path`, for any number of images; return it as it is read back.

    images (N, ...), N >= 2: examples, which are not stored. The program holds no stack traces, no paths and no sample
    inputs. It is read as `untrusted_program.read` reads it, and its logits are compared with the network's before the
    file is kept. The network is not changed. Raises BadInput under a torch below 2.9, for a path that exists (unless
    `overwrite`) or does not end in .pt2, for a network that torch.export or the reader does not take (the message has
    the reason), and for one whose logits differ.
    """
    check(path, overwrite)
    images = images[:4].detach().to(device_of(network))
    with kept(network), warnings.catch_warnings(), seeded(0):
        warnings.simplefilter("ignore")  # torch.export warns about what its users cannot change
        network.eval()
        content = _content(network, images)
        program = untrusted_program.read(content, path)
        _compare(network, program.network, images)
    files.write(path, content)
    return program


def check(path: Path, overwrite: bool = False) -> None:
    """Raise BadInput if `export` cannot write to this path or under this torch; call this before long work."""
    check_torch()
    if path.suffix != ".pt2":
        raise BadInput(f"{path} does not end in .pt2, by which programs are known", code="bad-value", field="out")
    files.replaceable(path)
    if path.exists() and not overwrite:
        raise BadInput(f"{path} exists; give --overwrite to replace it", code="exists", field="out")


def check_torch() -> None:
    """Raise BadInput under a torch that writes programs in the older format, which is not read here."""
    if torch.__version__ < f"{_OLDEST}.dev0":  # builds before a release count as of it
        message = f"torch {torch.__version__} writes programs in a format that is not read here; "
        message += f"install torch {_OLDEST} or newer"
        raise BadInput(message, code="unsupported", field="torch")


def _content(network: nn.Module, images: Tensor) -> bytes:
    """The bytes of the program, without traces of the machine that it was made on."""
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    try:
        program = torch.export.export(network, (images,), dynamic_shapes=({0: batch},))
    except Exception as error:  # tracing runs the network's own code, which can fail in any way
        message = f"{type(network).__name__} cannot be exported ({_reason(error)}); "
        message += "forward must be the same operators for every image"
        raise BadInput(message, code="unsupported", field="model") from None
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:  # keeps what the file's format needs
                node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    program._example_inputs = None
    program._guards_code = []
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _compare(network: nn.Module, program: nn.Module, images: Tensor) -> None:
    """Raise BadInput unless both give the same logits, for the images and for more and fewer of them."""
    program = program.to(images.device)
    for batch in (images, images[:1], torch.cat([images, 1 - images.flip(0)])):
        with torch.no_grad():
            with seeded(0):
                expected = network(batch)
            with seeded(0):
                found = program(batch)
        if not isinstance(expected, Tensor) or expected.shape != found.shape:
            continue  # a tuple of results, one logit: the notes of the program say what is read
        difference = float((found.double() - expected.double()).abs().max())
        if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
            message = f"the program's logits differ from the network's by {difference:.1e}, for {len(batch)} images; "
            message += "forward must not depend on values of the images or on its earlier calls"
            raise BadInput(message, code="unsupported", field="model")


def _reason(error: Exception) -> str:
    """The part of torch's long errors that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]
