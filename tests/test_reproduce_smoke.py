"""Every table and figure of the papers at its smallest scale, on digits: the figures that come out are asserted."""

import json

import pytest

from atent_ext.papers import study
from atent_ext.papers.reproduce import reproduce
from atent_ext.papers.rows import Workshop

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A function from a study's name to its result; runs are shared between studies."""
    out = tmp_path_factory.mktemp("smoke")

    def result(name):
        target = out / f"{name}-smoke.json"
        if not target.exists():
            reproduce(study.load(name), Workshop("smoke", out / "runs"), target)
        return json.loads(target.read_text())

    result.out = out
    return result


def accuracies(result):
    """Row -> column -> accuracy in %."""
    return {
        row["name"]: {name: 100 * cell["accuracy"] for name, cell in row.get("cells", {}).items() if "accuracy" in cell}
        for row in result["rows"]
    }
