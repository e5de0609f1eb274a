"""Per-example losses: (logits (N, classes), target) -> (N,). None of them reduces over the batch.

Labels `y` are class numbers (N,), or probabilities (N, classes) where that is said: soft labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.errors import BadInput


def _wide(values: Tensor) -> Tensor:
    # The small constants below, such as 1e-12, underflow to zero in half precision.
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def is_soft(y: Tensor) -> bool:
    """Whether labels are probabilities (N, classes)."""
    return y.dim() == 2


def likeliest(y: Tensor) -> Tensor:
    """The class numbers (N,) of labels that may be soft: the most probable class of each."""
    return y.argmax(1) if is_soft(y) else y


def expected(values: Tensor, y: Tensor) -> Tensor:
    """The mean of values (N, classes) over the labels, which may be soft: (N,)."""
    return (values * y.to(values)).sum(1) if is_soft(y) else values.gather(1, y[:, None]).squeeze(1)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy in nats, also of soft labels.

    Raises BadInput for labels >= classes on the CPU; on a GPU, CUDA reports an assertion.
    """
    validate.logits(logits, len(y))
    if is_soft(y):
        if y.shape != logits.shape:
            message = f"labels are probabilities of {y.shape[1]} classes, for a model of {logits.shape[1]} classes"
            raise BadInput(message, code="bad-shape", field="labels")
        return F.cross_entropy(_wide(logits), y.to(_wide(logits)), reduction="none")
    try:
        return F.cross_entropy(logits, y, reduction="none")
    except IndexError:
        message = f"labels reach {int(y.max())}, for a model of {logits.shape[1]} classes"
        raise BadInput(message, code="bad-value", field="labels") from None


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest other logit minus the label's: positive if and only if the prediction is wrong (0 for ties)."""
    label = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - label


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """`margin` over the difference between the largest and the third largest logit (Croce & Hein 2020, DLR).

    It does not depend on the scale of the logits, so that its gradient does not vanish where a softmax saturates. With
    two classes there is no third, and it is `margin`, whose gradient does not vanish there either.
    """
    validate.logits(logits, len(y))
    if logits.shape[1] < 3:
        return margin(logits, y)
    ordered = logits.sort(1, descending=True).values
    return margin(logits, y) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def toward(logits: Tensor, label_and_target: Tensor) -> Tensor:
    """The target's logit minus the label's; label_and_target: (N, 2) class numbers."""
    validate.logits(logits, len(label_and_target))
    pair = logits.gather(1, label_and_target)
    return pair[:, 1] - pair[:, 0]


def kl_divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)), summed over the classes (TRADES, Zhang et al. 2019, Eq. 5).

    `probabilities` (N, classes) are p; gradients flow through both arguments. p is clamped to at least 1e-12,
    because the gradient of p log p is NaN where p underflows to zero.
    """
    validate.logits(logits, len(probabilities))
    p = _wide(probabilities).clamp_min(1e-12)
    return (p * (p.log() - F.log_softmax(_wide(logits), 1))).sum(1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """MART's BCE: cross-entropy plus -log(1 - the largest wrong probability) (Wang et al. 2020, Eq. 5).

    All classes but the likeliest are wrong for a soft label.
    """
    wrong = F.softmax(_wide(validate.logits(logits, len(y))), 1).scatter(1, likeliest(y)[:, None], 0.0).amax(1)
    return cross_entropy(logits, y) - torch.log(1.0001 - wrong + 1e-12)


def mart_regularizer(adversarial: Tensor, clean: Tensor, y: Tensor) -> Tensor:
    """MART's KL(f(x) ‖ f(x')) weighted by 1 - the clean probability of the label (Wang et al. 2020, Eq. 8).

    `adversarial` and `clean` are logits (N, classes); the clean softmax is not detached. The probability of a soft
    label is the mean over it.
    """
    p = F.softmax(_wide(validate.logits(clean, len(y))), 1).clamp_min(1e-12)
    kl = (p * (p.log() - torch.log(F.softmax(_wide(validate.logits(adversarial, len(y))), 1) + 1e-12))).sum(1)
    return kl * (1.0000001 - expected(p, y))


def soft_margin(logits: Tensor, y: Tensor) -> Tensor:
    """MMA's soft logit margin: log-sum-exp of the other logits minus the label's (Ding et al. 2020, Eq. 6)."""
    validate.logits(logits, len(y))
    label = logits.gather(1, y[:, None]).squeeze(1)
    return logits.scatter(1, y[:, None], -torch.inf).logsumexp(1) - label
