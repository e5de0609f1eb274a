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
    """Seed torch's global random state, on every device that there is.

    Where there is the CPU alone, `torch.manual_seed` would queue a call with its whole traceback, every time, for each
    kind of accelerator. Raises BadInput for an invalid seed.
    """
    validate.seed(seed)
    (torch if _accelerated() else torch.default_generator).manual_seed(int(seed))


def _accelerated() -> bool:
    if hasattr(torch, torch._C._get_privateuse1_backend_name()):  # a device of another package
        return True
    kinds = [getattr(torch, name, None) for name in ("cuda", "xpu", "mtia")]
    return torch.backends.mps.is_available() or any(kind is not None and kind.is_available() for kind in kinds)
