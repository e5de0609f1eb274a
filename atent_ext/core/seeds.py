"""Seeds that follow from a user's seed, and generators: a seed that grows too large is folded, never an error."""

import torch

from atent_ext.core import validate


def derived(number: int, bits: int = validate.SEED_BITS) -> int:
    """A whole number as a seed: itself where it has at most so many bits, else its last ones.

    torch takes 64 bits, of which its generator on the CPU looks at the last 32; NumPy's old generators take 32. So
    numbers that follow each other still give seeds, and draws, that differ.
    """
    return int(number) % (1 << bits)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` that begins at `seed`. Raises BadInput for what is no seed."""
    validate.seed(seed)
    return torch.Generator(device).manual_seed(int(seed))
