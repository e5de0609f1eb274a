"""Seeds derived from a user's seed, and generators."""

import torch

from atent_ext.core import validate


def derived(number: int, bits: int = validate.SEED_BITS) -> int:
    """The last `bits` bits of a whole number, which are a valid seed.

    torch takes 64 bits, of which its CPU generator uses the last 32; NumPy's legacy generators take 32. Consecutive
    numbers therefore give different seeds and different draws.
    """
    return int(number) % (1 << bits)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device`, seeded with `seed`. Raises BadInput for an invalid seed."""
    validate.seed(seed)
    return torch.Generator(device).manual_seed(int(seed))


def everywhere(seed: int) -> None:
    """Seed torch's global random state, on the accelerator too if there is one.

    Without one, `torch.manual_seed` would queue a call with its whole traceback, every time, for each kind of them.
    Raises BadInput for an invalid seed.
    """
    validate.seed(seed)
    accelerated = torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()
    (torch if accelerated else torch.default_generator).manual_seed(int(seed))
