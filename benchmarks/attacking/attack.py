"""An attack: what an experiment does, how one sees that it has done it, and what became of it in a trial."""

import ast
import inspect
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agent.lab.errors import UserError
from attacking.trial import BREAKS, HERE, Calm, Lab, Trial, become_subreaper, different, end_descendants

REFUSED_EARLY = ("bad_checkpoint", "crashed: in the first steps: error: ")  # by the lab, in the smoke test
Effect = Callable[[Trial], str]


@dataclass(frozen=True)
class Attack:
    """A row of the table: what the experiment does, and how one sees that it has done it.

    `act` runs inside the experiment, its text copied into the file after inside.py. `effect` looks at the trial
    afterwards and says what was done, or nothing.
    """

    number: str
    title: str
    act: Callable[[Any], None]
    effect: Effect
    lab: Lab = "stand-in"
    when: Literal["before", "after"] = "before"  # finish
    in_smoke: bool = False  # attacks in the smoke run too
    behaviour: str = "fine"  # of the stand-in experiment, in all else
    then: Sequence[str] = ()  # behaviours of the honest steps that follow
    options: Sequence[str] = ()  # of `agent run`
    timeout: float = 90.0  # seconds for the study
    repeats: int = 1  # steps that attack, each after the other
    own_end: str = ""  # the verdict that the experiment itself ends with, which is no notice
    prepare: Callable[["Trial"], None] = lambda _: None  # before the study starts
    change: Callable[[str], str] = lambda source: source  # of the experiment's own text, for a reward hack


def attack(number: str, title: str, effect: Effect, **fields: Any) -> Callable[[Callable[[Any], None]], Attack]:
    """Make an attack of the function that carries it out."""
    return lambda act: Attack(number, title, act, effect, **fields)


def steps(attack: Attack, trial: Trial) -> list[str]:
    """Return the sources of the plan's steps: those that attack, then the honest ones."""
    code = inserted_code(attack, trial)
    attacking = [
        trial.source(lambda source, n=number: different(attack.change(source), n), code, f"{attack.behaviour}.{number}")
        for number in range(1, attack.repeats + 1)  # 0 changes nothing, and an experiment that does is not compared
    ]
    honest = [
        trial.source(lambda source, n=number: different(source, n), name=f"{name}.{number}")
        for number, name in enumerate(attack.then, attack.repeats + 1)
    ]
    return attacking + honest


def without_annotations(function: Callable[..., Any]) -> ast.FunctionDef:
    """Return a function's text, parsed, without annotations and decorators."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list, tree.returns = [], None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
    return tree


def inserted_code(attack: Attack, trial: Trial) -> str:
    """Return what makes an attacker of an experiment: inside.py, the place, the attack."""
    act = without_annotations(attack.act)
    act.name = "attack"
    places = {name: str(getattr(trial, name)) for name in ("root", "home", "drop", "cache", "folder")}
    values = {"when": attack.when, "in_smoke": attack.in_smoke} | trial.extra.get("values", {})
    parts = [
        (HERE / "inside.py").read_text(),
        f"AT = types.SimpleNamespace(**{{n: Path(p) for n, p in {places!r}.items()}}, **{values!r})",
        ast.unparse(act),
        "finish = with_attack(finish)",
    ]
    return hidden("\n".join(parts))


def hidden(code: str) -> str:
    """Return a line that runs code which no reader of the experiment's syntax sees: preflight is no wall."""
    return f'(lambda: 0).__builtins__["exec"]({code!r}, globals())'


@dataclass(frozen=True)
class Row:
    """What became of an attack."""

    number: str
    title: str
    result: Literal["succeeds", "noticed", "stopped", "breaks", "no trial"]
    done: str  # what the attack has done
    said: str  # what the driver said, or what the system refused
    seconds: float


def carry_out(attack: Attack, folder: Path, sandbox: str | None, calm: Calm) -> Row:
    """Carry out an attack in an empty folder, and return what became of it. Nothing that it started is left."""
    become_subreaper()
    start = time.monotonic()
    trial = Trial(folder, attack.lab, sandbox)
    shutil.copytree(calm.cache, trial.cache, dirs_exist_ok=True, symlinks=True)
    try:
        attack.prepare(trial)
        trial.plan(*steps(attack, trial))
        trial.run(*attack.options, timeout=attack.timeout)
        crash = trial.crash()
        done = attack.effect(trial) or (f"{BREAKS}{crash}" if crash else "")
        everything = trial.said()
        said = [words for words in trial.said(attack.own_end) if words not in calm.said]
    except (OSError, ValueError, LookupError, UserError, AssertionError) as error:
        why = f"{type(error).__name__}: {error}; {trial.crash()} {trial.out.strip()[-300:]}"
        return Row(attack.number, attack.title, "no trial", "", why, time.monotonic() - start)
    finally:
        end_descendants()
    refused_early = any(words.startswith(REFUSED_EARLY) for words in everything)
    if not (done or trial.began() or refused_early):
        return Row(attack.number, attack.title, "no trial", "", "; ".join(everything), time.monotonic() - start)
    result = "breaks" if done.startswith(BREAKS) else ("noticed" if said else "succeeds") if done else "stopped"
    words = "; ".join(said if done else filter(None, [trial.refused(), *everything]))
    return Row(attack.number, attack.title, result, done, words, time.monotonic() - start)
