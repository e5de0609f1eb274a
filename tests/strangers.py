"""Folders as strangers send them in, and how one is refused."""

from io import BytesIO
from pathlib import Path

import pytest
import torch
import yaml

from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.models import networks
from atent_ext.submissions import folder as submission_folder

CARD = {
    "name": "a-model",
    "authors": "A. Stranger",
    "architecture": {"name": "digits-cnn"},
    "dataset": "digits",
    "threat": {"norm": "Linf", "eps": 0.15},
    "license": "MIT",
}
SAVE = "a plain state dict is needed: torch.save(model.state_dict(), ...), or better a .safetensors file"
AGAIN = "download it again, from the link of the file itself"


def digits_cnn(seed=0):
    with seeded(seed):
        return networks.build("digits-cnn", classes=10, channels=1).eval()


def saved(obj, zipped=True):
    buffer = BytesIO()
    torch.save(obj, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def submission(folder, weights, file="model.pt", /, **card):
    """The folder of a submission. weights: the bytes of the file, or what torch.save is to save. card: its fields."""
    assert file == Path(file).name  # a hostile name is for the card alone
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(weights if isinstance(weights, bytes) else saved(weights))
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD | card))
    return folder


def refusal(folder, **options):
    with pytest.raises(BadInput) as error:
        submission_folder.read(folder, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def same_weights(network, other):
    mine, theirs = network.state_dict(), other.state_dict()
    assert list(mine) == list(theirs)
    assert all(mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine)
    return True
