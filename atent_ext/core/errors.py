"""The errors that a user of atent_ext may meet. The command line prints each as one line and exits with code 2."""

from typing import Literal, TypeAlias

Code: TypeAlias = Literal[
    "unknown-name",  # none of the known names
    "bad-value",  # of the right type, but out of range or without sense
    "bad-type",  # of another type
    "bad-shape",  # of another shape or length
    "missing",  # a file, a field, an option or data that is not there
    "unused",  # given where it does not apply
    "conflict",  # two things that contradict each other
    "exists",  # it would replace something
    "unreadable",  # a file that is not what it should be
    "unsafe",  # a file that could run code or lead elsewhere
    "too-large",  # beyond what is read or what memory holds
    "other-content",  # made of other settings, weights or data than these
    "in-use",  # another process has it
    "unsupported",  # a network, device or package that cannot do this
    "broken-model",  # a network whose outputs or gradients cannot be used
    "missing-extra",
    "not-written",
    "interrupted",
    "non-finite-loss",
    "terms-collected",
]
"""What kind of error it is. Programs and tests ask for it; the words are for people."""


class AtentError(Exception):
    """Base of every error that atent_ext raises on purpose.

    code: what kind of error it is. field: the argument, option or field that is wrong, None where there is none.
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
    """An argument, a file or a tensor is not what is asked for; the message names it, its value and the remedy."""


class MissingExtra(AtentError, ImportError):
    """An optional neighbour is not installed; the message names the extra that brings it."""

    code = "missing-extra"


class TermsCollected(AtentError, RuntimeError):
    """The next term of an objective was asked for before `backward()` ran on the last one."""

    code = "terms-collected"


class NotWritten(AtentError, OSError):
    """A file cannot be written; the message names it and how much room it needs."""

    code = "not-written"


class Interrupted(AtentError):
    """Ctrl-C or SIGTERM ended a command; the message says how to go on."""

    code = "interrupted"


class NonFiniteLoss(AtentError, ArithmeticError):
    """Training met a loss that is not finite; the message says where and what was kept."""

    code = "non-finite-loss"
