"""Errors of other packages on a network that returns something else than logits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from atent_ext.core import validate
from atent_ext.core.errors import BadInput


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
