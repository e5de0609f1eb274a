"""The runner of all experiments: train a recipe, score a protocol, reuse finished results.

The quickstart, the studies of the papers and the zoo use it. An interrupted call resumes: a training at its last epoch,
a score at its last chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atent_ext.evaluation import scoring
from atent_ext.evaluation.journal import Progress
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import run_folder
from atent_ext.training.loop import Reporter, fit
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder, load_data


@dataclass(frozen=True)
class Runner:
    """The folders and callbacks of an experiment.

    out: folder of the run folders and reports. root, download: as in `datasets.load`. reporter: of trainings. busy:
    called with a text about the current step. progress: called with the progress of a score.
    """

    out: Path
    root: Path | None = None
    download: bool = False
    reporter: Reporter | None = None
    busy: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda current: None

    def train(self, recipe: Recipe, name: str, *, overwrite: bool = False) -> RunFolder:
        """Train a recipe in the run folder `out`/`name`, or resume it; a finished run is reused.

        Raises BadInput if the folder holds a run of another recipe and `overwrite` is False.
        """
        folder = RunFolder(self.out / name)
        images = load_data(recipe, self.root, self.download)
        resume = folder.exists() and not overwrite
        return fit(recipe, images, folder.path, resume=resume, overwrite=overwrite, reporter=self.reporter)

    def subject(self, folder: RunFolder, held_out: bool = False) -> Subject:
        """The model of a run folder with its test images, or with the images that it held out of training."""
        return run_folder.from_run(folder.path, self.root, self.download, held_out)

    def score(
        self,
        subject: Subject,
        protocol: Protocol,
        name: str,
        *,
        n: int | None = None,
        seed: int = 0,
        batch_size: int = 250,
        chunk: int | None = None,
        speed: str = "channels-last",
        overwrite: bool = False,
    ) -> Report:
        """Score a subject; the report is in the file `out`/`name`.json. An existing report of this setting is returned.

        Raises BadInput if the file holds a report of another setting and `overwrite` is False.
        """
        return scoring.score(
            subject,
            protocol,
            n=n,
            seed=seed,
            batch_size=batch_size,
            chunk=chunk,
            speed=speed,
            path=self.out / f"{name}.json",
            overwrite=overwrite,
            busy=self.busy,
            progress=self.progress,
        )


def finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the run folder holds all epochs of the recipe."""
    metrics = folder.path / "metrics.jsonl"
    done = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
    return done == recipe.epochs and folder.weights.is_file()
