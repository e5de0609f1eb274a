"""Compare the flags of all committed cards and reports between two states of the repository.

    python eval/stress/same_flags.py 806e463                # a git revision against the files of this checkout
    python eval/stress/same_flags.py 806e463 HEAD           # two revisions
    python eval/stress/same_flags.py ../other .             # two checkouts

It reads registry/cards/**/*.json and eval/results/**/*.json, and in each file every text under the key "flags", however
deep it lies. Files are matched by path, flags by their text: a file may be written anew in another layout, as long as
each text of flags is still there as often. A text that is gone counts as changed where its attack now has other flags,
else as missing. Exits with code 1 if any text was changed or is missing, and with code 2 where nothing can be compared.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("registry/cards", "eval/results")


class Result(NamedTuple):
    """The flags of one attack; `attack` is the best label that the file has for them."""

    attack: str
    flags: str


def results(value: Any, label: str = "") -> Iterator[Result]:
    """Every text under a key "flags" of parsed JSON, in order, labelled by the attack beside it or the key above it."""
    if isinstance(value, dict):
        if isinstance(value.get("flags"), str):
            yield Result(str(value.get("attack", label)), value["flags"])
        for key, below in value.items():
            yield from results(below, key)
    elif isinstance(value, list):
        for below in value:
            yield from results(below, label)


@dataclass
class Comparison:
    """Texts of flags that are in both states, among them those `moved`: in another order or with another label.

    changed, missing: a line each, with the file and the attack.
    """

    same: int = 0
    moved: int = 0
    added: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, path: str, before: list[Result], after: list[Result]) -> None:
        """Count one file."""
        kept = Counter(one.flags for one in before) & Counter(one.flags for one in after)
        self.same += kept.total()
        self.moved += kept.total() - sum(mine == theirs for mine, theirs in zip(before, after, strict=False))
        gone, new = _without(before, kept), _without(after, kept)
        replaced = Counter(one.attack for one in new)
        for one in gone:
            other = replaced[one.attack] > 0
            replaced[one.attack] -= other
            (self.changed if other else self.missing).append(f"{path}, {one.attack}: {len(one.flags)} images")
        self.added += replaced.total()


def _without(those: list[Result], kept: Counter[str]) -> list[Result]:
    """Those of `those` that are left when each text of `kept` is taken out as often as it counts."""
    rest, left = Counter(kept), []
    for one in those:
        if rest[one.flags]:
            rest[one.flags] -= 1
        else:
            left.append(one)
    return left


def read(state: str) -> dict[str, list[Result]]:
    """Path -> flags, of a checkout (a folder) or a git revision. Raises BadInput where there are no such files."""
    texts = _of_folder(Path(state)) if Path(state).is_dir() else _of_revision(state)
    found = {path: list(results(json.loads(text))) for path, text in texts}
    if not any(found.values()):
        raise BadInput(
            f"{state} has no flags in {' and '.join(FOLDERS)}; give a checkout", code="missing", field="base"
        )
    return found


def _of_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in (path for name in FOLDERS for path in sorted((folder / name).rglob("*.json"))):
        yield path.relative_to(folder).as_posix(), path.read_bytes()


def _of_revision(revision: str) -> Iterator[tuple[str, bytes]]:
    listed = _git("ls-tree", "-r", "-z", "--name-only", revision, "--", *FOLDERS).decode()
    for path in (path for path in listed.split("\0") if path.endswith(".json")):
        yield path, _git("show", f"{revision}:{path}")


def _git(*arguments: str) -> bytes:
    process = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True)
    if process.returncode:
        raise BadInput(
            f"git {arguments[0]}: {process.stderr.decode().strip()}; give a folder or a revision of this repository",
            code="unknown-name",
            field="base",
        )
    return process.stdout


app = typer.Typer(add_completion=False)


@app.command()
def main(
    base: Annotated[str, typer.Argument(help="A git revision, or the folder of a checkout.")],
    other: Annotated[str, typer.Argument(help="The same; what is compared with BASE.")] = str(ROOT),
) -> None:
    before, after = read(base), read(other)
    total = Comparison()
    for path, flags in before.items():
        total.add(path, flags, after.get(path, []))
    total.added += sum(len(flags) for path, flags in after.items() if path not in before)
    for kind, lines in (("changed", total.changed), ("missing", total.missing)):
        for line in lines:
            print(f"{kind}: {line}")
    print(
        f"{len(before)} files: {total.same} flags the same ({total.moved} of them in another place or under another "
        f"label), {len(total.changed)} changed, {len(total.missing)} missing, {total.added} added"
    )
    raise typer.Exit(bool(total.changed or total.missing))


if __name__ == "__main__":
    exit.run(app)
