"""Delay SIGINT (Ctrl-C) and SIGTERM while a file is written."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM that arrive within the block at its end, each once.

    Does nothing outside the main thread, which is the only one that receives signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: received.append(n)) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # None is a handler that was not set by Python and cannot be set again by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for arrived in dict.fromkeys(received):
            signal.raise_signal(arrived)
