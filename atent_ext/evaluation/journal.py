"""What is kept of an evaluation while it runs: the records of finished chunks, in a folder or in memory."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from atent_ext.attacks.spec import Note, Outcome
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.chunks import Chunk, merge
from atent_ext.storage import files, locks

Record = dict[str, Any]
_SETTING = "setting.json"


@dataclass(frozen=True)
class Standing:
    """How far an evaluation is: `done` of `chunks`, which took `seconds` together; `processes` share the others."""

    done: int
    chunks: int
    seconds: float
    processes: int

    @property
    def left(self) -> float | None:
        """Seconds to the end if the others take as long as those that are done, on average; None without any."""
        if not self.done:
            return None
        return self.seconds / self.done * math.ceil((self.chunks - self.done) / self.processes)


class Journal:
    """The records of finished chunks: files in a folder, each written whole when its chunk is done, or in memory."""

    def __init__(self, chunks: Sequence[Chunk], folder: Path | None = None) -> None:
        self.chunks, self.folder = chunks, folder
        self._discarded = False
        self._memory: dict[str, Record] = {}

    def setting(self, overwrite: bool = False) -> Record | None:
        """What the chunks in the folder were scored under; None without chunks.

        Where that is unknown, `overwrite` removes them; without it BadInput is raised.
        """
        if self.folder is None or not any(self.folder.glob("[0-9]*.json")):
            return None
        found = self._read(_SETTING)
        if found is None and not overwrite:
            raise BadInput(
                f"{self.folder} holds chunks and no whole {_SETTING}; delete it, or name another --out",
                code="unreadable",
            )
        if found is None:
            self.clear()
        return found

    def has(self, setting: Record) -> bool:
        """Whether the folder is that of this setting."""
        return not differences(self._read(_SETTING), json.loads(json.dumps(setting)))

    def claim(self, setting: Record, overwrite: bool = False) -> None:
        """Begin, or go on with the chunks of the same setting.

        Those of another setting are removed by `overwrite`; without it BadInput names what differs.
        """
        setting = json.loads(json.dumps(setting))
        stored = self.setting(overwrite)
        changes = [] if stored is None else differences(stored, setting)
        if changes and not overwrite:
            raise BadInput(
                f"{self.folder} holds chunks scored with {changes[0]}; name another --out to keep them, or delete the "
                "folder to start anew, as --overwrite does",
                code="other-content",
                field=changes[0].name,
            )
        if changes:
            self.clear()
        if changes or stored is None:
            self._write(_SETTING, setting)

    def clear(self) -> None:
        """Remove all chunks; the folder stays, with whoever has it."""
        for file in () if self.folder is None else sorted(self.folder.glob("[0-9]*.json")):
            file.unlink()
        self._memory.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder, made where there is none, for this process alone, before anything in it is read or written.

        Raises BadInput, which names the other process, if one has it, and NotWritten where it cannot be made.
        """
        if self.folder is None:
            yield
            return
        with locks.held(files.folder(self.folder), "wait for it, or name another --out"):
            try:
                yield
            finally:
                if self.folder.is_dir() and not self._discarded:
                    self._leave(self.folder)

    def _leave(self, folder: Path) -> None:
        """Remove a folder in which nothing was begun: what the lock made of it, and nothing else."""
        if all(file.name.startswith(".lock") for file in folder.iterdir()):
            with suppress(OSError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()

    def record(self, chunk: Chunk) -> Record | None:
        """What `score` kept of a chunk; None if it is not done, or its file is not whole."""
        found = self._read(f"{chunk.number:04d}.json")
        return found if found and "outcomes" in found and found.items() >= asdict(chunk).items() else None

    def records(self) -> list[Record]:
        """The records of all chunks that are done, in their order."""
        return [record for chunk in self.chunks if (record := self.record(chunk)) is not None]

    def missing(self) -> list[Chunk]:
        """The chunks that are not done."""
        return [chunk for chunk in self.chunks if self.record(chunk) is None]

    def standing(self, processes: int) -> Standing:
        """How far the evaluation is, by whatever process."""
        done = self.records()
        return Standing(len(done), len(self.chunks), sum(record["seconds"] for record in done), processes)

    def collect(self) -> list[Record]:
        """The records of all chunks, in their order. Raises BadInput if one is missing."""
        lost = ", ".join(str(chunk.number) for chunk in self.missing())
        if lost:
            raise BadInput(
                f"chunk {lost} was scored but is not in {self.folder}: another evaluation has the same --out, or the "
                "processes have no folder in common; give an --out of its own that all of them reach"
            )
        return self.records()

    def keep(self, chunk: Chunk, record: Record) -> None:
        """Keep what was found."""
        self._write(f"{chunk.number:04d}.json", asdict(chunk) | record)

    def batch_size(self, chunk: Chunk) -> int | None:
        """The batch size that memory ran out above; None if it did not."""
        found = self._read(f"{chunk.number:04d}.batch.json")
        return None if found is None else int(found["batch_size"])

    def keep_batch_size(self, chunk: Chunk, batch_size: int) -> None:
        """Keep the batch size to try next."""
        self._write(f"{chunk.number:04d}.batch.json", {"batch_size": batch_size})

    def discard(self) -> None:
        """Remove the folder, the setting last: whatever a kill leaves of it can be gone on with."""
        if self.folder is not None:
            self.clear()
            shutil.rmtree(self.folder)
            self._discarded = True  # whatever lies there from now on is another process's

    def _read(self, name: str) -> Record | None:
        if self.folder is None:
            return self._memory.get(name)
        try:
            found = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _write(self, name: str, record: Record) -> None:
        if self.folder is None:
            self._memory[name] = record
        else:
            files.write(self.folder / name, json.dumps(record, indent=1) + "\n")


@dataclass(frozen=True)
class Difference:
    """A part of a setting, "protocol.attacks.1.steps" say, that is `new` where it was `old`."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} = {self.old!r}, not {self.new!r}"


def differences(old: Any, new: Any) -> list[Difference]:
    """What differs between two settings of plain data, in the order of `new`; a part that is not there is None."""
    before, after = _flat(old), _flat(new)
    pairs = {name: (before.get(name), after.get(name)) for name in {**after, **before}}
    return [Difference(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested data as one value a name: "protocol.attacks.1.steps"."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return dict(chain(*(_flat(part, f"{name}.{key}" if name else str(key)).items() for key, part in parts)))


# ---- outcomes as plain data, and back


def plain(outcome: Outcome) -> Record:
    """An outcome as JSON holds it, the flags as a text of 0 and 1."""
    flags = "".join("01"[int(flag)] for flag in outcome.flags)
    notes = [note.model_dump() for note in outcome.notes]
    return {**vars(outcome), "settings": dict(outcome.settings), "notes": notes, "flags": flags}


def _outcome(record: Record) -> Outcome:
    flags = torch.tensor([flag == "1" for flag in record["flags"]], dtype=torch.bool)
    return Outcome(**record | {"flags": flags, "notes": tuple(Note(**note) for note in record["notes"])})


def outcomes(records: Sequence[Record]) -> list[Outcome]:
    """The merged outcomes of the protocol, and their worst case if there are several."""
    return merge([[_outcome(found) for found in record["outcomes"]] for record in records])


def smaller_batches(records: Sequence[Record]) -> dict[str, int]:
    """The batch sizes of chunks for which memory did not reach: chunk number -> images."""
    return {str(record["number"]): record["batch_size"] for record in records if record["batch_size"] < record["full"]}
