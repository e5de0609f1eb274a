"""Where the measurements of a subject are written by default."""

import re
from collections.abc import Sequence
from pathlib import Path

from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.scoring import Subject


def default_path(
    subject: Path,
    loaded: Subject,
    protocol: Protocol,
    n: int | None,
    seed: int,
    drawn: bool = False,
    threats: Sequence[Threat] = (),
) -> Path:
    """The default path of a report: in the run folder, for other subjects in runs/; its name states the setting.

    threats: two or more for a report of several threat models.
    """
    count = "drawn" if drawn else f"n{len(loaded.test) if n is None else n}"
    protocol_name = re.sub(r"[^\w.+ -]", "-", protocol.name)  # of a file, it may say anything
    protocol_name += "" if loaded.part == datasets.TEST else "-held-out"
    models = "+".join(f"{threat.norm}-{threat.eps:g}" for threat in threats or (loaded.threat,))
    name = f"{'union' if threats else 'eval'}-{protocol_name}-{models}-{count}-seed{seed}.json"
    return default_folder(subject, loaded) / name


def default_folder(subject: Path, loaded: Subject) -> Path:
    """The folder of what is measured of a subject by default: the run folder, or for other subjects one in runs/."""
    digest = str(loaded.about.weights_sha256)[:8]
    return subject if subject.is_dir() else Path("runs") / f"{loaded.about.name}-{digest}"
