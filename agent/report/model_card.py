"""The card of an exported SAE, README.md: what it is of, how it was trained and scored, and how it is loaded."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import TEMPLATES
from agent.display.formatting import format_difference, format_value, unit_of
from agent.lab.architectures import BASELINES
from agent.lab.defaults import WORLD_HOOK
from agent.lab.metrics import METRICS
from agent.lab.results import FinalInfo, Imported, Training, headline
from agent.lab.visible import one_line
from agent.rendering import strict_templates

TEMPLATE = "model_card.md.j2"
PINNED = re.compile(r"(.+)@([0-9a-f]{16}|[0-9a-f]{40})", re.DOTALL)  # as corpus.py pins a text
COMMIT = 40  # hex digits, of a hub dataset; a file is pinned by fewer
HUB_MODEL = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN = 12  # hex digits of a commit
POINTS = (  # that the converter knows
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_in", "hook_mlp_out", "hook_attn_out", "hook_z"),
)

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Subject:
    """An SAE as the lab describes what it has exported."""

    model: str
    hook_name: str
    d_in: int
    d_sae: int
    kind: str
    files: list[str]
    row_lengths: list[float]  # of the decoder, for the model's own activations: by which its latents are larger


@dataclass(frozen=True)
class Origin:
    """The study that a run belongs to."""

    study: str
    commit: str
    run: str
    title: str = ""


def write(folder: Path, form: str, subject: Subject, info: FinalInfo, origin: Origin | None, name: str) -> None:
    """Write README.md into the folder of an export, which will be called `name`."""
    kind = next((each.title for key, each in BASELINES.items() if key == subject.kind), subject.kind)
    text = (
        strict_templates(TEMPLATES)
        .get_template(TEMPLATE)
        .render(
            form=form,
            subject=subject,
            kind=kind,
            base_model=subject.model if HUB_MODEL.fullmatch(subject.model) else "",
            world=subject.hook_name == WORLD_HOOK,
            imported=info.imported,
            origin=origin,
            about=[*_of_training(info.training), *_of_import(info.imported)],
            settings=_settings(info.training),
            scores=_scores(info),
            comparison=info.comparison,
            packages={name: info.environment[name] for name in ("sae-bench", "sae-lens") if name in info.environment},
            split=info.split,
            verdict=info.verdict,
            name=name,
            path=shlex.quote(name),
            neuronpedia=form == "neuronpedia" and _layer(subject.hook_name),
        )
    )
    (folder / "README.md").write_text(text)


def _of_training(training: Training | None) -> Rows:
    """Return what is to be said of a training, as rows of a table."""
    if training is None:
        return []
    passes = f", {training.passes:g} passes over it" if training.passes and training.passes > 1 else ""
    windows = (
        f", in windows of {training.context} tokens, special and outlier ones left out" if training.context else ""
    )
    world = training.hook_name == WORLD_HOOK
    return [
        ("data", "samples of the world" if world else f"{_text(training.text)}{windows}"),
        ("training", f"{training.tokens:,} {'samples' if world else 'tokens'}{passes}, {training.steps:,} steps"),
        ("learning rate, seed", f"{training.learning_rate:g}, {training.seed}"),
    ]


def _of_import(imported: Imported | None) -> Rows:
    """Return what is to be said of an SAE that was trained elsewhere, likewise."""
    if imported is None:
        return []
    rows = [("trained elsewhere", f"{one_line(Path(imported.source).name)}, a {imported.architecture} SAE")]
    if imported.declared_tokens:
        rows.append(("training", f"{imported.declared_tokens:,} tokens by its own files"))
    if imported.declared_l0:
        rows.append(("L0 by its own files", f"{imported.declared_l0:g}"))
    return rows


def _text(pinned: str) -> str:
    """Return what a text is called by others: the folders of the user's own files are left out."""
    if not pinned:
        return "the text that comes with sae-agent"
    match = PINNED.fullmatch(pinned)
    name, version = (match[1], match[2]) if match else (pinned, "")
    if len(version) == COMMIT:
        return f"{one_line(name)} of the hub at {version[:SHOWN]}"
    return f"a text of the author's own, {one_line(Path(name).name)} ({version})"


def _settings(training: Training | None) -> str:
    """Return the constants of the experiment, one a line; those that name the data are told elsewhere."""
    constants: dict[str, Any] = training.settings if training else {}
    told = {"MODEL", "HOOK_NAME", "TEXT", "TOKENS", "D_SAE", "SEED", "LEARNING_RATE"}
    return "\n".join(f"{name} = {json.dumps(value)}" for name, value in constants.items() if name not in told)


def _scores(info: FinalInfo) -> list[tuple[str, str, str, str]]:
    """Return the headline metrics: title, value, the baseline at the same L0, and the difference from it."""
    compared = info.comparison.metrics if info.comparison else {}
    rows = []
    for name in headline([info]):
        if (value := info.metric(name)) is not None:
            title, own = METRICS[name].title, compared.get(name)
            reference = format_value(name, own.reference) if own else ""
            difference = format_difference(name, own) if own else ""
            rows.append((title, f"{format_value(name, value)}{unit_of(METRICS[name])}", reference, difference))
    return rows


def _layer(hook_name: str) -> dict[str, str] | None:
    """Return the hook as Neuronpedia's converter asks for it: the layer and the point in it, if it is one of its."""
    match = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.)?(\w+)", hook_name)
    return {"layer": match[1], "point": match[2]} if match and match[2] in POINTS else None
