"""An evaluation in chunks: each is scored by itself, with a seed of its own, and its flags are kept when it is done.

Chunk k of size s holds the images k s to (k + 1) s - 1 of the test set and is scored with `seed + k`. So no flag
depends on the other chunks, on which process scores which, or on interruptions, and anybody can repeat one chunk alone.
"""

import gc
import json
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from atent_ext import checkpoints, checks, locks
from atent_ext.data import Split
from atent_ext.errors import BadInput
from atent_ext.evaluation import Outcome, Protocol, Setting, evaluate, worst_case

Record = dict[str, Any]
_SETTING = "setting.json"


@dataclass(frozen=True)
class Chunk:
    """Part `number` of a test set: the images [start, stop), scored with `seed`."""

    number: int
    start: int
    stop: int
    seed: int

    def of(self, split: Split) -> Split:
        """Its images and labels."""
        return Split(split.images[self.start : self.stop], split.labels[self.start : self.stop])


def cut(count: int, size: int, seed: int = 0) -> list[Chunk]:
    """`count` images in chunks of `size`, of which the last may be smaller. Raises BadInput for a size below 1."""
    checks.steps("chunk", size)
    starts = range(0, count, size)
    return [Chunk(number, start, min(start + size, count), seed + number) for number, start in enumerate(starts)]


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


# ---- what is kept


class Journal:
    """The records of finished chunks: files in a folder, each written whole when its chunk is done, or in memory."""

    def __init__(self, chunks: Sequence[Chunk], folder: Path | None = None) -> None:
        self.chunks, self.folder = chunks, folder
        self._discarded = False
        self._memory: dict[str, Record] = {}

    def setting(self) -> Record | None:
        """What the chunks in the folder were scored under; None without chunks. Raises BadInput if that is unknown."""
        if self.folder is None or not any(self.folder.glob("[0-9]*.json")):
            return None
        found = self._read(_SETTING)
        if found is None:
            raise BadInput(f"{self.folder} holds chunks and no whole {_SETTING}; delete it, or name another --out")
        return found

    def claim(self, setting: Record) -> None:
        """Begin, or go on with the chunks of the same setting. Raises BadInput that names what differs."""
        setting = json.loads(json.dumps(setting))
        stored = self.setting()
        if stored is None:
            return self._write(_SETTING, setting)
        old, new = _flat(stored), _flat(setting)
        for name in (name for name in {**new, **old} if old.get(name) != new.get(name)):
            raise BadInput(
                f"{self.folder} holds chunks scored with {name} = {old.get(name)!r}, not {new.get(name)!r}; "
                "name another --out to keep them, or delete the folder to start anew"
            )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder, made where there is none, for this process alone, before anything in it is read or written.

        Raises BadInput, which names the other process, if one has it, and NotWritten where it cannot be made.
        """
        if self.folder is None:
            yield
            return
        with locks.held(checkpoints.folder(self.folder), "wait for it, or name another --out"):
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
            for file in self.folder.glob("[0-9]*.json"):
                file.unlink()
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
            checkpoints.write(self.folder / name, json.dumps(record, indent=1) + "\n")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested data as one value a name: "protocol.attacks.1.steps"."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return dict(chain(*(_flat(part, f"{name}.{key}" if name else str(key)).items() for key, part in parts)))


# ---- scoring one


def score(model: nn.Module, split: Split, chunk: Chunk, protocol: Protocol, setting: Setting, journal: Journal) -> None:
    """Score one chunk of `split` and keep its outcomes; `setting.seed` gives way to the chunk's.

    Where memory runs out the batch size is halved, which is kept before it is tried again and said in a note: the
    random draws follow it. Raises BadInput if one image at a time is too much.
    """
    begin = time.perf_counter()
    full = min(setting.batch_size, chunk.stop - chunk.start)
    batch_size = journal.batch_size(chunk) or full
    while True:
        tried = replace(setting, seed=chunk.seed, batch_size=batch_size)
        found = _attempt(model, chunk.of(split), protocol, tried)
        if found is not None:
            break
        batch_size = _halved(batch_size, chunk)
        journal.keep_batch_size(chunk, batch_size)
    notes = [] if batch_size == full else [f"memory ran out: batches of {batch_size} images instead of {full}"]
    plain = [_plain(replace(outcome, notes=(*outcome.notes, *notes))) for outcome in found]
    seconds = time.perf_counter() - begin
    journal.keep(chunk, {"batch_size": batch_size, "full": full, "seconds": seconds, "outcomes": plain})


def _attempt(model: nn.Module, split: Split, protocol: Protocol, setting: Setting) -> list[Outcome] | None:
    """The outcomes of the protocol's attacks; None if memory ran out."""

    def tell(outcome: Outcome) -> None:
        setting.busy(f"{outcome.attack}: {outcome.accuracy:.2%}")

    try:
        return evaluate(model, split, protocol, setting, tell)[: len(protocol.attacks)]
    except (torch.cuda.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # Only here are the frames of the failed attempt gone, with all that they held.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _halved(batch_size: int, chunk: Chunk) -> int:
    if batch_size == 1:
        raise BadInput(
            f"memory runs out with one image at a time, in chunk {chunk.number} (images {chunk.start} to "
            f"{chunk.stop - 1}); free memory, or use a larger machine"
        )
    return batch_size // 2


def _plain(outcome: Outcome) -> Record:
    flags = "".join("01"[int(flag)] for flag in outcome.flags)
    return {**vars(outcome), "settings": dict(outcome.settings), "notes": list(outcome.notes), "flags": flags}


def _outcome(record: Record) -> Outcome:
    flags = torch.tensor([flag == "1" for flag in record["flags"]], dtype=torch.bool)
    return Outcome(**record | {"flags": flags, "notes": tuple(record["notes"])})


# ---- all together


def share(
    model: nn.Module,
    split: Split,
    protocol: Protocol,
    setting: Setting,
    journal: Journal,
    missing: Sequence[Chunk],
    team: PartialState,
    progress: Callable[[Standing], None],
) -> None:
    """Score this process's part of the `missing` chunks and wait for the others'; only the first process reports."""

    def show(text: str) -> None:
        if team.is_main_process:
            setting.busy(text)
            progress(journal.standing(team.num_processes))

    show("")
    for chunk in missing[team.process_index :: team.num_processes]:
        score(model, split, chunk, protocol, replace(setting, busy=show), journal)
        show("")
    if team.num_processes > 1:
        show("waiting for the other processes")
        team.wait_for_everyone()


def outcomes(records: Sequence[Record]) -> list[Outcome]:
    """The merged outcomes of the protocol, and their worst case if there are several."""
    return merge([[_outcome(found) for found in record["outcomes"]] for record in records])


def smaller_batches(records: Sequence[Record]) -> dict[str, int]:
    """The batch sizes of chunks for which memory did not reach: chunk number -> images."""
    return {str(record["number"]): record["batch_size"] for record in records if record["batch_size"] < record["full"]}


def merge(parts: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of one protocol on consecutive chunks as outcomes on all images, then their worst case if several.

    Flags follow each other; seconds, and AutoAttack's counts, are added; a note that not all chunks have alike is said
    once, with how many chunks have one of its kind. Raises BadInput if the chunks were not attacked in the same way.
    """
    merged = [_joined(same) for same in zip(*parts, strict=True)]
    return [*merged, worst_case(merged)] if len(merged) > 1 else merged


def _joined(parts: Sequence[Outcome]) -> Outcome:
    first = parts[0]
    for part in parts:
        if (part.attack, part.settings) != (first.attack, first.settings):
            raise BadInput(f"chunks were scored by {first.attack} and by {part.attack} of other settings; start anew")
    return Outcome(
        first.attack,
        first.settings,
        torch.cat([part.flags for part in parts]),
        sum(part.seconds for part in parts),
        _united([part.notes for part in parts]),
        {name: sum(part.robust_after[name] for part in parts) for name in first.robust_after},
    )


def _united(notes: Sequence[Sequence[str]]) -> tuple[str, ...]:
    common = [note for note in dict.fromkeys(chain(*notes)) if all(note in some for some in notes)]
    kinds: dict[str, list[str]] = {}
    for some in notes:
        mine = {_kind(note): note for note in reversed(some) if note not in common}
        for kind, note in mine.items():
            kinds.setdefault(kind, []).append(note)
    others = [f"in {len(found)} of {len(notes)} chunks; first: {found[0]}" for found in kinds.values()]
    return (*common, *others)


def _kind(note: str) -> str:
    return re.sub(r"[\d.]+", "", note)
