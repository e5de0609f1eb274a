"""The journal of an evaluation: the records of finished chunks, in a folder or in memory.

An interrupted evaluation resumes from it.
"""

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
from atent_ext.evaluation.adversaries import Kept
from atent_ext.evaluation.chunks import Chunk, merge
from atent_ext.storage import files, locks

Record = dict[str, Any]
_SETTING = "setting.json"


@dataclass(frozen=True)
class Progress:
    """The progress of an evaluation.

    done: finished chunks, of `chunks` in all. seconds: their total time. processes: how many share the other chunks.
    worst: (low, high), the interval of the worst case so far, of an evaluation that stops when it says enough.
    """

    done: int
    chunks: int
    seconds: float
    processes: int
    worst: tuple[float, float] | None = None

    @property
    def left(self) -> float | None:
        """Estimated seconds to the end, from the mean time of the finished chunks; None if none is finished."""
        if not self.done:
            return None
        return self.seconds / self.done * math.ceil((self.chunks - self.done) / self.processes)


class Journal:
    """The records of finished chunks, in memory or as files in a folder. Each file is written atomically."""

    def __init__(self, chunks: Sequence[Chunk], folder: Path | None = None, adversaries: bool = False) -> None:
        """adversaries: whether each chunk keeps its adversaries as well, so that one without them is not done."""
        self.chunks, self.folder, self.adversaries = chunks, folder, adversaries
        self._discarded = False
        self._memory: dict[str, Record] = {}
        self._images: dict[str, bytes] = {}

    def setting(self, overwrite: bool = False) -> Record | None:
        """The setting of the chunks in the folder; None if it holds no chunks.

        overwrite: remove chunks whose setting cannot be read. Without it they raise BadInput.
        """
        if self.folder is None or not any(self.folder.glob("[0-9]*.json")):
            return None
        stored = self._read(_SETTING)
        if stored is None and not overwrite:
            message = f"{self.folder} holds chunks and no whole {_SETTING}; delete it, or name another --out"
            raise BadInput(message, code="unreadable", field="out")
        if stored is None:
            self.clear()
        return stored

    def has(self, setting: Record) -> bool:
        """Whether the folder holds chunks of this setting."""
        return not differences(self._read(_SETTING), json.loads(json.dumps(setting)))

    def claim(self, setting: Record, overwrite: bool = False) -> None:
        """Start a journal of this setting, or resume one.

        overwrite: remove chunks of another setting. Without it they raise BadInput, which names what differs.
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
        """Remove all chunks. The folder and its lock stay."""
        for file in () if self.folder is None else sorted(self.folder.glob("[0-9]*.*")):
            file.unlink()
        self._memory.clear()
        self._images.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder for this process. It is created if needed. Lock it before you read or write in it.

        Raises BadInput, which names the other process, if the folder is locked; NotWritten if it cannot be created.
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
        """Remove the folder if it holds nothing but lock files."""
        if all(file.name.startswith(".lock") for file in folder.iterdir()):
            with suppress(OSError):
                for file in folder.iterdir():
                    file.unlink()
                folder.rmdir()

    def record(self, chunk: Chunk) -> Record | None:
        """The record of a chunk; None if the chunk is not done or its file is damaged."""
        if self.adversaries and not self.images(chunk).has():
            return None
        stored = self._read(f"{chunk.number:04d}.json")
        return stored if stored and "outcomes" in stored and stored.items() >= asdict(chunk).items() else None

    def records(self) -> list[Record]:
        """The records of the finished chunks, in order."""
        return [record for chunk in self.chunks if (record := self.record(chunk)) is not None]

    def missing(self) -> list[Chunk]:
        """The chunks that are not finished."""
        return [chunk for chunk in self.chunks if self.record(chunk) is None]

    def progress(self, processes: int) -> Progress:
        """The progress of the evaluation, over all processes."""
        done = self.records()
        return Progress(len(done), len(self.chunks), sum(record["seconds"] for record in done), processes)

    def collect(self, chunks: Sequence[Chunk] | None = None) -> list[Record]:
        """The records of these chunks (None: of all), in order. Raises BadInput if any is missing."""
        found = [(chunk.number, self.record(chunk)) for chunk in (self.chunks if chunks is None else chunks)]
        lost = ", ".join(str(number) for number, record in found if record is None)
        if lost:
            raise BadInput(
                f"chunk {lost} was scored but is not in {self.folder}: another evaluation has the same --out, or the "
                "processes have no folder in common; give an --out of its own that all of them reach",
                code="missing",
                field="out",
            )
        return [record for _, record in found if record is not None]

    def keep(self, chunk: Chunk, record: Record) -> None:
        """Write the record of a finished chunk."""
        self._write(f"{chunk.number:04d}.json", asdict(chunk) | record)

    def images(self, chunk: Chunk) -> Kept:
        """The place of the adversaries of a chunk."""
        return Kept(f"{chunk.number:04d}.npz", self.folder, self._images)

    def batch_size(self, chunk: Chunk) -> int | None:
        """The reduced batch size of a chunk that ran out of memory; None if it did not."""
        stored = self._read(f"{chunk.number:04d}.batch.json")
        return None if stored is None else int(stored["batch_size"])

    def keep_batch_size(self, chunk: Chunk, batch_size: int) -> None:
        """Write the batch size to try next."""
        self._write(f"{chunk.number:04d}.batch.json", {"batch_size": batch_size})

    def discard(self) -> None:
        """Remove the folder. The chunks go first, so that a kill in between leaves a folder that can be resumed."""
        if self.folder is not None:
            self.clear()
            shutil.rmtree(self.folder)
            self._discarded = True  # from now on, a folder of this name belongs to another process

    def _read(self, name: str) -> Record | None:
        if self.folder is None:
            return self._memory.get(name)
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _write(self, name: str, record: Record) -> None:
        if self.folder is None:
            self._memory[name] = record
        else:
            files.write(self.folder / name, json.dumps(record, indent=1) + "\n")


@dataclass(frozen=True)
class Difference:
    """A field of a setting that changed from `old` to `new`. name: its path, such as "protocol.attacks.1.steps"."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} = {self.old!r}, not {self.new!r}"


def differences(old: Any, new: Any) -> list[Difference]:
    """The fields that differ between two settings, in the order of `new`. The value of a missing field is None."""
    before, after = _flat(old), _flat(new)
    pairs = {name: (before.get(name), after.get(name)) for name in {**after, **before}}
    return [Difference(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested data as a flat mapping from paths such as "protocol.attacks.1.steps" to values."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return dict(chain(*(_flat(part, f"{name}.{key}" if name else str(key)).items() for key, part in parts)))


# ---- outcomes as plain data, and back


def plain(outcome: Outcome) -> Record:
    """An outcome as JSON data. The flags are a string of 0 and 1."""
    flags = "".join("01"[int(flag)] for flag in outcome.flags)
    notes = [note.model_dump() for note in outcome.notes]
    plainly = {"settings": dict(outcome.settings), "per_image": dict(outcome.per_image)}
    return {**vars(outcome), **plainly, "notes": notes, "flags": flags}


def _outcome(record: Record) -> Outcome:
    flags = torch.tensor([flag == "1" for flag in record["flags"]], dtype=torch.bool)
    return Outcome(**record | {"flags": flags, "notes": tuple(Note(**note) for note in record["notes"])})


def outcomes(records: Sequence[Record]) -> list[Outcome]:
    """The outcomes of the protocol, merged over all chunks, then their worst case if there are several."""
    return merge([[_outcome(stored) for stored in record["outcomes"]] for record in records])


def smaller_batches(records: Sequence[Record]) -> dict[str, int]:
    """The reduced batch sizes of the chunks that ran out of memory: chunk number -> images per batch."""
    return {str(record["number"]): record["batch_size"] for record in records if record["batch_size"] < record["full"]}
