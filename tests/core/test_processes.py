import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import warm

from atent_ext.core import processes

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SECOND_OF_TWO = dict(zip(NAMES, ("1", "1", "2", "localhost", "29500"), strict=True))
"""What torchrun and `accelerate launch` set in the second of two processes."""
LEFT_OVER = [
    {},
    {"RANK": "1"},
    {"LOCAL_RANK": "1"},
    {"WORLD_SIZE": "2"},
    SECOND_OF_TWO | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
    SECOND_OF_TWO | {"WORLD_SIZE": "two"},
    *({key: value for key, value in SECOND_OF_TWO.items() if key != name} for name in NAMES),
]
"""No launcher of several processes sets just these."""


def python(code, variables):
    """What a process prints that has these variables of a launcher and no others."""
    environment = {key: value for key, value in os.environ.items() if key not in NAMES} | variables
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def environment(monkeypatch):
    def given(variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return given


@pytest.mark.parametrize("variables", LEFT_OVER)
def test_what_is_left_of_a_launcher_is_no_launcher(environment, variables):
    environment(variables)
    assert not processes.several()
    assert processes.is_main()


def test_a_launchers_processes_are_several_of_which_the_first_is_the_main_one(environment):
    environment(SECOND_OF_TWO)
    assert processes.several()
    assert not processes.is_main()
    environment(SECOND_OF_TWO | {"RANK": "0"})
    assert processes.several()
    assert processes.is_main()


@pytest.mark.parametrize("variables", LEFT_OVER)
def test_accelerate_sees_no_process_in_what_is_left(environment, variables):
    environment(variables)
    with processes.joining() as cpu:
        assert not cpu
        assert {"RANK", "LOCAL_RANK", "WORLD_SIZE"} & set(os.environ) == set()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == variables


def test_what_is_hidden_comes_back_after_an_error(environment):
    environment({"LOCAL_RANK": "1"})
    with contextlib.suppress(KeyError), processes.joining():
        raise KeyError
    assert os.environ["LOCAL_RANK"] == "1"


def test_accelerate_sees_what_a_launcher_sets(environment):
    environment(SECOND_OF_TWO)
    with processes.joining():
        assert {name: os.environ[name] for name in NAMES} == SECOND_OF_TWO


ACCELERATOR = (
    "training import loop, recipes, run_folder; "
    "state = loop._accelerator(recipes.load('digits-linf-sgd'), run_folder.RunFolder('run'))"
)


@pytest.mark.parametrize(
    "joined",
    ["core.processes import state; state = state()", ACCELERATOR],
)
@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "1"}, {"WORLD_SIZE": "2"}], ids=lambda given: next(iter(given)))
def test_scoring_and_training_go_alone_where_a_shell_has_left_a_variable(joined, variables):
    code = f"from atent_ext.{joined}; print(state.num_processes, state.is_main_process)"
    with warm.starts() if "LOCAL_RANK" in variables else contextlib.nullcontext():  # set after the imports, or before
        assert python(code, variables) == ["1", "True"]


def test_the_first_process_speaks_and_so_does_one_alone():
    code = "import sys; from atent_ext.cli.options import console; print(console.quiet, 'torch' in sys.modules)"
    assert python(code, {"RANK": "1"}) == ["False", "False"]
    assert python(code, SECOND_OF_TWO | {"RANK": "0"}) == ["False", "False"]
    assert python(code, SECOND_OF_TWO) == ["True", "False"]


def test_asking_imports_neither_torch_nor_accelerate():
    code = "import sys; from atent_ext.core import processes; processes.several(), processes.is_main()"
    assert python(f"{code}; print('torch' in sys.modules, 'accelerate' in sys.modules)", {}) == ["False", "False"]


def test_one_process_alone_has_its_own_word():
    assert processes.from_main(SimpleNamespace(num_processes=1), "mine") == "mine"
