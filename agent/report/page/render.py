"""Put studies into one HTML file that fetches nothing, and into which no text of others can put markup or scripts."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from agent import TEMPLATES
from agent.comparison.curves import own_curve
from agent.comparison.matching import ONE_SEED
from agent.display.formatting import rate_line
from agent.lab.files import BadFile, read_plain
from agent.lab.metrics import METRICS
from agent.lab.results import Measure
from agent.lab.visible import one_line, visible
from agent.report import changed_settings, figure_style, front_over_k, model_words, plots, references, story
from agent.report.answer import Answer
from agent.report.page import conversation, diff, latents, vector
from agent.report.page.conversation import Conversation
from agent.report.page.opened import Opened
from agent.report.page.run_section import RunSection, outcome_word, run_section
from agent.report.story import Row, Story

if TYPE_CHECKING:
    import jinja2

PAGE = TEMPLATES / "page"
MOST_NOTES = 2**20  # bytes
MOST_IMAGE = 2 * 2**20  # bytes of a figure that an idea drew
MOST_IMAGES = 8
PNG = b"\x89PNG\r\n\x1a\n"
TITLES = {  # of the figures of every study, in the order of the page
    "comparison": "Differences from the baseline",
    "front": "The front over K",
    "l0_front": "Scores against L0",
    "training_curves": "Training curves",
}


@dataclass(frozen=True)
class Drawn:
    """A figure with its caption and description."""

    title: str
    description: str
    html: Markup


@dataclass(frozen=True)
class StudySection:
    """One study, ready to be rendered."""

    prefix: str  # of its anchors; empty if it is alone
    name: str
    primary: str  # title of its primary metric
    story: Story
    reasons: str  # of its answer
    rows: Sequence[tuple[Row, str]]  # with the anchor of the run, or of the reference
    references: Sequence[tuple[str, Sequence[str]]]  # anchor, and paragraphs
    setting: Sequence[tuple[str, str]]
    measures: Mapping[str, Measure]
    titles: Mapping[str, str]  # of metrics and measures
    steps: Mapping[str, str]  # run of each step of the plan that was tried
    figures: Sequence[Drawn]
    images: Sequence[tuple[str, str, str]]  # the idea's own figures: name, data URI, description
    runs: Sequence[RunSection]
    conversation: Conversation
    troubles: Sequence[str]
    model_words: Sequence[tuple[str, str, Sequence[str]]]  # of the whole study: label, text, what results contradict


def render(studies: Sequence[Opened], live: str = "") -> str:
    """Return the page of one study, or of several side by side; one with a `live` version asks its server for newer."""
    prefixes = [""] if len(studies) == 1 else [f"s{number}-" for number in range(1, len(studies) + 1)]
    by_prefix = dict(zip(prefixes, studies, strict=True))
    collection = latents.collect(by_prefix)
    kept = latents.as_json(collection) if collection.kept else ""
    css, script = (PAGE / "page.css").read_text(), (PAGE / "page.js").read_text()
    css = f"{css}\n{diff.styles()}"
    template = _templates().get_template("page.html.j2")
    return template.render(
        studies=[_study_section(prefix, opened) for prefix, opened in by_prefix.items()],
        differing=_differing(by_prefix.values()),
        features=Markup(kept),
        feature_notes=collection.notes,
        turnover={each.anchor: latents.turnover_sentences(each) for each in collection.kept},
        kept={each.anchor: len(each.features.features) for each in collection.kept},
        names={each.anchor: each.name for each in collection.kept},
        css=Markup(css),
        script=Markup(script),
        policy=_policy(css, script, bool(live)),
        live=live,
    )


def _templates() -> "jinja2.Environment":
    """Return an environment that escapes whatever it is given, and refuses names that it does not know."""
    import jinja2

    loader = jinja2.FileSystemLoader(PAGE)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _policy(css: str, script: str, live: bool) -> str:
    """Return the content security policy: this style sheet and this script by their hashes, and nothing else."""
    style, code = (f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in (css, script))
    connect = "; connect-src 'self'" if live else ""
    allowed = f"style-src {style}; script-src {code}; img-src data:{connect}"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _study_section(prefix: str, opened: Opened) -> StudySection:
    told = story.tell(opened.state, opened.runs, opened.judged, opened.measures, story.spent(opened.study))
    talk = conversation.arrange(opened.exchanges, opened.events)
    rows = [
        (replace(row, outcome=outcome_word(run, opened.judged.get(run.number))), f"{prefix}run-{run.number}")
        for row, run in zip(told.rows, opened.runs, strict=True)
    ]
    beside = references.shown(opened.state)
    anchors = [f"{prefix}run-reference-{each.number}" for each in beside]
    rows[1:1] = zip(told.references, anchors, strict=True)
    return StudySection(
        prefix=prefix,
        name=opened.name,
        primary=METRICS[opened.state.started.primary_metric].title,
        story=told,
        reasons=_reasons(told.answer),
        rows=rows,
        references=[
            (anchor, references.texts(each, opened.state)) for anchor, each in zip(anchors, beside, strict=True)
        ],
        setting=setting(opened),
        measures=opened.measures,
        titles={name: metric.title for name, metric in {**METRICS, **opened.measures}.items()},
        steps={run.state.proposal.name: f"run {run.number}" for run in opened.runs},
        figures=_figures(prefix, opened),
        images=_images(opened.study.notes),
        runs=[run_section(opened, run, prefix, talk.by_run.get(run.number, ())) for run in opened.runs],
        conversation=talk,
        troubles=opened.troubles,
        model_words=model_words.concluded(opened.state, opened.runs, opened.judged, opened.check),
    )


def _reasons(answer: Answer) -> str:
    """Return the sentence of an answer without the decision that it begins with."""
    reasons = answer.sentence.removeprefix(f"{answer.decision.capitalize()}: ")
    return reasons[:1].upper() + reasons[1:]


def setting(opened: Opened) -> list[tuple[str, str]]:
    """Return what was fixed for all runs of a study, in words."""
    started, state = opened.state.started, opened.state
    fixed = started.fixed
    seeds = {baseline.seed for baseline in state.baselines}
    levels, knob = {baseline.k for baseline in state.baselines}, fixed.architecture.knob_in_words
    scored = state.sentinels or []
    held = (
        f"{sum(each.held for each in scored)} of {len(scored)} scored as known beforehand" if scored else "not scored"
    )
    return [
        ("Model", fixed.model_in_words),
        ("Hook", fixed.hook_name),
        ("Tokens", f"{fixed.tokens:,}"),
        ("d_sae", f"{fixed.d_sae:,}"),
        ("Seed", str(fixed.seed)),
        *([("Also the same in every run", fixed.held_in_words.removeprefix(", "))] if fixed.held_in_words else []),
        ("Trained on", started.trained_on or "not recorded"),
        ("Evaluated by", ", ".join(started.evals)),
        *((f"{family} not run", why) for family, why in started.left_out.items()),
        ("Primary metric", METRICS[started.primary_metric].title),
        ("Smallest effect worth having", f"{started.smallest_effect:g}"),
        ("Baselines", f"{len(state.baselines)}: {len(levels)} values of {knob}, {len(seeds)} seeds"),
        *([("Comparison", ONE_SEED)] if fixed.baseline_seeds == 1 else []),
        *([("Learning rate", rate_line(state.rate))] if state.rate else []),
        *([("Front over K", front)] if (front := front_over_k.summary(state, opened.runs, opened.judged)) else []),
        ("Sentinels", held),
        ("Proposals by", changed_settings.models(state) or "the idea's plan"),
        *([("Changed by agent resume", " ".join(changed))] if (changed := changed_settings.sentences(state)) else []),
        ("Confinement", "; ".join(each.sentence for each in state.confinements) or "not recorded"),
        ("Fingerprint", started.fingerprint),
    ]


def _differing(studies: Iterable[Opened]) -> list[tuple[str, list[str], bool]]:
    """Return the settings of studies side by side, each with whether it differs."""
    settings = [dict(setting(opened)) for opened in studies]
    names = dict.fromkeys(name for each in settings for name in each)
    values = [(name, [each.get(name, "—") for each in settings]) for name in names]
    return [(name, each, len(set(each)) > 1) for name, each in values]


def _figures(prefix: str, opened: Opened) -> list[Drawn]:
    """Draw the figures of the notes as SVG."""
    import matplotlib

    started = opened.state.started
    with matplotlib.rc_context({**figure_style.STYLE, **vector.STYLE}):
        drawn = plots.draw_study(
            opened.runs,
            own_curve(opened.state),
            opened.judged,
            started.primary_metric,
            started.smallest_effect,
            front_over_k.of(opened.state, opened.runs, opened.judged),
            references.shown(opened.state),
        )
        named = {Path(figure.name).stem: figure for figure in drawn}
        return [
            Drawn(title, figure.description, vector.svg(figure, title, f"{prefix}figure-{name}"))
            for name, title in TITLES.items()
            if (figure := named.get(name))
        ]


def _images(notes: Path) -> list[tuple[str, str, str]]:
    """Return the figures that the idea drew itself, as data, described as in the notes."""
    found, described = [], _descriptions(notes / "notes.txt")
    for path in sorted(notes.glob("*.png"))[: MOST_IMAGES + len(plots.STUDY_FIGURES)]:
        if path.name in plots.STUDY_FIGURES:
            continue
        try:
            content = read_plain(path, MOST_IMAGE)
        except (BadFile, OSError):
            continue
        if content.startswith(PNG):
            title = one_line(path.stem.replace("_", " "))
            data = f"data:image/png;base64,{base64.b64encode(content).decode()}"
            found.append((title, data, described.get(path.name, "")))
    return found


def _descriptions(notes: Path) -> dict[str, str]:
    """Return what notes say of each plot; nothing if they cannot be read."""
    try:
        text = read_plain(notes, MOST_NOTES).decode(errors="replace").replace("\n  ", " ")
    except (BadFile, OSError):
        return {}
    lines = text.partition("# Plot descriptions\n")[2].partition("\n\n")[0].splitlines()
    return {name: visible(description) for name, _, description in (line.partition(": ") for line in lines)}
