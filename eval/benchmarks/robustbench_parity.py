"""Check a report of `atent eval` on a run against RobustBench's own `load_model` and `benchmark`, both unmodified.

    python eval/benchmarks/robustbench_parity.py RUN REPORT.json [--data-root DIR]

`benchmark` gives AutoAttack no seed; our AutoAttack class is given the report's here, and its adversaries are noted. It
scores all images at once and the network as it is, so that the report has to be of one chunk: `atent eval RUN --n N
--chunk N --speed plain`. Prints how many clean and robust flags agree and exits with code 1 unless all do.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from atent_ext.core import compat
from atent_ext.evaluation.report import Report
from atent_ext.integrations.robustbench.zoo import register_run
from atent_ext.training.run_folder import RunFolder


def main(run: Path, report: Path, data_root: Annotated[Path | None, typer.Option()] = None) -> None:
    told = Report.load(report)
    if told.chunk is None or told.chunk < told.n:
        raise typer.BadParameter(f"{report} has chunks of {told.chunk}; score all images in one: --chunk")
    recipe = RunFolder(run).recipe()
    register_run(run, data_root=data_root)
    from robustbench import benchmark, load_model

    network = load_model(recipe.name, dataset=recipe.dataset, threat_model=told.threat.norm)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    spied: Any = compat.autoattack_class()
    original = spied.run_standard_evaluation

    def listening(self: Any, x: torch.Tensor, y: torch.Tensor, *rest: Any, **more: Any) -> Any:
        self.seed = told.seed
        found = original(self, x, y, *rest, **more)
        seen.append((x, y, found))
        return found

    spied.run_standard_evaluation = listening
    clean, robust = benchmark(
        network,
        n_examples=told.n,
        dataset=recipe.dataset,
        threat_model=told.threat.norm,
        eps=told.threat.eps,
        batch_size=told.batch_size,
    )
    ((x, y, adversaries),) = seen
    with torch.no_grad():
        theirs = {"clean": network(x).argmax(1) == y, "autoattack": network(adversaries).argmax(1) == y}
    differing = 0
    for kind, accuracy in (("clean", clean), ("autoattack", robust)):
        same = int((told.flags(kind) == theirs[kind].cpu()).sum())
        differing += told.n - same
        ours = told.accuracy(kind)
        print(f"{kind}: {same} of {told.n} flags agree; atent eval {ours:.4f}, benchmark {accuracy:.4f}")
    sys.exit(differing > 0)


if __name__ == "__main__":
    typer.run(main)
