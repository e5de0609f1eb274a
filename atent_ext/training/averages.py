"""Averages of the weights over a training, which are validated and kept instead of the last weights."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from atent_ext.core.model_state import seeded
from atent_ext.training.recipes import Recipe


def average(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The average that the recipe keeps, None if it keeps the weights themselves.

    BatchNorm's statistics are averaged with the weights by `ema`, and for `swa` measured by `measure_statistics`.
    """
    if recipe.ema is not None:
        update = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    if recipe.swa is not None:
        return AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]
    return None


def measure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set BatchNorm's running statistics to their means over batches of images (N, C, H, W) in train mode.

    Nothing happens to a network without BatchNorm. Dropout draws from a fixed seed.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta, training = [norm.momentum for norm in norms], network.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    with seeded(0), torch.no_grad():
        network.train()
        for images in batches:
            network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)
