"""As in the original, gradient calls are counted in a global variable that nothing resets."""

from pyautoattack.checks import funcs as funcs
