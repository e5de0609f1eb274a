"""Reports as a ranked table in Markdown."""

from collections.abc import Sequence

from atent_ext.evaluation.report import Report, Result


def markdown(reports: Sequence[Report]) -> str:
    """One table of reports that share data, threat model and protocol, best worst case first."""
    ranked = sorted(reports, key=lambda report: -report.worst.correct)
    attacks = [result.attack for result in ranked[0].results]
    lines = ["| rank | model | " + " | ".join(attacks) + " |", "|---|---|" + "---|" * len(attacks)]
    for rank, report in enumerate(ranked, 1):
        cells = " | ".join(_cell(result) for result in report.results)
        lines.append(f"| {rank} | {report.name} | {cells} |")
    notes = sorted({note for report in ranked for note in report.notes})
    return "\n".join(["# Leaderboard", "", " ".join([_setting(ranked[0]), *notes]), "", *lines, ""])


def _cell(result: Result) -> str:
    low, high = result.interval95_wilson
    return f"{100 * result.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _setting(report: Report) -> str:
    threat = report.threat
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"Accuracy in % (95 % Wilson interval) on {report.data}, {report.split}, under {threat.norm} eps "
        f"{threat.eps:g}, protocol {report.protocol}; seed {report.seed}, batches of {report.batch_size}; "
        f"{versions}. "
        f"The worst case counts an image only if it stays right under every attack listed. {report.data_note}"
    ).strip()
