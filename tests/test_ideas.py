"""Ideas: what is wrong with one is said with its file, field, step or line; the plan that ships renders."""

import ast
from pathlib import Path

import pytest
import yaml
from standin import HERE

from agent import ideas
from agent.ideas import BadIdea, Fixed, Idea

SHIPPED = ideas.TEMPLATES / "ideas/hierarchical_sae/experiment.py.j2"
BASELINE = ideas.TEMPLATES / "experiment.py.j2"
STEP = {"name": "one", "title": "t", "description": "d", "why": "w", "predictions": {"l0": "same"}}
IDEA = {"title": "t", "description": "d", "hypothesis": "h", "smallest_effect": 0.1, "plan": [STEP]}


def written(directory: Path, idea: object, template: str = "", base: str = "") -> Path:
    """A directory of templates with the idea `mine`."""
    (directory / "ideas/mine").mkdir(parents=True)
    (directory / "ideas/mine/idea.yaml").write_text(idea if isinstance(idea, str) else yaml.safe_dump(idea))
    (directory / "ideas/mine/experiment.py.j2").write_text(template)
    (directory / "experiment.py.j2").write_text(base)
    return directory


@pytest.mark.skipif(not BASELINE.exists(), reason="templates/experiment.py.j2 is not there yet")
def test_the_experiment_of_the_checkout_is_the_rendered_baseline():
    assert (ideas.ROOT / "experiment.py").read_text() == ideas.render_baseline(Fixed())


@pytest.mark.skipif(not SHIPPED.exists(), reason="the template of hierarchical_sae is not there yet")
def test_each_step_of_the_shipped_plan_renders_another_program():
    idea = ideas.load("hierarchical_sae")
    sources = [ideas.render_step(idea, step, idea.fixed) for step in idea.plan]
    programs = {ast.dump(ast.parse(source)) for source in [ideas.render_baseline(idea.fixed), *sources]}
    assert len(programs) == len(idea.plan) + 1


def test_the_shipped_plan_has_five_steps_with_predictions():
    plan = ideas.load("hierarchical_sae").plan
    assert [step.name for step in plan] == [
        "composition",
        "learned_weights",
        "curriculum",
        "no_composition",
        "tier_sizes_eighths",
    ]
    assert all(step.predictions for step in plan)


def test_fixed_settings_and_parameters_reach_the_template(tmp_path: Path):
    base = "MODEL = '{{ model }}'\n{% block k %}\nK = 16\n{% endblock %}\n"
    child = "{% extends 'experiment.py.j2' %}\n{% block k %}\nK = {{ k }} + {{ extra }}\n{% endblock %}\n"
    step = STEP | {"parameters": {"k": 32}}
    templates = written(tmp_path, IDEA | {"defaults": {"k": 16, "extra": 1}, "plan": [step]}, child, base)
    idea = ideas.load("mine", templates)
    fixed = Fixed(model="gpt2")
    assert ideas.render_baseline(fixed, templates) == "MODEL = 'gpt2'\nK = 16\n"
    assert ideas.render_step(idea, idea.plan[0], fixed, templates) == "MODEL = 'gpt2'\nK = 32 + 1\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "idea.yaml: colour: Extra inputs are not permitted"),
        ({"plan": []}, "idea.yaml: plan: "),
        ({"plan": [STEP | {"why": 3}]}, "idea.yaml: plan.0.why: "),
        ({"plan": [STEP | {"predictions": {"l0": "sideways"}}]}, "plan.0.predictions.l0: "),
        ({"plan": [STEP | {"predictions": {"ce_los_score": "up"}}]}, "did you mean ce_loss_score"),
        ({"plan": [STEP | {"parameters": {"kk": 1}}], "defaults": {"k": 1}}, "sets 'kk', which has no default"),
        ({"plan": [STEP, STEP]}, "two steps of the plan are named 'one'"),
        ({"primary_metric": "beauty"}, "primary_metric 'beauty'"),
        ({"fixed": {"tokens": 0}}, "fixed.tokens: "),
    ],
)
def test_a_broken_idea_is_named_by_file_and_field(tmp_path: Path, change: dict, said: str):
    with pytest.raises(BadIdea) as caught:
        ideas.load("mine", written(tmp_path, IDEA | change))
    assert said in str(caught.value)
    assert "idea.yaml" in str(caught.value)


def test_broken_yaml_is_named_by_line(tmp_path: Path):
    with pytest.raises(BadIdea, match=r"idea\.yaml line 3: "):
        ideas.load("mine", written(tmp_path, "title: t\nplan: [\n"))


def test_yaml_without_fields_is_refused(tmp_path: Path):
    with pytest.raises(BadIdea, match="expected fields such as title and plan, found list"):
        ideas.load("mine", written(tmp_path, "- one\n"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n\nK = {{ missing }}\n", "experiment.py.j2 line 3: 'missing' is undefined"),
        ("\n{% if %}\n", "experiment.py.j2 line 2: "),
        ("{% extends 'nowhere.j2' %}", "nowhere.j2 does not exist"),
        ("\n{{ 1 / 0 }}", "experiment.py.j2 line 2: division by zero"),
    ],
)
def test_a_broken_template_is_named_by_idea_step_and_line(tmp_path: Path, template: str, said: str):
    templates = written(tmp_path, IDEA, template)
    idea: Idea = ideas.load("mine", templates)
    with pytest.raises(BadIdea) as caught:
        ideas.render_step(idea, idea.plan[0], Fixed(), templates)
    assert str(caught.value).startswith("mine, step one: ")
    assert said in str(caught.value)


def test_the_nearest_ideas_are_offered():
    with pytest.raises(BadIdea, match=r"unknown idea 'hierarchical': did you mean hierarchical_sae\?"):
        ideas.load("hierarchical")
    assert ideas.names(HERE / "templates") == []
