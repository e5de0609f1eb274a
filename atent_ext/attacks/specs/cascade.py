"""A cascade as one attack of a protocol: each stage attacks only the images that all earlier ones did not break."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue
from torch import Tensor, nn

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.attacks.spec import AnyAttack, AttackSpec, Note, Outcome, Setting
from atent_ext.attacks.specs.gradient import FGSMSpec, PGDSpec
from atent_ext.core import registry
from atent_ext.core.schema import Count, Positive, Section, Threat
from atent_ext.data.datasets import Split


class CascadeSpec(AttackSpec):
    """Attacks in stages: an image that a stage breaks is not attacked by the later ones.

    `robust_after` counts the images that are left, as AutoAttack's does. If the stages are those whose bias against
    AutoAttack was measured (`Bias`), a note says how large it was; if not, that it is unknown.
    """

    attack: Literal["cascade"] = "cascade"
    stages: Annotated[tuple[AnyAttack, ...], Field(min_length=1)] = (FGSMSpec(), PGDSpec())

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images, stage by stage."""
        flags = clean_flags(model, split, setting.batch_size)
        left, notes = {"clean": int(flags.sum())}, list[Note]()
        for name, stage in zip(self.names, self.stages, strict=True):
            rows = flags.nonzero().flatten()
            if len(rows):
                setting.busy(f"{name} on {len(rows)} images")
                part = Split(split.images[rows], split.labels[rows])
                outcome = stage.run(model, part, replace(setting, found=_of(rows, setting.found)))
                flags[rows] &= outcome.flags
                notes += outcome.notes
            left[name] = int(flags.sum())
        settings = {"stages": [stage.model_dump(mode="json") for stage in self.stages]}
        notes.append(Note(kind="bias", text=bias(settings["stages"], setting.threat.norm)))
        return Outcome("attack", "cascade", settings, flags, notes=tuple(dict.fromkeys(notes)), robust_after=left)

    @property
    def names(self) -> list[str]:
        """The stages' names; the second stage with the same name is called "NAME 2"."""
        names = [stage.attack for stage in self.stages]
        counts = [names[: place + 1].count(name) for place, name in enumerate(names)]
        return [name if count == 1 else f"{name} {count}" for name, count in zip(names, counts, strict=True)]

    def for_random_network(self) -> AttackSpec:
        """The stages' variants for networks with random outputs."""
        return self.model_copy(update={"stages": tuple(stage.for_random_network() for stage in self.stages)})


def _of(rows: Tensor, found: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    """`found` for the images `rows` of its own."""
    return lambda at, adversaries: found(rows[at], adversaries)


class Measured(Section):
    """Where a bias was measured: the data set, the threat model, and on how many networks."""

    dataset: str
    threat: Threat
    networks: Count


class Bias(Section):
    """How much more accuracy a cascade leaves than AutoAttack on the same images, measured by eval/benchmarks/fast.py.

    mean, worst: percentage points over `networks` networks of which AutoAttack leaves images; `measured` says where.
    images: their number in all networks together. passes, seconds: the largest share of AutoAttack's cost, over `pairs`
    networks. tuned: whether the stages were chosen partly on these images.
    """

    stages: tuple[dict[str, JsonValue], ...]
    measured: Annotated[tuple[Measured, ...], Field(min_length=1)]
    networks: Count
    images: Count
    mean: float
    worst: float
    pairs: Count
    passes: Positive
    seconds: Positive
    tuned: bool = False


def bias(stages: Sequence[Mapping[str, Any]], norm: str) -> str:
    """What is known of the bias of a cascade with these stages against AutoAttack in this norm."""
    file = registry.folder("protocol") / "fast.json"
    known = Bias.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    start = "this is not AutoAttack, and the accuracy is an upper bound"
    if known is None or list(stages) != known.model_dump(mode="json")["stages"]:
        return f"{start}; how much more these attacks leave than AutoAttack was not measured"
    if norm not in {one.threat.norm for one in known.measured}:
        return f"{start}; how much more these attacks leave than AutoAttack in {norm} was not measured"
    where = "; ".join(
        f"{one.dataset}, {one.threat.norm} eps {one.threat.eps:g}: {one.networks}" for one in known.measured
    )
    text = (
        f"{start}: on {known.networks} networks ({where}) of which AutoAttack left images, and {known.images} images "
        f"in all, these attacks left {known.mean:+.2f} points more in the mean, {known.worst:+.2f} at worst"
    )
    chosen = "the stages were chosen partly on these images, so that this is somewhat flattering"
    return f"{text}; {chosen}" if known.tuned else text
