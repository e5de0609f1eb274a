import subprocess
import sys

import pytest

import atent_ext


def test_every_public_name_resolves():
    for name in atent_ext.__all__:
        assert getattr(atent_ext, name).__name__ == name
        assert name in dir(atent_ext)
    assert set(atent_ext.__all__) == set(atent_ext._PUBLIC)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = atent_ext.nothing


def test_the_import_is_light():
    code = "import atent_ext, sys; print([m for m in ('torch', 'advertorch', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
