"""The scoring engine: chunks scored one by one, shared by processes, each kept in the journal when it is done."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from atent_ext.attacks.spec import Note, Outcome, Setting
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split
from atent_ext.evaluation.chunks import Chunk
from atent_ext.evaluation.journal import Journal, Standing, plain
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.run import evaluate


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
    notes = [] if batch_size == full else [_smaller(batch_size, full)]
    results = [plain(replace(outcome, notes=(*outcome.notes, *notes))) for outcome in found]
    seconds = time.perf_counter() - begin
    journal.keep(chunk, {"batch_size": batch_size, "full": full, "seconds": seconds, "outcomes": results})


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


def _smaller(batch_size: int, full: int) -> Note:
    return Note(kind="memory", text=f"memory ran out: batches of {batch_size} images instead of {full}")


def _halved(batch_size: int, chunk: Chunk) -> int:
    if batch_size == 1:
        raise BadInput(
            f"memory runs out with one image at a time, in chunk {chunk.number} (images {chunk.start} to "
            f"{chunk.stop - 1}); free memory, or use a larger machine"
        )
    return batch_size // 2


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
