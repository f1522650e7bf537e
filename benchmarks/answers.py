"""How well answers of language models are understood, and their sentences judged: rates on texts written for it.

    python benchmarks/answers.py [--set first|second|third] [--show]

benchmarks/answers holds 280 whole answers (plans, proposals, findings, conclusions) in the forms that models give them,
and 450 sentences on two made studies: true, false, or open (nothing in the figures could contradict them). Authors who
did not know the rules wrote them. The first set was looked at while the rules were made, the second after they had been
made, the third never. Prints how many answers were wrongly refused and wrongly taken, and how many sentences were
wrongly held against their author and wrongly let pass unmarked; `--show` lists them.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scipy.special import stdtr

from agent.audit import contradicted
from agent.comparison.judgement import Judgement
from agent.ideas import Fixed, render_baseline
from agent.lab.results import Comparison, Core, FinalInfo, Latents, MetricComparison
from agent.lab.verdicts import Verdict
from agent.proposers import answers, edits
from agent.proposers.answers import BadAnswer
from agent.proposers.edits import EditError
from agent.proposers.template import baseline_proposal
from agent.report import bare_figures, prose
from agent.report.prose import Facts
from agent.study.run_state import RunState
from agent.study.runs import Run

HERE = Path(__file__).with_suffix("")
HEADLINE = ("l0", "explained_variance_centered", "ce_loss_score", "loss_added", "alive_fraction", "probing_auc_5")
SETS = ("first", "second", "third")
RUNS_LEFT, NEXT_RUN = 4, 6
WITH_RESULTS = range(5)
MEANING = {
    "refused": "usable answers refused",
    "misread": "usable answers misread",
    "taken": "unusable answers taken",
    "held": "true or harmless sentences refused, struck or marked",
    "passed": "false sentences that stand unmarked",
}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def study(name: str) -> Facts:
    """Return the facts of a made study."""
    described = json.loads((HERE / "studies.json").read_text())[name]
    runs = [_run(each, described) for each in described["runs"]]
    judged = {each["number"]: Judgement(each["outcome"]) for each in described["runs"] if "outcome" in each}
    return Facts(runs, judged, described["primary_metric"], described["smallest_effect"])


def _run(described: dict[str, Any], of: dict[str, Any]) -> Run:
    proposal = baseline_proposal(Fixed()).model_copy(update={"title": described["title"], "start": described["start"]})
    name, _, evidence = described.get("failed", "ok: sound").partition(": ")
    verdict = Verdict.model_validate({"name": name, "evidence": evidence})
    state = RunState(described["number"], proposal, stage="done", verdict=verdict)
    info = _results(described, of, verdict) if verdict.ok else FinalInfo(verdict=verdict)
    return Run(state, HERE, info)


def _results(described: dict[str, Any], of: dict[str, Any], verdict: Verdict) -> FinalInfo:
    figures, settings = described["figures"], described["settings"]
    training = {"model": of["model"], "hook_name": "h", "layer": 1, "d_in": 1, "d_sae": of["d_sae"], "steps": 1}
    training |= {"tokens": 1, "seed": 0, "final_loss": figures.get("final_loss", 1.0), "seconds": 1.0}
    training |= {"learning_rate": settings["LEARNING_RATE"], "settings": settings}
    core = dict.fromkeys(Core.model_fields) | {"tokens": 1}
    core |= {name: value for name, value in figures.items() if name in Core.model_fields}
    truth = {name: figures[name] for name in ("f1", "uniqueness", "mcc") if name in figures}
    truth |= {"absorption": figures["absorption_true"]} if "absorption_true" in figures else {}
    probing = {"accuracy": {}, "random_auc": {}, "llm_auc": 0.8, "llm_accuracy": 0.8, "datasets": []}
    compared = {name: _compared(figures[name], *each) for name, each in described.get("differences", {}).items()}
    return FinalInfo.model_validate(
        {
            "verdict": verdict,
            "training": training,
            "core": core,
            "latents": dict.fromkeys(Latents.model_fields, 1.0) | {"alive_fraction": figures["alive_fraction"]},
            "evaluations": {"synthetic": {"metrics": truth}} if truth else {},
            "probing": probing | {"auc": {5: figures["probing_auc_5"]}} if "probing_auc_5" in figures else None,
            "comparison": Comparison(levels=[1], seeds=5, metrics=compared) if compared else None,
        }
    )


def _compared(value: float, difference: float, half_width: float) -> MetricComparison:
    error, t = half_width / 2.776, difference / half_width * 2.776  # of 4 degrees of freedom
    p = 2 * float(stdtr(4, -abs(t)))
    noise = error / math.sqrt(1.2)  # of one training beside the mean of five
    reference = value - difference
    return MetricComparison(
        value=value, reference=reference, noise=noise, standard_error=error, df=4, half_width=half_width, p=p
    )


def understood(asked: dict[str, Any], source: str) -> bool:
    """Return True if an answer is understood, and as it was meant. Raise BadAnswer or EditError if it is refused."""
    answer, expect = asked["answer"], asked.get("expect", {})
    match asked["asks"]:
        case "plan":
            plan = answers.parse_plan(
                answer, NEXT_RUN, RUNS_LEFT, lambda run, start: start in WITH_RESULTS or NEXT_RUN <= start < run
            )
            return [[run.start, run.title] for run in plan.runs] == expect.get("runs")
        case "proposal":
            proposed = answers.parse_experiment(answer, HEADLINE)
            edited = edits.apply(source, proposed.edits).splitlines()
            return (
                proposed.predictions == expect.get("predictions")
                and expect["contains"].strip() in map(str.strip, edited)
                and proposed.title == expect.get("title", "")
            )
        case "findings":
            return answers.parse_findings(answer).startswith(expect.get("starts", "?"))
        case _:
            concluded = answers.parse_conclusion(answer)
            next_starts = expect.get("next_starts") or ""
            return concluded.conclusion.startswith(expect.get("starts", "?")) and (
                concluded.next.startswith(next_starts) if next_starts else not concluded.next
            )


def judge_answers(asked: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the answers that were wrongly refused, taken for something else, or wrongly taken."""
    wrong: dict[str, list[str]] = {"refused": [], "misread": [], "taken": []}
    source = render_baseline(Fixed())
    for each in asked:
        try:
            right = understood(each, source)
        except (BadAnswer, EditError) as error:
            if each["usable"]:
                wrong["refused"].append(f"{each['id']}: {str(error).splitlines()[0]}")
        else:
            if not each["usable"]:
                wrong["taken"].append(each["id"])
            elif not right:
                wrong["misread"].append(each["id"])
    return wrong


def judge_sentences(said: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the true or open sentences that were held against their author, and the false ones that pass unmarked."""
    wrong: dict[str, list[str]] = {"held": [], "passed": []}
    studies = {name: study(name) for name in {each["study"] for each in said}}
    for each in said:
        held = held_against(each, studies[each["study"]])
        shown = f"{each['study']} {each['run']} [{each['kind']}] {each['text']} ({each['why']}) {held}"
        if bool(held) == (each["label"] != "false"):
            wrong["held" if held else "passed"].append(shown)
    return wrong


def held_against(said: dict[str, Any], whole: Facts) -> list[str]:
    """Return what is held against a sentence, by what was known when it was written."""
    known = said["run"] + (said["when"] != "before")
    runs = [run for run in whole.runs if run.number < known]
    judged = {number: judgement for number, judgement in whole.judged.items() if number < known}
    facts = replace(whole, runs=runs, judged=judged)
    pending = said["run"] if said["when"] == "before" else None
    about = said["run"] if said["when"] == "after" else None
    faults, text = prose.faults(said["text"], facts, pending), bare_figures.measured(said["text"], facts, about)
    struck = [bare_figures.NOT_MEASURED] if bare_figures.NOT_MEASURED in text else []
    rendered = prose.render(text, facts)
    marks = contradicted(rendered, said["run"], facts)
    return [*faults, *struck, *(mark.evidence for mark in marks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    for name in [args.set] if args.set else SETS:
        asked, said = read(f"answers_{name}.jsonl"), read(f"sentences_{name}.jsonl")
        usable, false = sum(each["usable"] for each in asked), sum(each["label"] == "false" for each in said)
        wrong = judge_answers(asked) | judge_sentences(said)
        of = {"refused": usable, "misread": usable, "taken": len(asked) - usable}
        of |= {"held": len(said) - false, "passed": false}
        print(f"{name} set: {len(asked)} answers, {len(said)} sentences")
        for kind, cases in wrong.items():
            print(f"  {MEANING[kind]}: {len(cases)} of {of[kind]} ({len(cases) / of[kind]:.0%})")
            for case in cases if args.show else ():
                print(f"    {case}")


if __name__ == "__main__":
    main()
