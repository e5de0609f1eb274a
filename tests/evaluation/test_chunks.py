import json
import logging
import random
import re
import sys
from dataclasses import asdict, replace
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from problems import SmallNet, visible
from pyautoattack import AutoAttack
from rich.console import Console
from torch import nn

from atent_ext.attacks.spec import Note, Outcome, Setting
from atent_ext.cli.console import ScoringBar
from atent_ext.core import processes
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split
from atent_ext.evaluation import chunks, engine, scoring
from atent_ext.evaluation import journal as journals
from atent_ext.evaluation.journal import Journal, Progress
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import speed

SHAPE = (1, 6, 6)
THREAT = Threat(norm="Linf", eps=0.1)
PGD = {"attack": "pgd", "steps": 1}


def protocol(*attacks):
    return Protocol(name="mine", description="", attacks=[{"attack": a} if isinstance(a, str) else a for a in attacks])


class Flat(nn.Module):
    """Class 1 where the first pixel exceeds 0.55, and no gradient: PGD ends where it starts."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.55))
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        found = (x.flatten(1)[:, 0] > self.level).to(x) + 0 * x.flatten(1).sum(1)
        return torch.stack([torch.full_like(found, 0.5), found], 1)


class Hungry(Flat):
    """Memory that holds `room` images."""

    def __init__(self, room, error=None):
        super().__init__()
        self.room = room
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory.")

    def forward(self, x):
        if len(x) > self.room:
            raise self.error
        return super().forward(x)


def gray(count):
    return Split(torch.full((count, *SHAPE), 0.5), torch.zeros(count, dtype=torch.long))


def drawn(seed, count, batch_size):
    """Which images survive the random start of PGD on `Flat`, drawn batch by batch from one generator."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    draws = torch.cat([torch.rand(size, *SHAPE, generator=generator) for size in sizes])
    return 0.5 + 0.1 * (2 * draws[:, 0, 0, 0] - 1) <= 0.55


def subject(model=None, split=None, **about):
    told = {"name": "flat", "model": "flat", "weights_sha256": "1f", "data": "gray"}
    return Subject(model or Flat(), split or gray(20), THREAT, About(**told | about))


def flags(report):
    return {result.attack: result.flags for result in report.results}


def text(tensor):
    return "".join("01"[int(flag)] for flag in tensor)


def team(index, count):
    return SimpleNamespace(
        process_index=index,
        num_processes=count,
        is_main_process=index == 0,
        device=torch.device("cpu"),
        wait_for_everyone=lambda: None,
    )


# ---- cutting


def test_a_test_set_is_cut_in_order_and_each_chunk_has_its_seed():
    cut = chunks.cut(25, 10, seed=7)
    assert [(c.number, c.start, c.stop, c.seed) for c in cut] == [(0, 0, 10, 7), (1, 10, 20, 8), (2, 20, 25, 9)]
    split = Split(torch.arange(25.0).reshape(25, 1), torch.arange(25))
    assert torch.equal(torch.cat([c.of(split).labels for c in cut]), split.labels)
    assert cut[2].of(split).images.flatten().tolist() == [20, 21, 22, 23, 24]
    assert len(chunks.cut(25, 100)) == 1
    with pytest.raises(BadInput, match="chunk is 0"):
        chunks.cut(25, 0)


def test_the_time_left_is_that_of_the_chunks_that_are_done():
    assert Progress(0, 8, 0.0, 1).left is None
    assert Progress(2, 8, 20.0, 1).left == 60
    assert Progress(3, 8, 30.0, 2).left == 30  # 5 chunks for 2 processes: three rounds
    assert Progress(8, 8, 80.0, 4).left == 0


# ---- flags of a chunk


@pytest.mark.parametrize("size", [3, 8, 20, 50])
def test_each_chunk_is_scored_with_its_own_seed(size):
    report = scoring.score(subject(), protocol("clean", PGD), seed=5, chunk=size, batch_size=4)
    expected = torch.cat([drawn(5 + k, min(size, 20 - s), min(4, size)) for k, s in enumerate(range(0, 20, size))])
    assert 0 < int(expected.sum()) < 20
    assert flags(report) == {"clean": "1" * 20, "PGD-1": text(expected), "worst case": text(expected)}
    assert (report.chunk, report.batch_size, report.processes) == (size, min(4, size), 1)
    assert (report.speed, report.smaller_batches) == ("plain", {})  # nothing to fold or to lay out otherwise
    assert report.prepared[-1] == "speed: plain"


def scored(order, split, size=5):
    journal = Journal(chunks.cut(len(split), size, 3))
    for number in order:
        engine.score(Flat(), split, journal.chunks[number], protocol(PGD), Setting(THREAT, 99, 2), journal)
    return journal


def test_the_order_of_the_chunks_and_the_number_of_processes_change_nothing():
    split = gray(23)
    expected = torch.cat([drawn(3 + k, min(5, 23 - 5 * k), 2) for k in range(5)])
    order = random.Random(0).sample(range(5), 5)
    assert order != sorted(order)
    (shuffled,) = journals.outcomes(scored(order, split).collect())
    assert torch.equal(shuffled.flags, expected)
    journal, heard = Journal(chunks.cut(23, 5, 3)), []
    missing = journal.missing()
    for index in (2, 1, 0):
        setting = Setting(THREAT, 99, 2, lambda text, index=index: heard.append(index))
        engine.share(Flat(), split, protocol(PGD), setting, journal, missing, team(index, 3), heard.append)
    (shared,) = journals.outcomes(journal.collect())
    assert torch.equal(shared.flags, expected)
    standings = [entry for entry in heard if isinstance(entry, Progress)]
    assert {entry for entry in heard if not isinstance(entry, Progress)} == {0}  # the others are silent
    assert (standings[0].done, standings[-1].done) == (3, 5)
    assert all(standing.processes == 3 for standing in standings)


def test_the_model_and_the_random_state_come_back():
    model = SmallNet(norm=True).train()
    model.norm.eval()
    before, state = [module.training for module in model.modules()], torch.random.get_rng_state()
    split = Split(torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4)
    scoring.score(subject(model, split), protocol("clean", PGD), chunk=4)
    assert [module.training for module in model.modules()] == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.fixture
def short_autoattack(monkeypatch):
    """AutoAttack's standard version with fewer steps, for those who call it directly, too."""
    original = AutoAttack._set_version

    def shortened(self, version="standard"):
        original(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = 5
        self.fab.n_iter = 3
        self.square.n_queries = 20

    monkeypatch.setattr(AutoAttack, "_set_version", shortened)


def test_autoattack_of_each_chunk_is_stock_autoattack_with_its_seed(short_autoattack, caplog):
    """The counts after each attack are those of AutoAttack's own log, added up; the last chunk is one image."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x = torch.rand(7, *SHAPE, generator=generator)
    y = model(x).argmax(1)
    y[1] = (y[1] + 1) % 12
    whole = Subject(model, Split(x, y), Threat(norm="Linf", eps=0.02), About(name="conv", model="conv", data="random"))
    heard = []
    report = scoring.score(whole, protocol("clean", "autoattack"), seed=4, chunk=6, busy=heard.append)
    found = report.results[1]
    prepared = speed.prepare(model, x[:6], report.speed)
    assert report.prepared == tuple(prepared.notes)
    assert "BatchNorm folded: 1 of 1" in report.prepared
    caplog.set_level(logging.DEBUG, "auto-attack")
    counts, trace = {}, sys.gettrace()
    for seed, part, labels in ((4, x[:6], y[:6]), (5, x[6:], y[6:])):
        caplog.clear()
        attack = AutoAttack(prepared.model, norm="Linf", eps=0.02, seed=seed)
        adversaries, _ = attack.run_standard_evaluation(part, labels, batch_size=6)
        sys.settrace(trace)
        right = text(prepared.model(adversaries).argmax(1) == labels)
        assert found.flags[:6] == right if seed == 4 else found.flags[6:] == right
        for name, share in re.findall(r"(initial|after \S+?)(?: accuracy)?: ([\d.]+)%", caplog.text):
            counts.setdefault(name, []).append(float(share) / 100 * len(part))
    assert (found.kind, found.attack) == ("autoattack", "AutoAttack")
    assert 0 < found.correct < 6
    logged = [round(sum(count)) for count in counts.values()]
    assert list(found.robust_after) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(found.robust_after.values()) == logged
    assert logged[0] == 6 > logged[1]
    given = [entry for entry in heard if entry.startswith("AutoAttack: apgd-ce on ")]
    assert given == ["AutoAttack: apgd-ce on 5 images", "AutoAttack: apgd-ce on 1 images"]


# ---- memory


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
    ],
)
def test_where_memory_runs_out_the_batch_is_halved(error, monkeypatch):
    freed = []
    monkeypatch.setattr(engine, "gc", SimpleNamespace(collect=lambda: freed.append(1)))  # which takes its time
    journal = Journal(chunks.cut(16, 8))
    model = Hungry(3, error)
    for chunk in journal.chunks:
        engine.score(model, gray(16), chunk, protocol("clean", PGD), Setting(THREAT, 0, 8), journal)
    assert len(freed) == 4
    assert set(model.batches) == {1, 2}  # 8 and 4 are too many; 1 is the check of the labels
    clean, attacked, _ = journals.outcomes(journal.collect())
    assert bool(clean.flags.all())
    assert torch.equal(attacked.flags, torch.cat([drawn(0, 8, 2), drawn(1, 8, 2)]))
    assert attacked.notes == (Note(kind="memory", text="memory ran out: batches of 2 images instead of 8"),)
    assert journals.smaller_batches(journal.collect()) == {"0": 2, "1": 2}


def test_the_machine_s_own_error_is_understood():
    class Huge(Flat):
        def forward(self, x):
            return super().forward(x) + (torch.empty(2**55) if len(x) > 2 else 0)

    journal = Journal(chunks.cut(4, 4))
    engine.score(Huge(), gray(4), journal.chunks[0], protocol("clean"), Setting(THREAT, 0, 4), journal)
    assert journals.smaller_batches(journal.collect()) == {"0": 2}


def test_a_halving_is_on_disk_before_the_next_attempt_and_kept_by_a_resumed_evaluation(tmp_path):
    path, seen = tmp_path / "r.json", []

    class Watched(Hungry):
        def forward(self, x):
            files = (tmp_path / "r.json.chunks").glob("*.batch.json")
            seen.append((len(x), [(file.name, json.loads(file.read_text())["batch_size"]) for file in files]))
            if len(seen) > 6 and self.room == 2:
                raise KeyboardInterrupt
            return super().forward(x)

        def __deepcopy__(self, memo):
            raise TypeError("stays itself, so that it is watched")

    arguments = {"n": 8, "chunk": 8, "speed": "plain", "path": path}
    with pytest.raises(KeyboardInterrupt):
        scoring.score(subject(Watched(2)), protocol("clean", PGD), **arguments)
    assert (4, [("0000.batch.json", 4)]) in seen
    assert (2, [("0000.batch.json", 2)]) in seen
    seen.clear()
    report = scoring.score(subject(Watched(100)), protocol("clean", PGD), **arguments)
    assert {size for size, _ in seen} == {1, 2}
    assert report.smaller_batches == {"0": 2}
    assert flags(report)["PGD-1"] == text(drawn(0, 8, 2))


def test_one_image_that_does_not_fit_is_refused_and_other_errors_are_not_halved():
    journal = Journal(chunks.cut(6, 4))
    arguments = (gray(6), journal.chunks[1], protocol("clean"), Setting(THREAT, 0, 4), journal)
    with pytest.raises(BadInput, match=r"memory runs out with one image at a time, in chunk 1 \(images 4 to 5\)"):
        engine.score(Hungry(0), *arguments)
    journal = Journal(chunks.cut(6, 4))
    with pytest.raises(RuntimeError, match="the model is broken"):
        engine.score(Hungry(0, RuntimeError("the model is broken")), *arguments[:-1], journal)
    assert journal.batch_size(journal.chunks[1]) is None


# ---- interruption and resumption


def stop_after(count):
    def progress(standing):
        if standing.done == count:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_evaluation_goes_on(tmp_path):
    path, folder = tmp_path / "sub" / "r.json", tmp_path / "sub" / "r.json.chunks"
    arguments = {"seed": 2, "chunk": 6, "batch_size": 4}
    whole = scoring.score(subject(), protocol("clean", PGD), **arguments)
    for count in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            scoring.score(subject(), protocol("clean", PGD), path=path, progress=stop_after(count), **arguments)
        assert [file.name for file in visible(folder)] == [*["0000.json", "0001.json"][:count], "setting.json"]
        assert not path.exists()
    kept = (folder / "0001.json").stat().st_mtime_ns
    (folder / "0000.json").write_text((folder / "0000.json").read_text()[:80])  # broken: not done
    standings = []

    def watch(standing):
        standings.append(standing.done)
        assert folder.exists()
        assert (folder / "0001.json").stat().st_mtime_ns == kept

    report = scoring.score(subject(), protocol("clean", PGD), path=path, progress=watch, **arguments)
    assert (standings[0], standings[-1]) == (1, 4)
    assert flags(report) == flags(whole)
    assert Report.load(path) == report
    assert not folder.exists()


def test_a_record_says_what_was_done(tmp_path):
    arguments = {"chunk": 8, "seed": 3, "path": tmp_path / "r.json", "progress": stop_after(2)}
    with pytest.raises(KeyboardInterrupt):
        scoring.score(subject(), protocol(PGD), **arguments)
    record = json.loads((tmp_path / "r.json.chunks" / "0001.json").read_text())
    assert record.pop("seconds") >= record["outcomes"][0].pop("seconds") > 0
    settings = {"steps": 1, "step_size": 0.25, "restarts": 1}
    outcome = {"attack": "PGD-1", "settings": settings, "flags": text(drawn(4, 8, 8)), "notes": [], "robust_after": {}}
    outcome |= {"kind": "attack", "per_image": {}, "passes": 24, "proven": 0}  # a step, and both predictions
    place = {"number": 1, "start": 8, "stop": 16, "seed": 4}
    assert record == place | {"batch_size": 8, "full": 8, "outcomes": [outcome]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"chunk": 4}, "chunk = 5, not 4"),
        ({"batch_size": 3}, "batch_size = 5, not 3"),
        ({"n": 19}, "n = 20, not 19"),
        ({"protocol": protocol("clean", PGD | {"steps": 2})}, "protocol.attacks.1.steps = 1, not 2"),
        ({"subject": replace(subject(), threat=Threat(norm="Linf", eps=0.2))}, "threat.eps = 0.1, not 0.2"),
        ({"subject": subject(weights_sha256="2e")}, "weights_sha256 = '1f', not '2e'"),
        ({"subject": subject(data="white")}, "data = 'gray', not 'white'"),
        ({"subject": subject(split=Split(gray(20).images + 0.01, gray(20).labels))}, "data_sha256 = "),
    ],
)
def test_chunks_of_another_setting_are_refused(tmp_path, change, words):
    path = tmp_path / "r.json"
    same = {"subject": subject(), "protocol": protocol("clean", PGD), "chunk": 5, "path": path}
    with pytest.raises(KeyboardInterrupt):
        scoring.score(**same, progress=stop_after(1))
    with pytest.raises(BadInput) as error:
        scoring.score(**same | change)
    for part in (str(path), "chunks", words, "name another --out", "delete the folder"):
        assert part in str(error.value)
    assert scoring.score(**same | {"batch_size": 80}).batch_size == 5  # a chunk holds no more


def test_a_second_evaluation_is_refused_before_it_touches_anything_of_the_first(tmp_path):
    """The second comes while the first has no chunk yet, with another radius; then the first is killed."""
    path, refusals = tmp_path / "r.json", []
    first = {"subject": subject(), "protocol": protocol("clean", PGD), "chunk": 5, "path": path}
    second = first | {"subject": replace(subject(), threat=Threat(norm="Linf", eps=0.3))}

    def intrude(standing):
        if standing.done:
            raise KeyboardInterrupt
        if not refusals:
            with pytest.raises(BadInput, match=r"r\.json\.chunks is in use by process") as error:
                scoring.score(**second)
            refusals.append(str(error.value))

    with pytest.raises(KeyboardInterrupt):
        scoring.score(**first, progress=intrude)
    assert len(refusals) == 1
    with pytest.raises(BadInput, match="threat"):
        scoring.score(**second)
    assert flags(scoring.score(**first)) == flags(scoring.score(**first | {"path": None}))


def test_an_evaluation_that_does_not_begin_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "prepare", lambda *_: (_ for _ in ()).throw(BadInput("no")))
    with pytest.raises(BadInput, match="no"):
        scoring.score(subject(), protocol("clean"), path=tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_chunks_is_taken_over_and_chunks_without_a_setting_are_refused(tmp_path):
    journal = Journal(chunks.cut(4, 2), tmp_path / "c")
    journal.claim({"seed": 1})
    journal.claim({"seed": 2})
    journal.keep_batch_size(journal.chunks[0], 1)
    with pytest.raises(BadInput, match="seed = 2, not 3"):
        journal.claim({"seed": 3})
    (tmp_path / "c" / "setting.json").write_text("{")
    with pytest.raises(BadInput, match="holds chunks and no whole setting"):
        journal.claim({"seed": 2})


def test_the_measured_speed_is_kept(tmp_path, monkeypatch):
    asked, resolved = [], "channels-last"

    def prepare(model, images, speed, fold):
        asked.append((speed, fold, len(images)))
        return scoring.Prepared(model, resolved if speed == "auto" else speed, False, ())

    monkeypatch.setattr(scoring, "prepare", prepare)
    same = {"protocol": protocol("clean"), "chunk": 5, "path": tmp_path / "r.json"}
    with pytest.raises(KeyboardInterrupt):
        scoring.score(subject(), speed="auto", progress=stop_after(1), **same)
    with pytest.raises(BadInput, match="speed = 'channels-last', not 'plain'"):
        scoring.score(subject(), speed="plain", **same)
    resolved = "plain"  # what a measurement would say now
    assert scoring.score(subject(), speed="auto", **same).speed == "channels-last"
    assert asked == [("auto", None, 5), ("plain", False, 5), ("channels-last", False, 5)]


def test_a_process_that_would_score_something_else_is_refused(monkeypatch, tmp_path):
    main = {"speed": "plain", "folded": False}

    def from_main(_, value):
        if value is None:  # there is no finished report
            return None
        facts, missing = value
        return facts | main | {"content_sha256": "another"}, missing

    monkeypatch.setattr(processes, "state", lambda: team(1, 2))
    monkeypatch.setattr(processes, "from_main", from_main)
    with pytest.raises(BadInput, match=r"process 1 has content_sha256 = '\w+' and the main one 'another'"):
        scoring.score(subject(), protocol("clean"), path=tmp_path / "r.json")


def test_several_processes_need_a_folder_in_common(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "state", lambda: team(0, 2))
    with pytest.raises(BadInput, match="2 processes share the chunks through a folder; give a path"):
        scoring.score(subject(), protocol("clean"))
    journal = Journal(chunks.cut(20, 5), tmp_path)
    engine.score(Flat(), gray(20), journal.chunks[2], protocol("clean"), Setting(THREAT, 0, 5), journal)
    with pytest.raises(BadInput, match=r"chunk 0, 1, 3 was scored but is not in .*give an --out of its own that all"):
        journal.collect()


# ---- merging


def outcome(name, flags, seconds=1.0, notes=(), robust_after=None, **settings):
    found = torch.tensor([letter == "1" for letter in flags])
    return Outcome("attack", name, settings, found, seconds, tuple(notes), robust_after or {})


def test_merged_outcomes_are_those_of_all_images():
    first = [outcome("clean", "110"), outcome("AutoAttack", "100", 5, robust_after={"clean": 2, "square": 1})]
    second = [outcome("clean", "11"), outcome("AutoAttack", "01", 7, robust_after={"clean": 2, "square": 1})]
    clean, attacked, worst = chunks.merge([first, second])
    assert (text(clean.flags), text(attacked.flags), text(worst.flags)) == ("11011", "10001", "10001")
    assert (attacked.seconds, worst.seconds) == (12, 14)
    assert attacked.robust_after == {"clean": 4, "square": 2}
    assert worst.settings == {"over": "clean, AutoAttack"}
    assert [o.attack for o in chunks.merge([first[:1], second[:1]])] == ["clean"]
    with pytest.raises(BadInput, match="other settings"):
        chunks.merge([[outcome("PGD", "1", steps=1)], [outcome("PGD", "1", steps=2)]])


def warning(text):
    return Note(kind="warning", text=f"AutoAttack warns: {text}")


def test_notes_are_said_once():
    always, sometimes = Note(kind="changed", text="not standard AutoAttack: 9 targets"), warning("it is random")
    few, many = (warning(f"there are {count} points with zero gradient!") for count in (3, 12))
    parts = [[always, few], [always], [always, sometimes, many], [always, few]]
    (merged,) = chunks.merge([[outcome("AutoAttack", "1", notes=notes)] for notes in parts])
    assert merged.notes == (
        always,
        Note(kind="warning", text=f"in 3 of 4 chunks; first: {few.text}"),
        Note(kind="warning", text="in 1 of 4 chunks; first: AutoAttack warns: it is random"),
    )
    (alone,) = chunks.merge([[outcome("AutoAttack", "1", notes=parts[2])]])
    assert alone.notes == tuple(parts[2])


def test_notes_of_two_kinds_are_two_notes():
    notes = Note(kind="memory", text="it has 1"), Note(kind="other", text="it has 2")
    (merged,) = chunks.merge([[outcome("PGD", "1", notes=[note])] for note in notes])
    assert [(note.kind, note.text) for note in merged.notes] == [
        ("memory", "in 1 of 2 chunks; first: it has 1"),
        ("other", "in 1 of 2 chunks; first: it has 2"),
    ]


def test_what_is_kept_of_an_outcome_is_all_of_it():
    notes = [Note(kind="boundary", text="a note")]
    before = outcome("PGD", "0110", 2.5, notes, {"clean": 3}, steps=7, attacks=["x"])
    after = journals._outcome(json.loads(json.dumps(journals.plain(before))))
    assert torch.equal(after.flags, before.flags)
    assert after.flags.dtype is torch.bool
    assert asdict(after) | {"flags": 0} == asdict(before) | {"flags": 0}


# ---- what is shown


def shown(standings, terminal):
    out = StringIO()
    console = Console(file=out, width=120, force_terminal=terminal, color_system=None)
    with ScoringBar(console) as bar:
        for standing in standings:
            bar.progress_to(standing)
            bar.busy("AutoAttack: apgd-t on 43 images")
        bar.progress.refresh()
        drawn = Console(width=120, file=StringIO(), record=True)
        drawn.print(bar.progress)
        rendered = drawn.export_text()
    return out.getvalue(), rendered


def test_the_bar_says_when_it_does_not_know_and_estimates_from_finished_chunks():
    _, before = shown([Progress(0, 4, 0.0, 1)], terminal=True)
    assert "0/4" in before
    assert "time left unknown" in before
    assert "AutoAttack: apgd-t on 43 images" in before
    said, after = shown([Progress(0, 4, 0.0, 1), Progress(1, 4, 3600.0, 1), Progress(1, 4, 9e9, 1)], terminal=True)
    assert re.search("about (3:00:00|2:59:5.) left", after)
    assert "are done" not in said


def test_without_a_terminal_there_is_a_line_per_chunk_and_resumption_is_said():
    said, _ = shown([Progress(0, 2, 0.0, 1), Progress(1, 2, 60.0, 1), Progress(2, 2, 99.0, 1)], terminal=False)
    assert said.strip() == "1 of 2 chunks are done, about 0:01:00 left"  # rich before 14.2 adds an empty line
    for terminal in (True, False):
        said, _ = shown([Progress(3, 4, 60.0, 1)], terminal)
        assert "going on where it stopped: 3 of 4 chunks are done, about 0:00:20 left" in said


def test_what_is_being_done_is_heard():
    heard = []
    scoring.score(subject(), protocol("clean", PGD), chunk=20, busy=heard.append)
    found = drawn(0, 20, 20).double().mean()
    assert [entry for entry in heard if entry] == ["clean: 100.00%", f"PGD-1: {found:.2%}", f"worst case: {found:.2%}"]
