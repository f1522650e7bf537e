"""Ideas from outside: a user's own folder is studied, kept by the study, and reaches nothing beyond itself."""

import shutil
from pathlib import Path

import pytest
from git import Repo
from standin import Checkout, make_checkout

from agent import TEMPLATES, idea_folder, ideas
from agent.idea_folder import BadIdea
from agent.ideas import Fixed
from agent.lab.errors import UserError

FIGURES = """\
from agent.report.figure_style import Figure


def draw(directory, runs):
    import matplotlib.figure

    matplotlib.figure.Figure().savefig(directory / "mine.png")
    return [Figure("mine.png", "A figure of my own.")]
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.fixture
def mine(checkout: Checkout) -> Path:
    """An idea in a folder of the user's, with a file that its template includes."""
    checkout.plan("fine", "denser")
    folder = checkout.root.parent / "ideas of mine/my_idea"
    shutil.move(checkout.root / "templates/ideas/stand_in", folder)
    (folder / "parts").mkdir()
    (folder / "parts/more.py.j2").write_text("MINE = 1\n")
    template = folder / "experiment.py.j2"
    template.write_text(template.read_text().replace("{{ more }}", '{% include "parts/more.py.j2" %}'))
    (folder / "figures.py").write_text(FIGURES)
    return folder


@pytest.mark.slow
def test_a_study_keeps_the_idea_that_it_was_given(checkout: Checkout, mine: Path):
    ended = checkout.agent("run", "--idea", "./ideas of mine/my_idea", "--max-runs", "1", "--baseline-seeds", "1")
    assert ended.returncode == 0, ended.stderr
    study = checkout.study
    assert study.name.endswith("_my_idea")
    kept = study.directory / "idea/my_idea"
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {path.name for path in mine.rglob("*.*")}
    assert "\nMINE = 1\n" in (study.run_dir(1) / "experiment.py").read_text()
    assert "A figure of my own." in checkout.notes
    assert "the idea my_idea" in Repo(study.directory).git.log("--format=%s")
    assert checkout.state.started.idea_folder == str(mine.resolve())

    template = mine / "experiment.py.j2"
    template.write_text(template.read_text().replace("extends", "broken"))
    ended = checkout.agent("resume", study.name, "--max-runs", "2")
    assert ended.returncode == 2  # not a path
    ended = checkout.agent("resume", str(study.directory), "--max-runs", "2")
    assert ended.returncode == 0, ended.stderr
    assert f"the idea in {mine.resolve()} has changed: the study goes on with its copy, {kept}" in ended.stdout
    assert len(checkout.state.runs) == 3

    shutil.rmtree(mine)
    (kept / "figures.py").write_text("")
    shown = checkout.agent("show", str(study.directory))
    assert shown.returncode == 1
    assert "idea/my_idea/figures.py" in shown.stdout + shown.stderr
    refused = checkout.agent("resume", str(study.directory), "--max-runs", "3")
    assert refused.returncode == 2
    assert f"{kept}/figures.py was changed after it was recorded: put it back with git " in refused.stderr


def outside(folder: Path, template: str, **files: str) -> ideas.Idea:
    """Write an idea whose template adds to the baseline, and load it."""
    folder.mkdir(parents=True)
    shutil.copy(TEMPLATES / "ideas/matryoshka_sae/idea.yaml", folder)
    (folder / "experiment.py.j2").write_text(template)
    for name, text in files.items():
        (folder / name).write_text(text)
    return ideas.load(str(folder))


def rendered(idea: ideas.Idea) -> str:
    return ideas.render_step(idea, idea.plan[0], Fixed())


def test_a_template_from_outside_extends_the_baseline_or_another_idea_and_includes_its_own_files(tmp_path: Path):
    part = '{% block sae %}\n{% include "part" %}\n{{ super() }}\n{% endblock %}\n'
    idea = outside(tmp_path / "mine", '{% extends "experiment.py.j2" %}\n' + part, part="MINE = {{ k }}\n")
    assert rendered(idea).count("\nMINE = 16\n") == 1
    (idea.folder / "part").write_text("CHANGED = {{ k }}\n")
    assert "\nCHANGED = 16\n" in rendered(idea)
    shipped = ideas.load("matryoshka_sae")
    assert rendered(outside(tmp_path / "other", '{% extends "ideas/matryoshka_sae/experiment.py.j2" %}')) == rendered(
        shipped
    )
    named = outside(tmp_path / "matryoshka_sae", "K = {{ k }}")  # as one of ours is: its own template is rendered
    assert rendered(named) == "K = 16"
    assert rendered(shipped) != "K = 16"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "./../secret", "link", "linked/secret", ".hidden"])
def test_a_template_from_outside_reaches_no_file_but_its_own(tmp_path: Path, name: str):
    (tmp_path / "secret").write_text("SECRET")
    idea = outside(tmp_path / "mine", f'{{% include "{name}" %}}', **{".hidden": "SECRET"})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/secret").write_text("SECRET")
    if name == "link":
        (idea.folder / "link").symlink_to(tmp_path / "secret")
    if name == "linked/secret":
        (idea.folder / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadIdea, match=r"mine, step .*: template .* does not exist|is a link") as error:
        rendered(idea)
    assert len(str(error.value).splitlines()) == 1


def test_an_error_in_a_template_from_outside_names_its_line(tmp_path: Path):
    with pytest.raises(BadIdea, match=r"mine, step \w+: .*/mine/part line 2: 'missing' is undefined"):
        rendered(outside(tmp_path / "mine", '{% include "part" %}', part="\n{{ missing }}\n"))
    with pytest.raises(BadIdea, match=r"other, step \w+: .*/other/experiment.py.j2 line 2: "):
        rendered(outside(tmp_path / "other", "\n{% if %}"))


def test_a_template_that_renders_to_no_python_is_refused_in_one_line(tmp_path: Path):
    with pytest.raises(
        BadIdea, match=r"step \w+: the experiment.py that it renders cannot be parsed: line 1 "
    ) as error:
        rendered(outside(tmp_path / "mine", "K = {{ k }} +\n"))
    assert len(str(error.value).splitlines()) == 1


def test_a_bad_path_is_refused_in_one_line(tmp_path: Path):
    shutil.copytree(TEMPLATES / "ideas/matryoshka_sae", tmp_path / "two words")
    for name, message in (
        (tmp_path / "nowhere", "is no folder with an idea.yaml: give an idea's folder"),
        (TEMPLATES / "ideas/matryoshka_sae/idea.yaml", "is no folder with an idea.yaml"),
        (tmp_path / ("long" * 100), "cannot be read"),
        (tmp_path / "two words", "studies are named after the folder, so name it with letters"),
    ):
        with pytest.raises(UserError) as error:
            ideas.load(str(name))
        assert message in str(error.value)
        assert len(str(error.value).splitlines()) == 1
    assert ideas.load(str(TEMPLATES / "ideas/matryoshka_sae")) == ideas.load("matryoshka_sae")


def test_what_is_no_file_of_an_idea_is_not_copied(tmp_path: Path):
    idea = outside(tmp_path / "mine", "", **{"words.json": "[]", ".env": "SECRET"})
    (idea.folder / "__pycache__").mkdir()
    (idea.folder / "__pycache__/x.pyc").touch()
    names = idea_folder.keep(idea.folder, tmp_path)
    assert names == [f"idea/mine/{name}" for name in ("experiment.py.j2", "idea.yaml", "words.json")]
    (idea.folder / "data").write_bytes(bytes(idea_folder.MOST_BYTES + 1))
    with pytest.raises(BadIdea, match=r"data has 4,194,305 bytes; a study keeps a copy of at most 4,194,304"):
        rendered(idea)  # before anything is started
    (idea.folder / "data").unlink()
    for number in range(idea_folder.MOST_FILES):
        (idea.folder / f"{number}.txt").touch()
    with pytest.raises(BadIdea, match="holds more than 100 files: give an idea a folder of its own"):
        idea_folder.keep(idea.folder, tmp_path)
