"""All errors that atent_ext raises. The command line prints each in one line and exits with code 2."""

from typing import Literal, TypeAlias

Code: TypeAlias = Literal[
    "unknown-name",  # not a known name
    "bad-value",  # of the right type, but out of range or meaningless
    "bad-type",  # of the wrong type
    "bad-shape",  # of the wrong shape or length
    "missing",  # a file, a field, an option or data that does not exist
    "unused",  # given, but it has no effect here
    "conflict",  # two values that contradict each other
    "exists",  # a file or entry that would be overwritten
    "unreadable",  # a file that cannot be parsed, or a module that cannot be imported
    "unsafe",  # a file that could run code or that points outside its folder
    "too-large",  # above a size limit, or more than fits in memory
    "other-content",  # made with different settings, weights or data
    "in-use",  # another process holds it
    "unsupported",  # a network, device or package that does not support this
    "broken-model",  # a network whose outputs or gradients are unusable (NaN, missing)
    "missing-extra",
    "not-written",
    "interrupted",
    "non-finite-loss",
    "terms-collected",
]
"""The kind of an error. Programs and tests compare it; the wording of messages may change."""


class AtentError(Exception):
    """Base of all errors that atent_ext raises.

    code: the kind of error. field: the argument, option or field that is wrong; None if there is none.
    """

    code: Code = "bad-value"
    field: str | None = None

    def __init__(self, message: str = "", *, code: Code | None = None, field: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if field is not None:
            self.field = field


class BadInput(AtentError, ValueError):
    """An argument, a file or a tensor is invalid; the message names it, its value and the remedy."""


class MissingExtra(AtentError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""

    code = "missing-extra"


class TermsCollected(AtentError, RuntimeError):
    """The next term of an objective was requested before `backward()` ran on the previous one."""

    code = "terms-collected"


class NotWritten(AtentError, OSError):
    """A file cannot be written; the message names it and the disk space it needs."""

    code = "not-written"


class Interrupted(AtentError):
    """Ctrl-C or SIGTERM ended a command; the message says how to resume."""

    code = "interrupted"


class NonFiniteLoss(AtentError, ArithmeticError):
    """A training loss is NaN or infinite; the message says at which step and what was saved."""

    code = "non-finite-loss"
