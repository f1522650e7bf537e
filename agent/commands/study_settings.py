"""The settings of a new study: what the command line gives, then idea.yaml, then what follows from the model."""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from agent import ROOT, constants, ideas
from agent.ideas import OF_THE_MODEL, Fixed, Idea
from agent.lab import defaults, files, model_files, model_shape
from agent.lab.architectures import BASELINES, BaselineName
from agent.lab.defaults import Defaults, has_tuned_rate
from agent.lab.errors import UserError, did_you_mean
from agent.lab.model_shape import ModelShape
from agent.running import lab_processes, preflight, process

GIVEN, BY_IDEA, DEFAULT = "given on the command line", "given by idea.yaml", "the default"
OPTIONS = {"hook_name": "--hook", "learning_rate": "--lr"}  # of settings that are named otherwise
OF_CONSTANTS = {  # constants of experiment.py that are settings with options of their own
    "MODEL": "model",
    "HOOK_NAME": "hook_name",
    "TEXT": "text",
    "TOKENS": "tokens",
    "D_SAE": "d_sae",
    "SEED": "seed",
    "K": "k",
    "L1_COEFFICIENT": "l1_coefficient",
    "BATCH": "batch",
    "LEARNING_RATE": "learning_rate",
}
HELD_IF_GIVEN = ("BATCH", "LEARNING_RATE")  # for every run; otherwise runs may have others
# Of settings with constants; others are integers.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("model", "hook_name", "text"), ""),
    **dict.fromkeys(("k", "l1_coefficient", "learning_rate"), 1.0),
}
LANGUAGE_MODELS_OWN = (
    "dtype",
    "text",
    "evaluation_data",
    "layer",
    "context",
    "stream",
)  # that mean nothing for a world
# Parameters in an idea's `defaults` that its baseline has too.
OF_PLAN_IN_BASELINE = ("k", "l1_coefficient", "batch", "learning_rate")


@dataclass(frozen=True)
class Settled:
    """The settings of a new study, with all that was not given filled in."""

    fixed: Fixed
    reasons: Mapping[str, str]  # of fields of Fixed, and of constants
    shape: ModelShape | None  # None: a world, or a model whose config could not be had
    smallest_effect: float | None  # None: the idea's, or the model's

    @property
    def rate_is_a_guess(self) -> bool:
        """True if nobody has given the learning rate, and the baseline's was not tuned for the model."""
        return not has_tuned_rate(self.fixed.model) and self.reasons["learning_rate"] not in (GIVEN, BY_IDEA)


def option(name: str) -> str:
    """Return the option that gives a setting."""
    return OPTIONS.get(name, f"--{name.replace('_', '-')}")


def settle(idea: Idea, given: Mapping[str, Any], sets: Sequence[str], on_cluster: bool = False) -> Settled:
    """Return the settings of a study.

    `given` holds options by name, None for those that were left out; `sets` are NAME=VALUE. Raise UserError for a
    setting that is wrong, unknown, or contradicts another one.
    """
    asked = {name: value for name, value in given.items() if value is not None}
    raw = _take_options(asked, sets)
    by_idea = _of_idea(idea)
    _check_baseline(idea, (by_idea | asked)["baseline"], asked)
    wanted = model_path(asked.get("model", idea.fixed.model))
    if defaults.is_world(wanted):
        by_idea.pop("context", None)  # an idea may be studied on either kind of model
    _check_fits_model(wanted, asked)
    _make_plain(asked)
    effect = asked.pop("smallest_effect", None)
    fixed, shape, reasons = _filled_in(by_idea | asked | {"model": wanted, "constants": {}}, on_cluster)
    reasons |= dict.fromkeys(by_idea, BY_IDEA) | dict.fromkeys(asked, GIVEN)
    for_this_model = "d_sae" in asked or ("d_sae" in by_idea and asked.get("model") in (None, idea.fixed.model))
    check_consistent(fixed, shape, reasons, for_this_model)
    fixed = fixed.with_changes(constants=_held(idea, fixed, raw, reasons))
    _require_kept(idea, fixed)
    return Settled(fixed, reasons, shape, effect)


def settle_alone(given: Mapping[str, Any]) -> Fixed:
    """Return the settings of a study where these are given, and no idea gives others. Raise UserError."""
    values = {"model": Fixed().model, "baseline": Fixed().baseline, **given}
    return _filled_in(values | {"model": model_path(values["model"])})[0]


def _filled_in(values: Mapping[str, Any], on_cluster: bool = False) -> tuple[Fixed, ModelShape | None, dict[str, str]]:
    """Return settings with what follows from their model, its shape, and the reasons for all that was not given.

    Raise UserError if it does not exist, or if nothing is known that a setting follows from.
    """
    model, shape, why_no_shape = _described(values["model"])
    if why_no_shape and not {"d_sae", "hook_name"} <= values.keys():
        hint = "; or give --d-sae and --layer, which follow from its config.json" if on_cluster else ""
        raise UserError(why_no_shape + hint)
    values = {**values, "model": model}
    followed = _followed(model, shape, values)
    fixed = _fixed({name: value for name, (value, _) in followed.items()} | values)
    reasons = dict.fromkeys(Fixed.model_fields, DEFAULT) | {name: why for name, (_, why) in followed.items()}
    return fixed, shape, reasons


def _of_idea(idea: Idea) -> dict[str, Any]:
    """Return what an idea says of the settings: in `fixed`, or of its baseline's among its template's parameters."""
    in_plan = {name: idea.defaults[name] for name in OF_PLAN_IN_BASELINE if name in idea.defaults}
    constants_of_options = {
        OF_CONSTANTS[name]: value for name, value in idea.fixed.constants.items() if name in OF_CONSTANTS
    }
    return {"baseline": idea.baselines[0]} | in_plan | idea.fixed.model_dump(exclude_unset=True) | constants_of_options


def _make_plain(asked: dict[str, Any]) -> None:
    """Put hook_name in the place of `layer`, and the absolute path in that of a text's. Raise UserError."""
    effect = asked.get("smallest_effect")
    if effect is not None and not 0 < effect < math.inf:
        raise UserError(f"--smallest-effect {effect:g}: give a number above 0")
    if (layer := asked.pop("layer", None)) is not None:
        if "hook_name" in asked:
            raise UserError(
                f"--layer {layer} and --hook {asked['hook_name']} both name the hook: leave one of them out"
            )
        asked["hook_name"] = model_shape.resid_post(layer)
    if "text" in asked:
        asked["text"] = text_path(asked["text"])


def _take_options(asked: dict[str, Any], sets: Sequence[str]) -> dict[str, str]:
    """Move what --set gives of settings with options of their own to `asked`; return the others, unparsed, by name."""
    raw: dict[str, str] = {}
    for each in sets:
        name, equals, text = (part.strip() for part in each.partition("="))
        if not (name and equals and text):
            raise UserError(f"--set {each}: give NAME=VALUE, with the name of a constant of experiment.py")
        setting = OF_CONSTANTS.get(name)
        if name in raw or (setting and setting in asked):
            other = option(setting) if setting else f"--set {name}"
            raise UserError(f"--set {each} gives what another {other} gives too: leave one of them out")
        if setting:
            asked[setting] = _parsed(name, text, KINDS.get(setting, 1))
        else:
            raw[name] = text
    return raw


def _parsed(name: str, text: str, like: Any) -> Any:
    try:
        return constants.parse(text, like)
    except ValueError as error:
        raise UserError(f"--set {name}={text}: {error}") from None


def _check_fits_model(model: str, asked: Mapping[str, Any]) -> None:
    """Raise UserError for options that mean nothing for a world."""
    if defaults.is_world(model) and (wrong := [name for name in LANGUAGE_MODELS_OWN if name in asked]):
        raise UserError(f"{option(wrong[0])} is a language model's, and {model} is a world without one: leave it out")


def _check_baseline(idea: Idea, baseline: BaselineName, asked: Mapping[str, Any]) -> None:
    """Raise UserError for a baseline that the idea does not work on, and for the knob of another one."""
    if not idea.works_on(baseline):
        why = idea.why_not_others or "its idea.yaml does not name it"
        others = f"it works on {', '.join(idea.baselines)}; --reference shows an SAE of any kind beside its runs"
        raise UserError(f"{idea.name} is not made for the baseline {baseline}: {why}; {others}")
    knob = BASELINES[baseline].knob
    for name in ("k", "l1_coefficient"):
        if name in asked and OF_CONSTANTS[knob] != name:
            raise UserError(f"{option(name)} means nothing for the baseline {baseline}: give {option(knob.lower())}")


def _described(model: str) -> tuple[str, ModelShape | None, str]:
    """Return the name that the model has wherever it is spelled, its shape, and why it is not known, if it should be.

    Raise UserError for a model that does not exist.
    """
    if defaults.is_world(model):
        return model, None, ""
    folder = ROOT / "agent/lab/tiny_lm" if model == "tiny-lm" else Path(model)
    if model == "tiny-lm" or folder.is_absolute():
        return model, model_shape.shape_of(model_files.read_config(folder), model), ""
    described = _ask_the_lab(model)
    if "model" not in described:
        raise UserError(described["error"])
    name, config = described["model"], described.get("config")
    return name, model_shape.shape_of(config, name) if config else None, described.get("error", "")


def _ask_the_lab(model: str) -> dict[str, Any]:
    """Return the hub's name and config of a model, or what is wrong with it."""
    environment = process.child_environment({}, process.ALL_VARIABLES)
    with tempfile.TemporaryDirectory() as elsewhere:  # where no directory passes for a model of the same name
        command = [*lab_processes.DESCRIBE, model]
        ended = subprocess.run(command, cwd=elsewhere, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"the process that looks for {model} failed with exit code {ended.returncode}")
    return json.loads(ended.stdout)


def _followed(model: str, shape: ModelShape | None, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Return the settings OF_THE_MODEL that were not given, each with the reason for its value."""
    if model in defaults.OWN or defaults.is_world(model):
        own, why = defaults.for_model(model), dict.fromkeys(OF_THE_MODEL, f"{Path(model).name}'s own")
    else:
        own, why = _suited(shape, values)
    own = defaults.of_kind(own, model, values["baseline"])
    return {name: (getattr(own, name), why[name]) for name in OF_THE_MODEL if name not in values}


def _suited(shape: ModelShape | None, values: Mapping[str, Any]) -> tuple[Defaults, dict[str, str]]:
    """Return the defaults of a language model of this shape, with the reasons."""
    hook = values.get("hook_name") or model_shape.middle_hook(shape.layers if shape else 1)
    d_in = shape.width_at(hook) if shape else 1
    d_sae = values["d_sae"] if isinstance(values.get("d_sae"), int) else defaults.width_for(d_in)
    return defaults.suited_to(max(d_sae, 1), hook), {
        "hook_name": f"the middle of {shape.layers if shape else 0} layers",
        "d_sae": f"{defaults.EXPANSION} times d_in, {d_in:,}, as a power of two",
        "k": "follows from d_sae: half its root",
        "tokens": f"follows from d_sae: {defaults.TOKENS_PER_LATENT:,} a latent, at most {defaults.MOST_TOKENS:,}",
        "batch": "follows from d_sae",
        "l1_coefficient": "tiny-lm's own, as activations are scaled alike",
        "learning_rate": "follows from d_sae: 2e-4 at 16,384, falling with its root; tuned first, unless --no-tune",
    }


def _fixed(values: dict[str, Any]) -> Fixed:
    """Return the settings as they are recorded. Raise UserError for a value that cannot be."""
    try:
        return Fixed.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{option(str(first['loc'][0]))}: {ideas.in_words(first)}") from None


def check_consistent(
    fixed: Fixed, shape: ModelShape | None, reasons: Mapping[str, str], width_is_given: bool = True
) -> None:
    """Raise UserError, which names both, if two settings contradict each other."""

    def said(name: str) -> str:
        return f"{name} {shown(getattr(fixed, name))} ({reasons[name]})"

    d_in = shape.width_at(fixed.hook_name) if shape else None
    if defaults.is_world(fixed.model):
        if fixed.hook_name != defaults.WORLD_HOOK:
            raise UserError(f"{fixed.model} has no {said('hook_name')}: a world's one hook is {defaults.WORLD_HOOK}")
    elif model_shape.layer_of(fixed.hook_name) >= (layers := shape.layers if shape else math.inf):
        raise UserError(f"hook {fixed.hook_name} ({reasons['hook_name']}): {fixed.model} has layers 0 to {layers - 1}")
    if d_in and fixed.d_sae < d_in and not width_is_given:
        raise UserError(
            f"{said('d_sae')} is less than d_in {d_in:,} of {fixed.model} at {fixed.hook_name}: give --d-sae, if that "
            "is what you want"
        )
    if fixed.architecture.knob == "K" and fixed.k > fixed.d_sae / defaults.LEAST_WIDTH:
        raise UserError(
            f"{said('k')} is more than an eighth of {said('d_sae')}: give a smaller --k or a larger --d-sae"
        )
    if fixed.batch > fixed.tokens:
        raise UserError(f"{said('batch')} is more than {said('tokens')}: give a smaller --batch or more --tokens")
    if shape and shape.positions and fixed.context and fixed.context > shape.positions:
        raise UserError(f"{said('context')} is more than the {shape.positions:,} positions of {fixed.model}")
    if not defaults.is_world(fixed.model) and fixed.tokens < (window := fixed.context or defaults.CONTEXT):
        raise UserError(f"{said('tokens')} is less than one window of context {window}: give more --tokens")


def _held(idea: Idea, fixed: Fixed, raw: Mapping[str, str], reasons: dict[str, str]) -> dict[str, Any]:
    """Return the constants that hold for every run, and note in `reasons` who gave them. Raise UserError."""
    known = known_constants(idea, fixed)
    held = {name: getattr(fixed, OF_CONSTANTS[name]) for name in HELD_IF_GIVEN if _is_given(idea, name, reasons)}
    for name, value in idea.fixed.constants.items():
        if name not in OF_CONSTANTS:
            held[name] = _fitting(
                idea, name, value, _require_known(f"fixed.constants.{name} of {idea.name}", name, known)
            )
            reasons[name] = BY_IDEA
    for name, text in raw.items():
        held[name] = _parsed(name, text, _require_known(f"--set {name}", name, known))
        reasons[name] = GIVEN
    return held


def _is_given(idea: Idea, name: str, reasons: Mapping[str, str]) -> bool:
    """Return True if a constant was asked for by its option, or by `fixed` of idea.yaml, not by its `defaults`."""
    setting = OF_CONSTANTS[name]
    by_fixed = setting in idea.fixed.model_fields_set or name in idea.fixed.constants
    return reasons[setting] == GIVEN or (reasons[setting] == BY_IDEA and by_fixed)


def known_constants(idea: Idea, fixed: Fixed) -> dict[str, Any]:
    """Return the constants of the baseline and of the plan's steps, with the value in the first that has them."""
    known = constants.values(ideas.render_baseline(fixed))
    for step in idea.plan if idea.template else ():
        known = constants.values(ideas.render_step(idea, step, fixed)) | known
    return known


def _require_known(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """Return the value of a constant that there is. Raise UserError with the nearest names if there is none."""
    if name not in known:
        raise UserError(f"{what}: no experiment of this study has a constant {name}: {did_you_mean(name, known)}")
    return known[name]


def _fitting(idea: Idea, name: str, value: Any, like: Any) -> Any:
    try:
        return constants.fitting(value, like)
    except ValueError as error:
        raise ideas.BadIdea(f"{idea.name}: fixed.constants.{name}: {error}, found {value!r}") from None


def _require_kept(idea: Idea, fixed: Fixed) -> None:
    """Raise UserError if a step of the plan sets a constant to another value than the study fixes it at."""
    without = fixed.with_changes(constants={})
    for step in idea.plan if idea.template else ():
        own = constants.values(ideas.render_step(idea, step, without))
        usual = constants.values(ideas.render_step(idea, step.model_copy(update={"parameters": {}}), without))
        for name, value in preflight.fixed_constants(fixed).items():
            if name in own and not constants.same(own[name], usual.get(name)) and not constants.same(own[name], value):
                raise UserError(
                    f"step {step.name} of {idea.name} sets {name} to {own[name]}, and the study fixes it at {value}: "
                    "leave that out, or change the step"
                )


def model_path(model: str) -> str:
    """Make a directory's path absolute, for child processes that run elsewhere; a bare name is a model's.

    Raise UserError for what can only be a path, and is none.
    """
    path = files.locate(model)
    if (os.sep in model or model.startswith(files.PATHS)) and files.exists(path) and path.is_dir():
        return str(path.resolve())
    if not model.strip() or model.startswith(files.PATHS):
        raise UserError(f"--model {model or '(empty)'} is no directory: give a model's directory, or its name")
    return model


def text_path(text: str) -> str:
    """Make the path of a file or folder absolute; any other name is a hub dataset's."""
    if not text.strip():
        raise UserError("--text is empty: give a file, a folder or a hub dataset, or leave it out")
    path = files.locate(text)
    if not files.exists(path) and text.startswith(files.PATHS):
        raise UserError(f"--text {text} does not exist: give a file, a folder or a hub dataset, or leave it out")
    return str(path.resolve()) if files.exists(path) else text


def shown(value: Any, otherwise: str = "") -> str:
    """Return a setting's value as it is read; `otherwise` if it has none."""
    if value is None:
        return otherwise
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
