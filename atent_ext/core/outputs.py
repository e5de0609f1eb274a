"""What networks return, and in which precision they compute: `adapted` brings both to what attacks need.

`explained` names the error of another package on a network that returns something else than logits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.core import validate
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.model_state import evaluating, seeded

HALF = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float32, torch.float64, *HALF)


def answers(logits: Tensor) -> Tensor:
    """The predicted classes (N,) of logits (N, classes); -1, which no label is, where one is NaN: argmax prefers it."""
    return torch.where(logits.isnan().any(1), -1, logits.argmax(1))


class Unclear(ValueError):
    """Nothing says which result is to be read as logits. The text begins with "returns"; code: as of `BadInput`."""

    def __init__(self, text: str, code: Code) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Logits:
    """Which result is read as logits: its name. one: it is one logit z per image, read as the two (0, z)."""

    name: str
    one: bool


def logits_among(results: Mapping[str, Any], count: int, output: str | None = None) -> Logits:
    """Which of several results for `count` images are the logits: `output` if it is given, else the one called logits.

    Else it is the only one of shape (N, classes); without such a one, the only one of shape (N, 1) or (N,), for two
    classes. Raises Unclear for several that fit, for none, and for an `output` that does not fit.
    """
    if output is not None and output not in results:
        raise Unclear(f"returns no {output[:100]!a}; it has: {', '.join(results) or 'nothing'}", "unknown-name")
    shapes = {name: tuple(value.shape) for name, value in results.items() if _has_rows(value, count)}
    wide = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] > 1]
    one = [name for name in shapes if name not in wide]
    chosen = output if output is not None else "logits" if "logits" in shapes else None
    for names in (wide, one):
        chosen = chosen or (names[0] if len(names) == 1 else None)
        if chosen is None and names:
            listing = ", ".join(f"{name!r} {shapes[name]}" for name in names)
            raise Unclear(f"returns {listing}, and nothing says which are the logits; name them: --output", "conflict")
    if chosen not in shapes:
        which = results if output is None else {output: results[output]}
        found = ", ".join(_shape(value) for value in which.values()) or "nothing"
        raise Unclear(f"returns {found} for {count} images; logits (N, classes) are needed", "bad-shape")
    return Logits(chosen, chosen in one)


def _has_rows(value: Any, count: int) -> bool:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return floating and value.dim() in (1, 2) and len(value) == count and 0 not in value.shape


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


class Adapted(nn.Module):
    """`network` for float32 images, which it gets in its own precision, and its logits (N, classes) alone.

    dtype: of its images; None leaves them. place: key, position or attribute of the logits among its results, None for
    the only one. one: as in `Logits`.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None, place: "Place | None", one: bool) -> None:
        super().__init__()
        self.network, self.dtype, self.place, self.one = network, dtype, place, one

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, ...) to logits (N, classes); float64 stays, and half precision becomes float32."""
        result = self.network(x if self.dtype is None else x.to(self.dtype))
        logits: Tensor = result if self.place is None else _at(result, self.place)
        if self.dtype in HALF:
            logits = logits.float()
        if self.one:
            column = logits.reshape(-1, 1)
            logits = torch.cat([torch.zeros_like(column), column], 1)
        return logits


@dataclass(frozen=True)
class Place:
    """Where one of several results is: under a key or position, or in an attribute."""

    key: Any
    attribute: bool = False


@dataclass(frozen=True)
class Fitted:
    """A network that gives logits. output: the name of the result that is read, None for the only one. notes: what
    is to be said about that."""

    network: nn.Module
    output: str | None
    notes: tuple[str, ...]


def adapted(network: nn.Module, images: Tensor, output: str | None = None) -> Fitted:
    """The network, itself if it gives logits for float32 images, else an `Adapted` one. It is run on `images` (N, ...).

    output: the name of the logits among several results: a key, an attribute, or a position from 0. The network is not
    changed. Raises BadInput for images that it does not take, for results of which none or several could be the logits
    (field "output"), and for an `output` that it does not have.
    """
    dtype, value = _run(network, images)
    places = _places(value)
    results = {name: value if place is None else _at(value, place) for name, place in places.items()}
    if output is not None and output.isdecimal() and output not in results and isinstance(value, tuple):
        output = dict(enumerate(results)).get(int(output), output)  # a position in a named tuple
    try:
        chosen = logits_among(results, len(images), output)
    except Unclear as error:
        if isinstance(value, Tensor) and output is None:
            validate.logits(value, len(images))
        field = "logits" if error.code == "bad-shape" and output is None else "output"
        raise BadInput(f"the network {error}", code=error.code, field=field) from None
    place = places[chosen.name]
    notes = notes_on("network", len(results), chosen, dtype)
    if chosen.one and bool(((results[chosen.name] >= 0) & (results[chosen.name] <= 1)).all()):
        notes += (f"the outputs for {len(images)} images lie in [0, 1]: if they are probabilities, return logits",)
    own = None if dtype is torch.float32 else dtype
    fits = own is None and place is None and not chosen.one
    made = network if fits else Adapted(network, own, place, chosen.one).train(network.training)
    return Fitted(made, None if place is None else chosen.name, notes)


def notes_on(who: str, results: int, chosen: Logits, dtype: torch.dtype) -> tuple[str, ...]:
    """What is to be said about how the results of a network are read. who: "network" or "program"."""
    kind = str(dtype).removeprefix("torch.")
    rounding = ", which rounds small perturbations away" if dtype in HALF else ""
    return tuple(
        note
        for note, applies in (
            (f"the {who} returns {results} results; {chosen.name!r} is read as logits", results > 1),
            (f"the {who} has one logit, z; it is read as the two logits (0, z)", chosen.one),
            (f"the {who} computes in {kind}{rounding}; its images are attacked in float32", dtype is not torch.float32),
        )
        if applies
    )


def _run(network: nn.Module, images: Tensor) -> tuple[torch.dtype, Any]:
    """The precision that the network takes images in, and what it returns for them."""
    tensors = [*network.parameters(), *network.buffers()]
    kinds = [tensor.dtype for tensor in tensors if tensor.dtype in _FLOATS]
    if any(isinstance(module, Adapted) for module in network.modules()):
        kinds = []
    first: Exception | None = None
    for dtype in dict.fromkeys([*kinds[:1], torch.float32, *kinds]):
        try:
            with evaluating(network), seeded(0), torch.no_grad():
                return dtype, network(images.to(dtype, copy=True))  # it may work in place
        except BadInput:
            raise
        except Exception as error:  # it is anybody's network, which may assert the shape of its images
            first = first or error
    sizes = ", ".join(map(str, images.shape[1:]))
    reason = " ".join(str(first).split()) or type(first).__name__
    message = f"the network does not take images (N, {sizes}): {reason[:300]}; give it what it was made for"
    remedy = ", or resize them: --resize 224, say" if images.dim() == 4 else ""
    raise BadInput(message + remedy, code="bad-shape", field="images") from first


def _places(value: Any) -> dict[str, Place | None]:
    """The results in what a network returned, by name; None for the place of the only one."""
    if isinstance(value, Mapping):
        return {str(key): Place(key) for key in value}
    if isinstance(value, tuple | list):
        names: Sequence[str] = getattr(value, "_fields", [str(place) for place in range(len(value))])
        return {name: Place(place) for place, name in enumerate(names)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: Place(field.name, True) for field in fields(value)}
    if not isinstance(value, Tensor) and isinstance(getattr(value, "logits", None), Tensor):
        return {"logits": Place("logits", True)}
    return {"0": None}


def _at(value: Any, place: Place) -> Any:
    return getattr(value, place.key) if place.attribute else value[place.key]


@contextmanager
def explained(outputs: Callable[[], Iterable[Any]], count: int) -> Iterator[None]:
    """If a package fails in the block because a network returns no logits, raise BadInput that says so.

    outputs: calls the networks on `count` images and gives what each of them returns. Other errors stay as they are.
    """
    try:
        yield
    except BadInput:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        for output in _without_failing(outputs):
            validate.logits(output, count)
        raise


def _without_failing(outputs: Callable[[], Iterable[Any]]) -> list[Any]:
    try:
        return list(outputs())
    except Exception:  # the network itself fails, as the first error says
        return []
