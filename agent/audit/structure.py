"""Check notes as a whole: runs described twice or missing, results of another experiment or unlike those measured."""

import itertools
import re
from collections.abc import Iterator

from agent.audit.clauses import BASELINE
from agent.audit.finding import Finding, Status
from agent.audit.known_figures import KnownRun, KnownRuns
from agent.audit.notes_reader import Notes, NotesRun
from agent.audit.rounding import agrees
from agent.lab.metrics import METRICS

MOST_MISSING = 100  # runs in one gap that get a line each; a heading may name any number

# Figures that do not depend on the SAE: the model's own loss, its loss under ablation, the probes on its activations.
INVARIANT = re.compile(
    r"ce_loss_without_sae|ce_loss_with_(?:mean_)?ablation|kl_div_with_ablation|l2_norm_in|llm_\w*accuracy"
)
FIXED = re.compile(
    r"(?:model(?:_name)?|hook(?:_name|_point)?|(?:hook_)?layer|d_in|d_model|activation_dim|dataset(?:_name)?)"
)
CALLED_SAME = re.compile(
    r"\b(?:identical|same (?:results|figures|scores)|no effect|unchanged|repeat\w*|rerun|reproduc\w+|did not change)\b",
    re.IGNORECASE,
)
WIDTH = re.compile(r"(?:d_sae|dict_size|n_features|width)")


def check_order(notes: Notes) -> Iterator[Finding]:
    """Find runs described twice, runs that are missing and runs with the same results."""
    seen: dict[int, NotesRun] = {}
    for run in notes.runs:
        if (first := seen.get(run.number)) is not None:
            yield _of_heading(run, "contradicted", f"run {run.number} is described before, in line {first.line}")
            continue
        other = next((earlier for earlier in seen.values() if _same_results(run, earlier)), None)
        if other and not _says_same(notes, run):
            evidence = f"its results are those of run {other.number} in every figure (line {other.results_line})"
            yield _of_results(run, "unsupported", evidence)
        if "{" in run.results and not run.results_read:
            yield _of_results(run, "unsupported", "the results cannot be read")
        seen[run.number] = run
    for before, after in itertools.pairwise(sorted(seen)):
        for number in range(before + 1, after)[:MOST_MISSING]:
            yield _of_heading(seen[after], "unsupported", f"run {number} is missing: it is not described")


def _of_heading(run: NotesRun, status: Status, evidence: str) -> Finding:
    return Finding(run.line, run.number, f"Run {run.number}: {run.title}".removesuffix(": "), status, evidence)


def _of_results(run: NotesRun, status: Status, evidence: str) -> Finding:
    return Finding(run.results_line, run.number, _short(run.results), status, evidence)


def _same_results(a: NotesRun, b: NotesRun) -> bool:
    measured = [value for value in a.figures.values() if value not in (0.0, 1.0, -1.0)]
    return a.figures == b.figures and len(measured) >= 3


def _says_same(notes: Notes, run: NotesRun) -> bool:
    own = " ".join(statement.text for statement in notes.statements if statement.run == run.number)
    return bool(CALLED_SAME.search(own))


def _short(text: str) -> str:
    return text if len(text) <= 100 else text[:97] + "..."


def check_origin(notes: Notes, known: KnownRuns) -> Iterator[Finding]:
    """Find runs whose results are of another model, hook or text than the others'.

    Figures that do not depend on the SAE (the model's own loss, its loss under ablation) must be equal in all runs, and
    so must the settings that results state. If most runs differ from run 0, it is run 0 that was pasted.
    """
    runs = {run.number: run for run in reversed(notes.runs) if run.results_read}
    odd = _odd(runs, notes, known)
    for number, why in odd.items():
        yield _of_results(
            runs[number], "contradicted", f"these are results of another experiment: {'; '.join(why[:3])}"
        )
    if (baseline := runs.get(BASELINE)) is None or len(runs) < 2:
        return
    shared = any(_leaves(baseline) & _leaves(run) for number, run in runs.items() if number != BASELINE)
    if baseline.figures and not shared and BASELINE not in odd:
        yield _of_results(baseline, "unsupported", "no other run has any of these figures")
    named = set(re.findall(r"\blayer (\d+)\b", notes.description))
    for run in runs.values() if len(named) == 1 else ():
        layers = [value for path, value in run.figures.items() if path.rsplit("/", 1)[-1] in ("layer", "hook_layer")]
        if layers and str(round(layers[0])) not in named and run.number not in odd:
            evidence = f"the results are of layer {layers[0]:g}, the experiment is on layer {min(named)}"
            yield _of_results(run, "contradicted", evidence)


def _odd(runs: dict[int, NotesRun], notes: Notes, known: KnownRuns) -> dict[int, list[str]]:
    """Return the runs that differ from most in what should be equal, with the differences."""
    odd: dict[int, list[str]] = {}
    texts = notes.texts_by_run()
    fixed = {number: _fixed(run, run.title + texts.get(number, "")) for number, run in sorted(runs.items())}
    for path in sorted({path for settings in fixed.values() for path in settings}):
        values = {number: settings[path] for number, settings in fixed.items() if path in settings}
        groups: list[list[int]] = []
        for number, value in values.items():
            group = next((group for group in groups if _alike(values[group[0]], value)), None)
            groups.append([number]) if group is None else group.append(number)
        most = max(groups, key=lambda group: (len(group), BASELINE not in group))
        others = f"{known.name(most[0])} has {_shown(values[most[0]])}"
        for number in values.keys() - set(most):
            odd.setdefault(number, []).append(f"{path} is {_shown(values[number])}, {others}")
    return odd


def _leaves(run: NotesRun) -> set[str]:
    return {path.rsplit("/", 1)[-1].lower() for path in run.figures}


def _fixed(run: NotesRun, own: str) -> dict[str, float | str]:
    about_width = re.search(
        r"\b(?:width|wide\w*|dict\w*|latents|features|size|expansion|narrow\w*|d_sae)\b", own, re.IGNORECASE
    )
    return {
        path: value
        for path, value in (*run.figures.items(), *run.settings.items())
        if INVARIANT.fullmatch(leaf := path.rsplit("/", 1)[-1].lower())
        or FIXED.fullmatch(leaf)
        or (WIDTH.fullmatch(leaf) and not about_width)
    }


def _alike(a: float | str, b: float | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return abs(a - b) <= 0.01 * max(abs(a), abs(b))


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def check_results(notes: Notes, measured: KnownRuns) -> Iterator[Finding]:
    """Check the notes' own figures against those of the run directories."""
    for run in {run.number: run for run in reversed(notes.runs)}.values():
        known = measured.runs.get(run.number)
        quote = _short(run.results or f"Run {run.number}: {run.title}")
        line = run.results_line or run.line
        if known is None and run.results.startswith("Results: none yet"):
            continue
        if known is None:
            yield Finding(line, run.number, quote, "unsupported", f"there is no run_{run.number}/final_info.json")
        elif run.results_read and not known.counts:
            yield Finding(line, run.number, quote, "contradicted", f"run {run.number} does not count: {known.verdict}")
        elif run.results_read:
            differences = [_difference(path, value, known) for path, value in run.figures.items()]
            wrong = list(filter(None, differences))
            status: Status = "contradicted" if wrong else "supported"
            yield Finding(
                line, run.number, quote, status, "; ".join(wrong) or f"as in run_{run.number}/final_info.json"
            )
    described = {run.number for run in notes.runs}
    for number in sorted(measured.runs.keys() - described):
        last = notes.runs[-1] if notes.runs else None
        yield Finding(
            last.line if last else 1, number, notes.title, "unsupported", f"run {number} is missing: it has results"
        )


def _difference(path: str, value: float, known: KnownRun) -> str:
    """Say how a figure of the notes differs from the measured one; empty if it does not."""
    name = path.rsplit("/", 1)[-1]
    measured = known.figures.get(path)
    if measured is None and known.info and name in METRICS:
        measured = known.info.metric(name)
    if measured is None:
        measured = next((value for other, value in known.figures.items() if other.rsplit("/", 1)[-1] == name), None)
    if measured is None and known.info and known.info.training:
        measured = known.info.training.settings.get(name)
    if not isinstance(measured, int | float):
        return f"{path} is not among the results"
    return "" if agrees(f"{value:.10g}", measured) else f"{path} is {measured:.6g}"
