"""`agent show`: a run or a study in the terminal."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from agent.commands import show_study
from agent.display.console import make_console
from agent.display.formatting import format_value, remarks
from agent.lab import results
from agent.lab.errors import UserError
from agent.lab.metrics import METRICS, Metric
from agent.lab.results import FinalInfo, Imported, Probing
from agent.report import sentences
from agent.study.custody import changed_records
from agent.study.workspace import find_study

GROUPS = tuple(dict.fromkeys(metric.group for metric in METRICS.values()))
ALWAYS_SHOWN = {"training", "sparsity", "reconstruction", "model preservation"}  # other groups only if measured


def show(path: Path, number: int | None = None) -> bool:
    """Print the run or the study at `path`, or one run of it as its notes tell it, but no figure of a file that was
    changed after it was recorded.

    Return False if there is such a file. Raise UserError if there is neither run nor study, or no such run.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory: give the directory of a run or of a study")
    if study := find_study(path):
        return show_study.print_study(*study) if number is None else show_study.print_run(*study, number)
    if number is not None:
        raise UserError(f"{path} is not a study, and --run is for a study: give its directory under runs/ or notes/")
    if changed := changed_in(path):
        show_study.print_changed(make_console(), changed)
        return False
    if (path / "final_info.json").exists() or (path / "metrics.jsonl").exists():
        _print_run(path, results.read(path))
        return True
    raise UserError(
        f"{path} is neither a run (no final_info.json or metrics.jsonl in it) nor a study (no events.jsonl)"
    )


def run_directory(path: Path, number: int) -> Path:
    """Return the directory of a run of the study at `path`. Raise UserError if there is no study."""
    if path.is_dir() and (found := find_study(path)):
        return found[0].run_dir(number)
    raise UserError(f"{path} is not a study, and --run is for a study: give its directory under runs/ or notes/")


def changed_in(run_dir: Path) -> list[str]:
    """Return the files of a run that were changed after its study had recorded them."""
    study = find_study(run_dir.resolve().parent)
    return [name for name in changed_records(*study) if Path(name).parts[0] == run_dir.resolve().name] if study else []


def _print_run(path: Path, info: FinalInfo) -> None:
    console = make_console()
    console.print(_metrics_table(str(path), info))
    if info.imported:
        for line in _origin(info.imported):
            console.print(line, soft_wrap=True)
    if info.probing:
        console.print(_probing_table(info.probing))
    for family, scored in info.evaluations.items():
        for metric, why in scored.not_applicable.items():
            console.print(f"{family}: {metric} is not applicable: {why}", style="yellow")
    for remark in remarks([info]):
        console.print(remark)
    for family, reason in info.errors.items():
        console.print(f"{family} gave no result: {reason}", style="red")
    for need, what in info.not_measured.items():
        console.print(sentences.NEED_LACKS.render(need=need, what=what), style="yellow")
    console.print(
        f"verdict: {info.verdict.name} ({info.verdict.evidence})", style="green" if info.verdict.ok else "red"
    )
    for warning in info.verdict.warnings:
        console.print(f"warning: {warning}", style="yellow")


def _origin(imported: Imported) -> list[str]:
    """Return in words where an SAE that was trained elsewhere comes from, and what its conversion was compared with."""
    declared = [f"L0 {imported.declared_l0:g}"] if imported.declared_l0 else []
    declared += [f"{imported.declared_tokens:,} training tokens"] if imported.declared_tokens else []
    of_files = f"; by its files {' and '.join(declared)}" if declared else ""
    lines = [f"trained elsewhere: {imported.source}, {imported.architecture} of {imported.format}{of_files}"]
    if found := imported.verified:
        lines.append(
            f"compared with {imported.library} on {found.rows:,} activations: the reconstruction differs by "
            f"{found.reconstruction:.1e}, the latents by {found.latents:.1e}, and {found.flips:.2%} of them flip"
        )
    return lines


def _metrics_table(title: str, info: FinalInfo) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in ("group", "metric"):
        table.add_column(column)
    table.add_column("value", justify="right")
    table.add_column("unit")
    table.add_column("healthy")
    always = ALWAYS_SHOWN - ({"training"} if info.imported else set())
    for group in GROUPS:
        metrics = {
            name: metric
            for name, metric in METRICS.items()
            if metric.group == group and (group in always or info.metric(name) is not None)
        }
        for index, (name, metric) in enumerate(metrics.items()):
            value = info.metric(name)
            style, note = ("", "") if _is_healthy(metric, value) else ("yellow", ": outside")
            table.add_row(
                group if index == 0 else "",
                metric.title,
                Text(format_value(name, value), style=style),
                metric.unit,
                Text(_healthy_range(metric) + note, style=style),
                end_section=index == len(metrics) - 1,
            )
    return table


def _is_healthy(metric: Metric, value: float | None) -> bool:
    return value is None or metric.healthy is None or metric.healthy[0] <= value <= metric.healthy[1]


def _healthy_range(metric: Metric) -> str:
    if metric.healthy:
        return f"{metric.healthy[0]:g} to {metric.healthy[1]:g}"
    return "" if metric.decides else "never decides"


def _probing_table(probing: Probing) -> Table:
    """Return the AUC of the SAE's best latents per dataset, beside those of a random encoder and of the model."""
    ks = sorted(probing.auc)
    table = Table(title="probing: test AUC", title_justify="left")
    table.add_column("dataset", overflow="fold", min_width=24)
    for encoder in ("SAE", "random"):
        for k in ks:
            table.add_column(f"{encoder}, top {k}", justify="right")
    table.add_column("model's own", justify="right")
    for probe in probing.datasets:
        values = (_format_auc(auc.get(k)) for auc in (probe.auc, probe.random_auc) for k in ks)
        table.add_row(probe.dataset, *values, _format_auc(probe.llm_auc))
    table.add_section()
    means = (_format_auc(auc.get(k)) for auc in (probing.auc, probing.random_auc) for k in ks)
    table.add_row("mean", *means, _format_auc(probing.llm_auc))
    return table


def _format_auc(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
