"""The documentation holds: commands parse, paths exist, tables name what the code names, examples run."""

import ast
import doctest
import importlib
import re
import shlex
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import grimp
import pytest
import typer

from agent import ROOT, ideas
from agent.cli import app
from agent.comparison.judgement import Outcome
from agent.lab.evaluation import catalogue
from agent.lab.metrics import Metric
from agent.lab.verdicts import VerdictName
from agent.running import preflight
from agent.study import events

CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
ARCHITECTURE, CONTRACTS, COMPARISON, IDEAS = (
    ROOT / f"docs/{name}.md" for name in ("architecture", "contracts", "comparison", "ideas")
)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))

WRITTEN_BY_PROGRAMS = ("runs/", "notes/", "run_", "eval/", "checkpoint/", "sae_lens/", "OUT_DIR", "~/", "../runs/")
TEXT_FILES = (".py", ".md", ".j2", ".yaml", ".yml", ".toml", ".sh", ".txt")
GENERATED = {"job.sh", "notes.txt", "notes_edited_<hash>.txt"}
OF_THE_GUIDE = ("denoising_sae", "decoder_cosines")  # what its reader adds


@cache
def tracked_files() -> tuple[str, ...]:
    """Return the files of the repository, and those that are new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # no git repository: an unpacked archive
        return tuple(str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file())
    return tuple(listed.stdout.splitlines())


def code_lines(page: Path) -> Iterator[str]:
    """Yield the lines of indented and fenced code."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def spans(page: Path) -> list[str]:
    """Return the inline code of a page, code blocks left out."""
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text())
    text = "\n".join(line for line in text.split("\n") if not line.startswith("    "))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each `agent` and `python` command of a page, without the directory of the program."""
    for line in [*code_lines(page), *spans(page)]:
        for part in line.split("&&"):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # prose with an apostrophe, or code
                continue
            if words and re.fullmatch(r"(\S*/)?(agent|python3?)", words[0]):
                yield [words[0].rsplit("/", 1)[-1], *words[1:]]


def table_names(page: Path, heading: str) -> list[str]:
    """Return the code in the first column of the first table below a heading."""
    section = page.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def parse(arguments: list[str]) -> None:
    """Parse the arguments of an `agent` command without running it; a verb alone need not have what it requires.

    Raise TyperException if it would be refused.
    """
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and arguments:
        _, command, arguments = command.resolve_command(typer.Context(command), arguments)
    if arguments:
        command.make_context("agent", arguments)


def options() -> set[str]:
    """Return the options of all verbs."""
    command: Any = typer.main.get_command(app)
    verbs = [command]
    for verb in verbs:
        verbs.extend(getattr(verb, "commands", {}).values())
    return {option for verb in verbs for parameter in verb.params for option in parameter.opts}


# Commands


@each_page
def test_every_agent_command_is_one(page: Path):
    for program, *arguments in commands(page):
        if program == "agent":
            parse(arguments)


@each_page
def test_every_python_command_starts_a_file_that_has_its_options(page: Path):
    for program, *arguments in commands(page):
        if program == "agent" or not arguments:
            continue
        if "-c" in arguments:
            ast.parse(arguments[arguments.index("-c") + 1])
            continue
        if "-m" in arguments:
            name = arguments[arguments.index("-m") + 1]
            if not name.startswith("agent"):
                continue
            path = ROOT / name.replace(".", "/")
            path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        else:
            path = ROOT / arguments[0]
        source = (ROOT / "agent/lab/run.py" if path.name == "experiment.py" else path).read_text()
        for word in arguments:
            if word.startswith("--"):
                assert f'"{word.partition("=")[0]}"' in source, f"{path} has no option {word}"


@each_page
def test_every_option_in_the_text_is_one(page: Path):
    sources = "\n".join(path.read_text() for path in (ROOT / "agent/lab").rglob("*.py"))
    for span in spans(page):
        option = span.split()[0].partition("=")[0]
        if re.fullmatch(r"--[a-z][a-z_-]+", option):
            assert option in options() or f'"{option}"' in sources, f"{option} is no option"


def test_a_command_that_would_be_refused_is_found():
    for arguments in ("run --idea x", "run --idea x --max-runs 0", "rum", "show a --loud", "ideas neu x"):
        with pytest.raises(typer.TyperException):
            parse(arguments.split())


# Paths


@each_page
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@each_page
def test_lines_are_at_most_120_characters_long(page: Path):
    """But for tables and commands, which cannot be wrapped."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith(("|", "    "))]
    assert [line for line in lines if len(line) > 120] == []


@each_page
def test_every_path_in_the_text_exists(page: Path):
    folders = {part for name in tracked_files() for part in [*map(str, Path(name).parents)]}
    for span in spans(page):
        path = span.rstrip("/")
        if any(name in span for name in OF_THE_GUIDE):
            continue
        if not re.fullmatch(r"[\w./<>-]+", span) or span.startswith(WRITTEN_BY_PROGRAMS) or path in GENERATED:
            continue
        is_path = span.split("/")[0] in {folder for folder in folders if "/" not in folder} and "/" in span
        if is_path or span.endswith(TEXT_FILES):
            pattern = re.compile(rf"(.*/)?{re.sub('<[^>]*>|NAME', '[^/]+', path.replace('.', '[.]'))}")
            assert any(pattern.fullmatch(name) for name in (*tracked_files(), *folders)), f"{span} does not exist"


@each_page
def test_every_module_in_the_text_exists(page: Path):
    for span in spans(page):
        if re.fullmatch(r"agent(\.\w+)+", span):
            parts = span.split(".")
            if any((ROOT / "/".join(parts)).with_suffix(suffix).exists() for suffix in ("", ".py")):
                continue
            source = (ROOT / "/".join(parts[:-1])).with_suffix(".py")
            init = ROOT / "/".join(parts[:-1]) / "__init__.py"
            text = (source if source.exists() else init).read_text()
            assert re.search(rf"\b{parts[-1]}\b", text), f"{span} does not exist"


# Tables and trees


def test_the_tree_of_the_architecture_names_the_packages_that_exist():
    named, stack = set(), []
    for line in ARCHITECTURE.read_text().split("\n## The tree\n", 1)[1].split("\n## ", 1)[0].splitlines():
        if match := re.match(r"( {4,})(\S+)", line):
            depth = (len(match[1]) - 4) // 2
            stack[depth:] = [match[2]]
            path = "".join(stack)
            assert (ROOT / path).exists(), path
            named.add(path)
    packages = {f"{path.parent.relative_to(ROOT)}/" for path in (ROOT / "agent").rglob("__init__.py")}
    modules = {f"agent/{path.name}" for path in (ROOT / "agent").glob("[!_]*.py")}
    in_driver = {path for path in named if path.startswith("agent/")}
    assert in_driver == packages | modules | {"agent/lab/tiny_lm/"}


def test_the_architecture_names_what_the_driver_uses_of_the_lab():
    graph = grimp.build_graph("agent", cache_dir=None)
    driver = [module for module in graph.modules if module != "agent.lab" and not module.startswith("agent.lab.")]
    used = {name for module in driver for name in graph.find_modules_directly_imported_by(module)}
    used = {
        name.removeprefix("agent.lab.").removeprefix("evaluation.") for name in used if name.startswith("agent.lab.")
    }
    (sentence,) = re.findall(r"(?s)uses of the lab imports\s+none: (.*?)\.\n", ARCHITECTURE.read_text())
    assert set(re.findall(r"`(\w+)`", sentence)) - {"evaluation"} == used


def test_the_contracts_name_every_verdict_event_and_variable():
    assert set(table_names(CONTRACTS, "Verdicts")) == set(get_args(VerdictName))
    kinds = [kind.model_fields["event"].default for kind in get_args(get_args(events.Event)[0])]
    assert sorted(table_names(CONTRACTS, "The ledger")) == sorted(kinds)
    sources = "\n".join(path.read_text() for path in (ROOT / "agent").rglob("*.py"))
    variables = set(re.findall(r"SAE_AGENT_[A-Z_]+", sources))
    named = {name for name in table_names(CONTRACTS, "Environment variables") if name.startswith("SAE_AGENT_")}
    assert named == variables


def test_the_comparison_names_every_outcome():
    assert set(table_names(COMPARISON, "The outcome")) == set(get_args(Outcome))


def test_the_ideas_their_fields_and_the_blocks_of_the_template_are_named():
    first_table = IDEAS.read_text().split("\n## ", 1)[0]
    assert sorted(re.findall(r"(?m)^\| `(\w+)`", first_table)) == ideas.idea_names()
    assert set(table_names(IDEAS, "idea.yaml")) == set(ideas.Idea.model_fields) - {"folder"}
    blocks = re.findall(r"{% block (\w+) %}", (ROOT / "templates/baselines/batchtopk.py.j2").read_text())
    listed = IDEAS.read_text().split("\n## The blocks of the template\n", 1)[1].partition(":")[0]
    assert re.findall(r"`(\w+)`", listed) == blocks


def test_the_families_are_named_in_the_page_of_evaluations():
    text = (ROOT / "docs/evaluations.md").read_text()
    assert [name for name in catalogue.NAMES if f"\n| {name} |" not in text] == []


# Examples


def example(language: str, number: int = 0) -> str:
    """Return a fenced example of the guide for contributors, without its indentation."""
    blocks = re.findall(rf"(?ms)^ *```{language}\n(.*?)^ *```$", CONTRIBUTING.read_text())
    return textwrap.dedent(blocks[number])


def test_the_idea_of_the_guide_renders_and_passes_preflight(tmp_path: Path):
    folder = tmp_path / "ideas/denoising_sae"
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "templates/baselines", tmp_path / "baselines")
    (folder / "idea.yaml").write_text(example("yaml"))
    (folder / "experiment.py.j2").write_text(example("jinja"))
    idea = ideas.load("denoising_sae", tmp_path)
    source = ideas.render_step(idea, idea.plan[0], idea.fixed, tmp_path)
    assert "\nINPUT_NOISE = 0.1  #" in source
    preflight.check(source, idea.fixed, {"run 0": ideas.render_baseline(idea.fixed)})


def test_the_family_of_the_guide_scores_a_decoder_and_its_metric_finds_the_score(tmp_path: Path):
    import torch

    family: dict[str, Any] = {"__name__": "decoder_cosines"}
    exec(example("python"), family)
    sae = SimpleNamespace(W_dec=torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]]))
    assert family["unmet_requirements"](None) == []
    scores = family["score"](None, sae, tmp_path, "sae")
    (metric,) = eval(f"{{{example('python', 1)}}}", {"Metric": Metric}).values()
    assert metric.path.startswith("evaluations.decoder_cosines.metrics.")
    assert scores.metrics == {metric.path.rpartition(".")[2]: pytest.approx(2 / 3)}


def test_the_examples_in_docstrings_run():
    modules = [path for path in (ROOT / "agent").rglob("*.py") if re.search(r"(?m)^\s*>>> ", path.read_text())]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in modules]
    results = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert len(results) >= 5
    assert [name for name, result in results.items() if result.failed] == []
