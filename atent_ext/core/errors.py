"""The errors that a user of atent_ext may meet. The command line prints each as one line and exits with code 2."""


class AtentError(Exception):
    """Base of every error that atent_ext raises on purpose."""


class BadInput(AtentError, ValueError):
    """An argument, a file or a tensor is not what is asked for; the message names it, its value and the remedy."""


class MissingExtra(AtentError, ImportError):
    """An optional neighbour is not installed; the message names the extra that brings it."""


class TermsCollected(AtentError, RuntimeError):
    """The next term of an objective was asked for before `backward()` ran on the last one."""


class NotWritten(AtentError, OSError):
    """A file cannot be written; the message names it and how much room it needs."""


class Interrupted(AtentError):
    """Ctrl-C or SIGTERM ended a command; the message says how to go on."""


class NonFiniteLoss(AtentError, ArithmeticError):
    """Training met a loss that is not finite; the message says where and what was kept."""
