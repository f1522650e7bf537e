"""Ideas: an error names its file, field, step or line; the shipped plans render."""

import ast
from pathlib import Path

import pytest
import yaml
from standin import HERE

from agent import ROOT, ideas
from agent.ideas import BadIdea, Fixed, Idea
from agent.report import idea_analysis

STEP = {"name": "one", "title": "t", "description": "d", "why": "w", "predictions": {"l0": "same"}}
IDEA = {"title": "t", "description": "d", "hypothesis": "h", "smallest_effect": 0.1, "plan": [STEP]}


def write_idea(directory: Path, idea: object, template: str = "", base: str = "") -> Path:
    """Write the idea `mine` into a directory of templates, and return the directory."""
    (directory / "ideas/mine").mkdir(parents=True, exist_ok=True)
    (directory / "ideas/mine/idea.yaml").write_text(idea if isinstance(idea, str) else yaml.safe_dump(idea))
    (directory / "ideas/mine/experiment.py.j2").write_text(template)
    (directory / "baselines").mkdir(exist_ok=True)
    (directory / "baselines/batchtopk.py.j2").write_text(base)
    return directory


def test_the_experiment_of_the_checkout_is_the_rendered_baseline():
    assert (ROOT / "experiment.py").read_text() == ideas.render_baseline(Fixed())


def test_each_step_of_the_shipped_plan_renders_a_different_program():
    idea = ideas.load("hierarchical_sae")
    sources = [ideas.render_step(idea, step, idea.fixed) for step in idea.plan]
    programs = {ast.dump(ast.parse(source)) for source in [ideas.render_baseline(idea.fixed), *sources]}
    assert len(programs) == len(idea.plan) + 1


def test_the_shipped_plan_has_five_steps_with_predictions():
    plan = ideas.load("hierarchical_sae").plan
    assert [step.name for step in plan] == [
        "composition",
        "automatic_tiers",
        "curriculum",
        "no_composition",
        "tier_sizes_eighths",
    ]
    assert all(step.predictions for step in plan)


def test_the_baseline_and_a_step_have_the_requested_k(tmp_path: Path):
    assert "\nK = 16  #" in ideas.render_baseline(Fixed())
    assert "\nK = 32  #" in ideas.render_baseline(Fixed(), 32)
    step = STEP | {"parameters": {"k": 24}}
    templates = write_idea(tmp_path, IDEA | {"defaults": {"k": 16}, "plan": [step]}, "K = {{ k }}")
    idea = ideas.load("mine", templates)
    assert ideas.render_step(idea, idea.plan[0], Fixed(), templates) == "K = 24"


def test_fixed_settings_and_parameters_reach_the_template(tmp_path: Path):
    base = "MODEL = '{{ model }}'\n{% block k %}\nK = 16\n{% endblock %}\n"
    child = "{% extends baseline %}\n{% block k %}\nK = {{ k }} + {{ extra }}\n{% endblock %}\n"
    step = STEP | {"parameters": {"k": 32}}
    templates = write_idea(tmp_path, IDEA | {"defaults": {"k": 16, "extra": 1}, "plan": [step]}, child, base)
    idea = ideas.load("mine", templates)
    fixed = Fixed(model="gpt2")
    assert ideas.render_baseline(fixed, templates=templates) == "MODEL = 'gpt2'\nK = 16\n"
    assert ideas.render_step(idea, idea.plan[0], fixed, templates) == "MODEL = 'gpt2'\nK = 32 + 1\n"


WRITTEN = """\
title: t
description: d
hypothesis: h
smallest_effect: 0.1
defaults: {coefficient: 1}
plan:
  - name: one
    title: t
    description: d
    why: w
    predictions: {l0: same}
  - name: two
    title: t
    description: d
    why: |
      Over more
      than one line.
    predictions:
      l0: same
      ce_loss_score: up
    parameters:
      coefficient: 2
    when: {step: one, metric: l0, came_out: down}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: t\ndescr", "titel: t\ndescr", "line 1: title: expected this field, found none"),
        (
            "hypothesis: h",
            "hypothesis: h\nsmalest_effect: 1",
            "line 4: smalest_effect: unknown field: did you mean smalle",
        ),
        ("smallest_effect: 0.1", "smallest_effect: 0", "line 4: smallest_effect: expected greater than 0, found 0"),
        (
            "defaults:",
            "primary_metric: loss_aded\ndefaults:",
            "line 5: primary_metric: expected a headline metric with a better direction that decides, found",
        ),
        *(
            (
                "defaults:",
                f"primary_metric: {name}\ndefaults:",
                "line 5: primary_metric: expected a headline metric with a better direction that decides, found ",
            )
            for name in ("scr", "tpp", "forgetting")
        ),
        (
            "defaults:",
            "fixed: {d_sae: wide}\ndefaults:",
            "line 5: fixed.d_sae: expected a valid integer, unable to pars",
        ),
        ("defaults:", "fixed: {tokns: 9}\ndefaults:", "line 5: fixed.tokns: unknown field: did you mean tokens"),
        (
            "defaults:",
            "fixed: {evals: quik}\ndefaults:",
            "line 5: fixed.evals: unknown evaluation 'quik': did you mean quick?",
        ),
        ("defaults:", "name: mine\ndefaults:", "line 5: name: unknown field"),
        ("    why: w\n", "", "line 7: plan.0.why: expected this field, found none"),
        ("    why: w\n", "    why: 3\n", "line 10: plan.0.why: expected a valid string, found 3"),
        ("name: two", "name: one", "line 12: plan.1.name: another step of the plan is also named 'one'"),
        ("name: two", "name: Two!", "line 12: plan.1.name: String should match pattern"),
        (
            "ce_loss_score: up",
            "ce_loss_score: better",
            "line 20: plan.1.predictions.ce_loss_score: expected 'up', 'down' or 'same', found 'better'",
        ),
        ("ce_loss_score: up", "ce_los_score: up", "line 20: plan.1.predictions.ce_los_score: expected a metric's name"),
        ("coefficient: 2", "coeficient: 2", "line 22: plan.1.parameters.coeficient: expected a default's name, found"),
        (
            "step: one",
            "step: two",
            "line 23: plan.1.when.step: expected an earlier step's name, found 'two': did you m",
        ),
        ("metric: l0", "metric: mse", "line 23: plan.1.when.metric: expected a metric that decides, found 'mse'"),
        ("metric: l0", "metric: scr", "line 23: plan.1.when.metric: expected a metric that decides, found 'scr'"),
        ("came_out: down", "came_out: worse", "line 23: plan.1.when.came_out: expected 'up', 'down' or 'same', found"),
        (", came_out: down", "", "line 23: plan.1.when.came_out: expected this field, found none"),
        ("title: t\ndescr", "title: t\ntitle: u\ndescr", "line 2: title is given twice"),
        ("    parameters:\n", "    parameters: {}\n    parameters:\n", "line 22: parameters is given twice"),
        ("came_out: down", "came: down", "line 23: plan.1.when.came_out: expected this field"),
    ],
)
def test_an_error_in_an_idea_names_file_line_and_field(tmp_path: Path, old: str, new: str, message: str):
    assert WRITTEN.count(old) == 1
    ideas.load("mine", write_idea(tmp_path, WRITTEN))
    with pytest.raises(BadIdea) as error:
        ideas.load("mine", write_idea(tmp_path, WRITTEN.replace(old, new)))
    assert f"ideas/mine/idea.yaml {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_plan_is_refused(tmp_path: Path):
    with pytest.raises(BadIdea, match=r"idea.yaml line 3: plan: List should have at least 1 item"):
        ideas.load("mine", write_idea(tmp_path, IDEA | {"plan": []}))


def test_an_error_in_yaml_names_its_line(tmp_path: Path):
    with pytest.raises(BadIdea, match=r"idea\.yaml line 3: "):
        ideas.load("mine", write_idea(tmp_path, "title: t\nplan: [\n"))


@pytest.mark.parametrize("content", [b"title: \xff\n", b"title: \0\n", b"title: 2026-13-45\n"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes):
    write_idea(tmp_path, "")
    (tmp_path / "ideas/mine/idea.yaml").write_bytes(content)
    with pytest.raises(BadIdea, match=r"idea\.yaml(: | is not UTF-8 text)"):
        ideas.load("mine", tmp_path)


def test_an_idea_has_analysis_and_figures_only_if_their_files_exist(tmp_path: Path):
    write_idea(tmp_path, IDEA)
    assert ideas.load("mine", tmp_path).analysis is None
    (tmp_path / "ideas/mine/analysis.py").touch()
    assert ideas.load("mine", tmp_path).analysis == tmp_path / "ideas/mine/analysis.py"
    assert ideas.load("mine", tmp_path).figures is None
    (tmp_path / "ideas/mine/figures.py").touch()
    assert ideas.load("mine", tmp_path).figures == tmp_path / "ideas/mine/figures.py"


MEASURES = "MEASURES = {}\ndef measure(exam): ...\n"
DRAW = "def draw(directory, runs): ...\n"
TABLE = "MEASURES = {}\n"
COMPUTE = "import torch.no_such_module\ndef measure(exam): ...\n"  # beside measures.py it is parsed, not run


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"analysis.py": MEASURES},
        {"figures.py": DRAW},
        {"analysis.py": MEASURES, "figures.py": DRAW},
        {"measures.py": TABLE, "analysis.py": COMPUTE},
        {"measures.py": TABLE, "analysis.py": COMPUTE, "figures.py": "from measures import MEASURES\n" + DRAW},
    ],
)
def test_an_idea_may_have_measures_or_figures_or_both(tmp_path: Path, files: dict[str, str]):
    write_idea(tmp_path, IDEA)
    for name, source in files.items():
        (tmp_path / "ideas/mine" / name).write_text(source)
    idea = ideas.load("mine", tmp_path)
    loaded = idea_analysis.load(idea)
    assert (loaded.path, loaded.measures) == ((idea.analysis, {}) if "analysis.py" in files else (None, None))
    assert callable(loaded.draw) == ("figures.py" in files)


@pytest.mark.parametrize("name", ideas.idea_names())
def test_a_shipped_idea_says_what_its_measures_need(name: str):
    idea = ideas.load(name)
    assert bool(idea_analysis.load(idea).needs) == bool(idea.measures)


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("analysis.py", "MEASURES = {}", "defines no measure$"),
        ("analysis.py", DRAW, "defines no MEASURES and no measure$"),
        ("analysis.py", "def measure(:", "cannot be read: SyntaxError: "),
        ("measures.py", "", "defines no MEASURES$"),
        ("measures.py", "MEASURES =", "cannot be read: SyntaxError: "),
        ("measures.py", "MEASURES = {}\nNEEDS = {'tensor map': 'all'}", "NEEDS 'tensor map': write it as 'groups NAME"),
        ("figures.py", MEASURES, "defines no draw$"),
        ("figures.py", "import no_such_module", "cannot be read: ModuleNotFoundError: "),
    ],
)
def test_a_broken_analysis_or_figures_file_is_named(tmp_path: Path, name: str, source: str, message: str):
    write_idea(tmp_path, IDEA)
    for file, content in {"analysis.py": MEASURES, "figures.py": DRAW, name: source}.items():
        (tmp_path / "ideas/mine" / file).write_text(content)
    with pytest.raises(BadIdea, match=f"ideas/mine/{name} {message}"):
        idea_analysis.load(ideas.load("mine", tmp_path))


@pytest.mark.parametrize(
    ("analysis", "message"),
    [
        (None, "is missing: it computes the figures that measures.py names"),
        ("MEASURES = {}", "defines no measure$"),
        ("def measure(:", "cannot be read: SyntaxError: "),
    ],
)
def test_a_broken_analysis_beside_measures_is_named(tmp_path: Path, analysis: str | None, message: str):
    write_idea(tmp_path, IDEA)
    (tmp_path / "ideas/mine/measures.py").write_text(TABLE)
    if analysis is not None:
        (tmp_path / "ideas/mine/analysis.py").write_text(analysis)
    with pytest.raises(BadIdea, match=f"ideas/mine/analysis.py {message}"):
        idea_analysis.load(ideas.load("mine", tmp_path))


@pytest.mark.parametrize("depth", [900, 5000, 100_000])
def test_yaml_that_is_nested_without_end_is_refused(tmp_path: Path, depth: int):
    with pytest.raises(BadIdea, match=r"idea\.yaml: line 1: nested more than 50 deep"):
        ideas.load("mine", write_idea(tmp_path, "title: " + "[" * depth + "]" * depth))


def test_yaml_without_fields_is_refused(tmp_path: Path):
    with pytest.raises(BadIdea, match="expected fields such as title and plan, found list"):
        ideas.load("mine", write_idea(tmp_path, "- one\n"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("\n\nK = {{ missing }}\n", "experiment.py.j2 line 3: 'missing' is undefined"),
        ("\n{% if %}\n", "experiment.py.j2 line 2: "),
        ("{% extends 'nowhere.j2' %}", "nowhere.j2 does not exist"),
        ("\n{{ 1 / 0 }}", "experiment.py.j2 line 2: division by zero"),
    ],
)
def test_an_error_in_a_template_names_idea_step_and_line(tmp_path: Path, template: str, message: str):
    templates = write_idea(tmp_path, IDEA, template)
    idea: Idea = ideas.load("mine", templates)
    with pytest.raises(BadIdea) as error:
        ideas.render_step(idea, idea.plan[0], Fixed(), templates)
    assert str(error.value).startswith("mine, step one: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ k.__class__.__init__.__globals__ }}",
        "{{ ('{0.__class__}').format(k) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x' * 10 ** 11 }}",
        "{{ 10 ** 11 * [0] }}",
    ],
)
def test_a_template_reaches_nothing_but_the_values_it_is_given(tmp_path: Path, template: str):
    write_idea(tmp_path, IDEA, template)
    idea = ideas.load("mine", tmp_path)
    with pytest.raises(BadIdea, match=r"mine, step .*: .*experiment\.py\.j2 line 1: .*(unsafe|undefined|too big)"):
        ideas.render_step(idea, idea.plan[0], Fixed(), tmp_path)


def test_an_unknown_idea_suggests_the_nearest_names():
    with pytest.raises(BadIdea, match=r"unknown idea 'hierarchical': did you mean hierarchical_sae\?"):
        ideas.load("hierarchical")
    assert ideas.idea_names(HERE / "templates") == []
