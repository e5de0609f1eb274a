import ast
import subprocess
import sys
from pathlib import Path

import pytest

import atent_ext


def test_every_public_name_resolves():
    for name in atent_ext.__all__:
        assert getattr(atent_ext, name).__name__ == name
        assert name in dir(atent_ext)


def test_the_public_names_are_those_that_type_checkers_see():
    stub = ast.parse(Path(atent_ext.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert set(atent_ext.__all__) == {alias.asname for node in imports for alias in node.names}
    assert isinstance(atent_ext.__version__, str)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = atent_ext.nothing


def test_the_import_is_light():
    code = "import atent_ext, sys; print([m for m in ('torch', 'advertorch', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
