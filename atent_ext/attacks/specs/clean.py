"""Clean accuracy as an attack of a protocol."""

from typing import Literal

from torch import nn

from atent_ext.attacks.accuracy import predict
from atent_ext.attacks.spec import AttackSpec, Outcome, Passes, Setting
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split


class CleanSpec(AttackSpec):
    """Accuracy on the unchanged images."""

    attack: Literal["clean"] = "clean"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Predict all images. Raises BadInput for logits that are NaN or infinite."""
        logits = predict(model, split.images, setting.batch_size)
        broken = int((~logits.isfinite()).any(1).sum())
        if broken:
            message = f"the model's logits are NaN or infinite for {broken} of {len(split)} images; fix the model first"
            raise BadInput(message, code="broken-model", field="logits")
        return Outcome("clean", "clean", {}, logits.argmax(1) == split.labels)

    def passes(self, classes: int) -> Passes:
        """One pass without a gradient."""
        return Passes(0, 1)
