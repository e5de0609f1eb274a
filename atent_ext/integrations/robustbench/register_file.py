"""The text files of a bundle that add its model to RobustBench: register.py, the entry for its model_zoo, README.md."""

import inspect

from atent_ext.core.version import __version__
from atent_ext.integrations.robustbench import registration, zoo
from atent_ext.integrations.robustbench.card import model_info, radius, scored_images
from atent_ext.integrations.robustbench.card import remarks as remarks_on
from atent_ext.integrations.robustbench.export import MEMBERS
from atent_ext.integrations.robustbench.source import Source
from atent_ext.submissions.cards import Card, Submission

_REGISTER = '''\
"""Puts a model into the zoo of robustbench 1.1.1, without atent-ext. Written by atent-ext {version}.

    import register  # in this folder
    from robustbench.utils import load_model

    model = load_model(register.NAME, register.MODELS, register.DATASET, register.THREAT)
"""

import sys
from collections import OrderedDict
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

NAME, DATASET, THREAT = {name!r}, {dataset!r}, {threat!r}
HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"


class AutoAttack:
    """Stands in for that of the package `autoattack`, which robustbench imports and PyPI does not have."""

    def __init__(self, *arguments, **options):
        raise ImportError("AutoAttack is not installed: pip install git+https://github.com/fra31/auto-attack")


def resource_filename(package, name):
    """The one function of pkg_resources that robustbench calls; setuptools no longer brings that module."""
    return str(Path(sys.modules[package].__file__).parent / name)


STAND_INS = {{
    "autoattack": {{"AutoAttack": AutoAttack}},
    "autoattack.state": {{"EvaluationState": None}},
    "pkg_resources": {{"resource_filename": resource_filename}},
}}


def there(package):
    """Whether the package can be imported."""
    return package in sys.modules or find_spec(package) is not None


def import_robustbench():
    """Import robustbench; while that runs, there are stand-ins for the modules that this environment lacks."""
    lacking = [name for name in STAND_INS if not there(name.partition(".")[0])]
    for name in lacking:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(STAND_INS[name])
    try:
        import robustbench
    finally:
        for name in lacking:
            del sys.modules[name]


import_robustbench()

from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
{network}{wrapper}{member}
zoo = model_dicts.setdefault(member, OrderedDict()).setdefault(ThreatModel(THREAT), OrderedDict())
zoo[NAME] = {{"model": lambda: {call}, "gdrive_id": "ID_OF_THE_UPLOAD"}}
'''

_OWN = '''

def architecture(file):
    """The module in a file beside this one."""
    spec = spec_from_file_location(file.stem, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


{base} = architecture(HERE / "{module}.py").{base}
'''

_KNOWN_MEMBER = """
member = BenchmarkDataset(DATASET)
"""

_NEW_MEMBER = """

{function}

# RobustBench does not know this data set; from here on, in this process, it does.
member = BenchmarkDataset._value2member_map_.get(DATASET) or {name}(BenchmarkDataset, DATASET)
"""

_ENTRY = """\
# The entry of {name} for RobustBench's model zoo. Written by atent-ext {version}.
# Threat model {threat}, eps {eps}. Images lie in [0, 1]; {scaled}.
# {place}
{own}# ID_OF_THE_UPLOAD is the id on Google Drive that the checkpoint gets.
{imported}
{wrapper}
ENTRY = (
    {name!r},
    {{
        "model": lambda: {call},
        "gdrive_id": "ID_OF_THE_UPLOAD",
    }},
)
"""

_README = """\
# {name} for RobustBench

Written by atent-ext {version} from the card of {name}. Nothing here needs atent-ext.

| File | What it is |
|---|---|
| `models/{dataset}/{threat}/{name}.pt` | the weights, a plain state dict, where `load_model` looks |
| `model_info/{dataset}/{threat}/{name}.json` | the row of the leaderboard |
| `register.py` | puts the model into RobustBench's zoo while Python runs |
| `entry.py.txt` | the entry for RobustBench's own `model_zoo` |
{own}| `issue.md` | the answers to the form "New Model(s)" |

## Load it

In this folder, with `pip install robustbench==1.1.1`:

    import register
    from robustbench.utils import load_model

    model = load_model(register.NAME, register.MODELS, register.DATASET, register.THREAT)

It takes images in [0, 1]; {scaled}.

On {measured}: {clean_acc} % clean, {autoattack_acc} % under AutoAttack ({threat}, eps {eps}).

robustbench 1.1.1 imports two modules that a fresh environment lacks: `autoattack`, which is not on PyPI, and
`pkg_resources`, which new setuptools have dropped. `register.py` supplies both while robustbench is imported, which is
enough to load models. `robustbench.benchmark` attacks: it needs
`pip install git+https://github.com/fra31/auto-attack` first.
{member}
## Submit it

1. Upload the checkpoint; put its address into `issue.md` and its id on Google Drive into `entry.py.txt`.
2. Replace the name by the paper's title, in `issue.md` and in the JSON: the card has none. Models of RobustBench are
   called after first author, year and first word of the title, as in Rice2020Overfitting.
3. Open an issue with the form "New Model(s)" at https://github.com/RobustBench/robustbench/issues and fill in the
   answers of `issue.md`; the form words its check boxes differently.
4. For the zoo, open a pull request with the entry, the JSON{file}.

## What may stand in the way

{remarks}
"""


def register(submission: Submission, network: Source) -> str:
    """The text of register.py."""
    own = _OWN.format(base=network.title, module=network.module)
    add = registration._add_member  # our own, as text
    new = _NEW_MEMBER.format(function=inspect.getsource(add), name=add.__name__)
    return _REGISTER.format(
        version=__version__,
        name=submission.name,
        dataset=submission.dataset,
        threat=submission.threat.norm,
        network=own if network.file else f"{network.imported}\n",
        wrapper=f"\n\n{network.wrapper}" if network.wrapper else "",
        member=_KNOWN_MEMBER if submission.dataset in MEMBERS else new,
        call=network.call,
    )


def entry(submission: Submission, network: Source) -> str:
    """The text of the entry for RobustBench's model_zoo."""
    dataset, norm = submission.dataset, submission.threat.norm
    place = (
        f"It belongs into the dictionary `{norm.lower()}` of robustbench/model_zoo/{dataset}.py."
        if (dataset, norm) in zoo.LEADERBOARD_EPS
        else f"RobustBench has no place for {dataset!r} and {norm}; register.py makes one."
    )
    own = f"# {network.module}.py belongs into robustbench/model_zoo/architectures.\n" if network.file else ""
    return _ENTRY.format(
        name=submission.name,
        version=__version__,
        threat=norm,
        eps=radius(submission.threat.eps),
        scaled=_scaled(submission),
        place=place,
        own=own,
        imported=network.imported,
        wrapper=f"{network.wrapper}\n" if network.wrapper else "",
        call=network.call,
    )


def readme(card: Card, network: Source) -> str:
    """The text of README.md."""
    submission = card.submission
    info = model_info(card, network.title)
    unknown = (
        f"\nRobustBench does not know the data set {info['dataset']}. `register.py` adds the name to its enumeration\n"
        "`BenchmarkDataset`, in the running Python only: `load_model` takes it then, `benchmark` has no images of it.\n"
    )
    file = f"`{network.module}.py`"
    remarks = [f"- {remark}" for remark in remarks_on(card)]
    return _README.format(
        **info,
        version=__version__,
        threat=submission.threat.norm,
        scaled=_scaled(submission),
        measured=scored_images(card),
        own=f"| {file} | the network, for RobustBench's `model_zoo/architectures` |\n" if network.file else "",
        member="" if info["dataset"] in MEMBERS else unknown,
        file=f" and {file}" if network.file else "",
        remarks="\n".join(remarks) or "Nothing that the card knows of.",
    )


def _scaled(submission: Submission) -> str:
    scale = submission.scale
    if scale is None:
        return "they are not normalised"
    return f"the network normalises them itself (mean {list(scale.mean)}, std {list(scale.std)})"
