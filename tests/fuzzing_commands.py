"""Command lines drawn by hypothesis, run in this process: exit code 0, 1 or 2 and no traceback; see `outcome`.

The words of a command make sense, or one or two of them are replaced, left out or doubled by something odd. They name
files of one folder: `workshop` fills it with a small run, broken files and cards. Nothing is fetched.
"""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from atent_ext.cli import app

TRAINING = ("epochs=1", "validation.count=20", "validation.steps=1")
Words = tuple[str, ...]


def run(words: Words) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `atent WORDS`, of which the streams are as a terminal's."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("surrogateescape", "backslashreplace")]
    before = sys.argv
    sys.argv = ["atent", *words]
    code: Any = 0
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            app.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = before
    out, err = (_written(stream) for stream in streams)
    return code, out, err


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


def outcome(words: Words) -> str:
    """`exit code N`; asserts what is promised of every command, whatever its words."""
    code, _, err = run(words)
    assert code in (0, 1, 2), f"exit code {code!r}"
    assert "Traceback" not in err, "a traceback"
    if code == 2:
        assert err.strip(), "refused without a word"
    ours = [line for line in err.splitlines() if line.startswith("atent: ")]
    assert not ours or len(err.splitlines()) == 1, "a refusal of more than one line"
    return f"exit code {code}"


@contextmanager
def workshop(folder: Path) -> Iterator[None]:
    """Work in `folder`, with what the commands name in it, and without the real data sets."""
    home, environment, handler = Path.cwd(), dict(os.environ), signal.getsignal(signal.SIGTERM)
    os.environ.pop("ATENT_DATA", None)
    place = folder / "a" / "b"
    place.mkdir(parents=True)
    os.chdir(place)
    try:
        changes = [word for change in TRAINING for word in ("--set", change)]
        assert run(("train", "digits-linf-sgd", *changes, "--out", "run"))[0] == 0
        assert run(("submission", "new", "run", "--out", "sent", "--authors", "A", "--license", "MIT"))[0] == 0
        _broken_files()
        yield
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGTERM, handler)


_CONTENTS: Mapping[str, bytes] = {
    "empty.json": b"",
    "list.json": b"[1, 2]",
    "number.yaml": b"3",
    "null.json": b"null",
    "deep.json": b"[" * 100_000,
    "broken.yaml": b"a: [1, {",
    "tags.yaml": b"!!python/object/apply:os.getcwd []",
    "bytes.yaml": b"\xff\xfe\x00a",
    "broken.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ",
    "broken.pt": b"not a pickle",
    "broken.npz": b"PK\x03\x04",
}


def _broken_files() -> None:
    for name, content in _CONTENTS.items():
        Path(name).write_bytes(content)
    for name in ("folder", "images/train", "images/test"):
        Path(name).mkdir(parents=True)
    weights = Path("run/weights.safetensors").read_bytes()
    for name, file, content in (
        ("odd-run", "recipe.yaml", b"name: odd"),
        ("list-run", "recipe.yaml", b"[1, 2]"),
        ("cut-run", "recipe.yaml", Path("run/recipe.yaml").read_bytes()),
        ("bad-card", "card.yaml", b"name: 3\nauthors: [1"),
        ("list-card", "card.yaml", b"[1]"),
    ):
        Path(name).mkdir()
        (Path(name) / file).write_bytes(content)
    Path("cut-run/weights.safetensors").write_bytes(weights[: len(weights) // 2])
    Path("cards").mkdir()
    for name, card in (("a.json", {}), ("b.json", [1]), ("c.json", {"format": 1, "name": "a"})):
        (Path("cards") / name).write_text(json.dumps(card))


# ---- words

_RUN = ("run", "run", "run", "run", "sent")
_FILES = st.sampled_from(
    (
        *(*_CONTENTS, *_RUN, *_RUN, "run/weights.safetensors", "run/recipe.yaml", "run/metrics.jsonl", "odd-run"),
        *("list-run", "cut-run", "sent/card.yaml", "bad-card", "list-card", "cards", "cards/a.json", "cards/c.json"),
        *("folder", "images", "missing", "missing/file", ".", "/dev/null", "robustbench:Nobody2020", "robustbench:"),
        *("hf:", "hf:a"),
    )
)
_TEXT = st.text(st.characters(exclude_characters="\0/~", exclude_categories=()), max_size=6)
_ODD = st.one_of(
    _FILES,
    _TEXT.filter(lambda text: not text.startswith("-")),
    st.sampled_from(
        ("-1", "0", "1", "1.5", "1e400", "nan", "inf", "-inf", "1/0", "8/255", "1/", "٣", "", " ", "--", "-")
    )
    | st.sampled_from((str(2**63), str(2**70), "9" * 5000, "x" * 300, "a=b", "=", "epochs", "\udcff", "a\nb", "[red]"))
    | st.sampled_from(("--help", "--nothing", "--seed", "--out", "--n", "-x", "--set", "Linf", "L7", "digits", "npz:")),
)
_RECIPES = st.sampled_from(("digits-linf-sgd", "digits-linf-atent", "digits-l2-atent", "mnist-linf-atent"))
_DATA = st.sampled_from(("digits", "mnist", "npz:broken.npz", "npz:missing", "folder:images", "folder:missing", "npz:"))
_SEED = {"--seed": st.sampled_from(("0", "1", "7"))}
_ROOT = {"--data-root": _FILES}
_NAMES = st.sampled_from(("objective.steps", "objective.eps", "optimizer.lr", "epochs", "batch_size", "seed", "model"))
_VALUES = st.sampled_from(("0", "-1", "nan", "a", "[]", "{a: 1}", "1e400", "null", "", "!!python/none", "[", "true"))
_CHANGES = st.builds("{}={}".format, _NAMES, _VALUES)
_OUT = {"--out": st.sampled_from(("new", "new/er", "run", "folder", "list.json", "list.json/inside", "out.json"))}

Options = Mapping[str, st.SearchStrategy[str] | None]
"""An option's value, or None for one that takes none."""

# The keys are never replaced: their options keep `quickstart`, `reproduce` and others from going to work in earnest.
_COMMANDS: Mapping[str, tuple[list[st.SearchStrategy[str]], Options]] = {
    "": ([], {"--version": None, "--help": None}),
    "reproduce --scale=huge": ([st.sampled_from(("v2-table2", "v9"))], {"--row": _TEXT, **_OUT, **_SEED}),
    "train": ([_FILES], {"--set": _CHANGES, "--resume": None, "--overwrite": None, **_OUT, **_SEED, **_ROOT}),
    "train --set=objective.steps=0": ([_RECIPES], {"--set": _CHANGES, **_OUT, **_SEED}),
    "eval --protocol=quick --n=2": (
        [_FILES],
        {
            **{"--protocol": st.sampled_from(("quick", "pgdd")), "--n": st.sampled_from(("1", "0", "999"))},
            **{"--model": st.sampled_from(("digits-cnn", "small-cnn", "nothing")), "--dataset": _DATA},
            **{"--norm": st.sampled_from(("Linf", "L2")), "--eps": st.sampled_from(("0.1", "8/255", "-1"))},
            **{"--batch-size": st.sampled_from(("1", "3")), "--chunk": st.sampled_from(("1", "2"))},
            **{"--speed": st.sampled_from(("plain", "channels-last", "fast")), "--model-dir": _FILES},
            **{"--resize": st.sampled_from(("8", "0", "{crop: 99}", "a")), "--output": _TEXT, "--mean": st.just("0.5")},
            **_OUT,
            **_SEED,
            **_ROOT,
        },
    ),
    "certify --sigma=0.25 --n=9 --n0=3 --images=2": (
        [_FILES],
        {
            **{"--sigma": st.sampled_from(("0.25", "0", "-1", "nan")), "--images": st.sampled_from(("1", "2", "999"))},
            **{"--n": st.sampled_from(("1", "9")), "--n0": st.sampled_from(("1", "9")), "--radius": st.just("0.1")},
            **{"--alpha": st.sampled_from(("0.001", "0", "1", "2"))},
            **_OUT,
            **_SEED,
        },
    ),
    "export": ([_FILES], {**_OUT, "--to": st.sampled_from(("robustbench", "foolbox")), "--name": _TEXT}),
    "quickstart --set=nothing=1": ([], {"--n": st.sampled_from(("0", "361", "a")), "--set": _CHANGES, **_OUT}),
    "plot": (
        [st.sampled_from(("history", "pie")), _FILES],
        {
            "--index": st.sampled_from(("999", "-1", "a")),
            "--n": st.sampled_from(("0", "a")),
            "--dataset": _DATA,
            **_OUT,
        },
    ),
    "check --n=4": ([_FILES], {"--model": st.sampled_from(("digits-cnn", "nothing")), "--dataset": _DATA, **_SEED}),
    "doctor": ([st.sampled_from(("nobody", "tensorflow", ""))], {"--json": None}),
    "verify --protocol=nothing": (
        [_FILES],
        {"--n": st.sampled_from(("0", "1")), "--dataset": _DATA, **_OUT, **_SEED, **_ROOT},
    ),
    "board": ([], {"--cards": _FILES, **_OUT}),
    "submit": (
        [_FILES],
        {"--weights": _FILES, "--to": st.sampled_from(("robustbench", "huggingface", "nobody")), **_OUT},
    ),
    "submission new --authors=A --license=MIT": (
        [_FILES],
        {
            **{"--authors": _TEXT, "--license": _TEXT, "--link": _TEXT, "--venue": _TEXT, "--name": _TEXT},
            **{"--report": _FILES, "--model": st.just("digits-cnn"), "--dataset": _DATA, "--eps": st.just("0.1")},
            **_OUT,
        },
    ),
    "registry check": ([_FILES], {}),
    "ls": ([], {"--json": None, "--help": None}),
    "ls recipes": ([], {"--json": None}),
    "show": (
        [_RECIPES | st.sampled_from(("zoo", "mnist-linf-atnt", "empty.yaml", "broken.yaml", "list-run/recipe.yaml"))],
        {"--json": None, "--kind": st.sampled_from(("recipe", "card", "zoo"))},
    ),
    "nothing": ([_FILES], {"--out": _FILES}),
}


@st.composite
def commands(draw: Any) -> Words:
    name = draw(st.sampled_from(sorted(_COMMANDS)))
    arguments, options = _COMMANDS[name]
    begin = name.split()
    words = begin + [draw(argument) for argument in arguments]
    for option in draw(st.lists(st.sampled_from(sorted(options)), max_size=3, unique=True)) if options else ():
        value = options[option]
        words += [option] if value is None else [option, draw(value)]
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 1, 2)))):
        place = draw(st.integers(len(begin), len(words)))
        words[place : place + draw(st.integers(0, 1))] = [draw(_ODD)]
    return tuple(words)
