"""The one runner of experiments: train by a recipe, score by a protocol, keep what is done.

The quickstart, the papers' studies and the zoo call it. A call that was interrupted goes on: a training at its last
epoch, a score at its last chunk; what is finished is not done again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from atent_ext.data import datasets
from atent_ext.evaluation import scoring
from atent_ext.evaluation.journal import Progress
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import run_folder
from atent_ext.training.loop import Reporter, fit
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder


@dataclass(frozen=True)
class Runner:
    """Where an experiment lies and how it says what it does.

    out: folder of the run folders and of the scores. root, download: of the data sets. reporter: of trainings. busy,
    progress: called with what is being done, and how far a score is.
    """

    out: Path
    root: Path | None = None
    download: bool = False
    reporter: Reporter | None = None
    busy: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda current: None

    def train(self, recipe: Recipe, name: str, *, overwrite: bool = False) -> RunFolder:
        """The run folder `out`/`name` of a recipe, trained to its end; a finished run is left as it is.

        Raises BadInput where the folder holds a run of another recipe and `overwrite` is not given.
        """
        folder = RunFolder(self.out / name)
        images = datasets.load(recipe.dataset, self.root, self.download)
        resume = folder.exists() and not overwrite
        return fit(recipe, images, folder.path, resume=resume, overwrite=overwrite, reporter=self.reporter)

    def subject(self, folder: RunFolder, held_out: bool = False) -> Subject:
        """The network of a run folder and its test images, or those that the run held out of training."""
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
        """The report of a subject, in the file `out`/`name`.json; one that is there and of this setting is returned.

        Raises BadInput where the file holds a report of another setting and `overwrite` is not given.
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
    """Whether the run folder holds as many epochs as the recipe asks for."""
    metrics = folder.path / "metrics.jsonl"
    done = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
    return done == recipe.epochs and folder.weights.is_file()
