"""Minimal-norm attacks of other libraries: their adversaries count only within eps."""

from abc import abstractmethod
from typing import Literal

from torch import nn

from atent_ext.attacks.accuracy import flags_under
from atent_ext.attacks.external import Attack, carlini_wagner, deepfool
from atent_ext.attacks.spec import AttackSpec, Outcome, Setting
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import Norm, norm
from atent_ext.core.schema import Count
from atent_ext.data.datasets import Split


class _Minimal(AttackSpec):
    """Base of attacks that search for the nearest adversary, independently of eps."""

    steps: Count = 40

    @abstractmethod
    def build(self, norm: Norm) -> Attack:
        """The library's attack. Raises MissingExtra if the library is not installed."""

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images. Raises MissingExtra if the library is not installed."""
        ball, eps = norm(setting.threat.norm), setting.threat.eps
        with seeded(setting.seed):
            flags = flags_under(self.build(ball), model, split, ball, eps, setting.batch_size, found=setting.found)
        return Outcome("attack", f"{self.attack}-{self.steps}", {"steps": self.steps}, flags)


class CarliniWagnerSpec(_Minimal):
    """Carlini & Wagner 2017: ℓ2 by Foolbox, ℓ∞ by ART."""

    attack: Literal["cw"] = "cw"

    def build(self, norm: Norm) -> Attack:
        """Foolbox's or ART's attack."""
        return carlini_wagner(norm, self.steps)


class DeepFoolSpec(_Minimal):
    """DeepFool (Moosavi-Dezfooli et al. 2016) by Foolbox."""

    attack: Literal["deepfool"] = "deepfool"

    def build(self, norm: Norm) -> Attack:
        """Foolbox's attack."""
        return deepfool(norm, self.steps)
