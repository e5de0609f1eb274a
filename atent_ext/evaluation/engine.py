"""The scoring engine: processes share the chunks, and each finished chunk is written to the journal."""

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
from atent_ext.evaluation.adversaries import Found
from atent_ext.evaluation.chunks import Chunk
from atent_ext.evaluation.journal import Journal, Progress, plain
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.run import run_protocol


def score(model: nn.Module, split: Split, chunk: Chunk, protocol: Protocol, setting: Setting, journal: Journal) -> None:
    """Score one chunk of `split` with the seed of the chunk, and write its outcomes to the journal.

    If memory runs out, the batch size is halved. The journal stores the new size before the next attempt, and a note
    reports it, because the random draws depend on it. Raises BadInput if memory runs out with a batch of one image.
    """
    begin = time.perf_counter()
    full = min(setting.batch_size, chunk.stop - chunk.start)
    batch_size = journal.batch_size(chunk) or full
    images = chunk.of(split)
    while True:
        found = Found(images)
        attempt = replace(setting, seed=chunk.seed, batch_size=batch_size, found=found)
        outcomes = _attempt(model, images, protocol, attempt)
        if outcomes is not None:
            break
        batch_size = _halved(batch_size, chunk)
        journal.keep_batch_size(chunk, batch_size)
    notes = [] if batch_size == full else [_smaller(batch_size, full)]
    results = [plain(replace(outcome, notes=(*outcome.notes, *notes))) for outcome in outcomes]
    if journal.adversaries:  # before the record, which says that the chunk is done
        journal.images(chunk).write(found)
    seconds = time.perf_counter() - begin
    journal.keep(chunk, {"batch_size": batch_size, "full": full, "seconds": seconds, "outcomes": results})


def _attempt(model: nn.Module, split: Split, protocol: Protocol, setting: Setting) -> list[Outcome] | None:
    """The outcomes of the protocol's attacks; None if memory ran out."""

    def show(outcome: Outcome) -> None:
        setting.busy(f"{outcome.attack}: {outcome.accuracy:.2%}")

    try:
        return run_protocol(model, split, protocol, setting, show)[: len(protocol.attacks)]
    except (torch.cuda.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
    # The frames of the failed attempt, and the tensors in them, are freed only after the except blocks.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _smaller(batch_size: int, full: int) -> Note:
    return Note(kind="memory", text=f"memory ran out: batches of {batch_size} images instead of {full}")


def _halved(batch_size: int, chunk: Chunk) -> int:
    if batch_size == 1:
        message = f"memory runs out with one image at a time, in chunk {chunk.number} (images {chunk.start} to "
        raise BadInput(f"{message}{chunk.stop - 1}); free memory, or use a larger machine", code="too-large")
    return batch_size // 2


def share(
    model: nn.Module,
    split: Split,
    protocol: Protocol,
    setting: Setting,
    journal: Journal,
    missing: Sequence[Chunk],
    team: PartialState,
    progress: Callable[[Progress], None],
) -> None:
    """Score this process's part of the `missing` chunks and wait for the other processes.

    Only the main process calls `progress`.
    """

    def show(text: str) -> None:
        if team.is_main_process:
            setting.busy(text)
            progress(journal.progress(team.num_processes))

    show("")
    for chunk in missing[team.process_index :: team.num_processes]:
        score(model, split, chunk, protocol, replace(setting, busy=show), journal)
        show("")
    if team.num_processes > 1:
        show("waiting for the other processes")
        team.wait_for_everyone()
