"""The review page says what was recorded, shows nothing that was changed since, and text of others stays text."""

import json
import re
import shutil
import time
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from builders import FIRST, STARTED
from page_study import HOSTILE, RUN_SCRIPT, converse, make_study, write_ledger

from agent.hypothesis import Condition, Rules
from agent.lab import features
from agent.report.page import latents
from agent.report.page.conversation import markdown
from agent.report.page.diff import diff
from agent.report.page.opened import log_tail, open_study
from agent.report.page.render import render
from agent.study.events import StudyInterrupted
from agent.study.workspace import Study, find_study

SAVED = Path(__file__).parents[2] / "fixtures/version_0_1"
VOID = ("meta", "br", "input", "img", "hr", "link", "use", "path", "rect")


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.elements, self.words, self._open = html, [], [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = [*self._open, tag] if tag not in VOID else self._open

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            self._open = self._open[: len(self._open) - 1 - self._open[::-1].index(tag)]

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(attribute)) is not None]


def page_of(*studies: Study) -> Page:
    found = [find_study(study.directory) for study in studies]
    return Page(render([open_study(*each) for each in found if each]))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("a study"))
    converse(study)
    return study


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return page_of(study)


def test_the_page_tells_the_story(page: Page):
    for said in (
        "not decided The idea declares no rules",
        "ended: the budget of 4 runs is spent",
        "run 4: crashed (ValueError",
        "the model: 3 requests, ",
        "What changed",
        "differs by -0.0186",
        "95% interval",
        "Solid: run 2. Dashed: the baseline.",
        "40 latents to look at",
        "Seeds alone replace nearly as many",
        "1 line added, 1 removed",
    ):
        assert said in page.text, said


def test_the_page_fetches_nothing_and_styles_nothing_inline(page: Page):
    targets = [*page.values("href"), *page.values("src"), *page.values("action")]
    assert [target for target in targets if not target.startswith(("#", "data:image/png;base64,"))] == []
    assert [name for _, attributes in page.elements for name in attributes if name == "style" or name[:2] == "on"] == []
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    policy = next(value for value in page.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy


def test_every_link_leads_to_something_with_that_id_and_ids_are_unique(page: Page):
    ids = page.values("id")
    assert sorted(ids) == sorted(set(ids))
    runs_with_features = {f"#run-{number}-features" for number in range(4)}
    assert {href for href in page.values("href") if href.startswith("#")} - runs_with_features <= {f"#{i}" for i in ids}


def test_text_of_others_stays_text(page: Page):
    assert f"A study {RUN_SCRIPT}" in page.text
    for hostile in ("<img src=x onerror=\"window.hacked='img'\">", "{{ 7*7 }}{% raw %}", "Slower {{ 7*7 }}"):
        assert hostile in page.text
    assert not set("\u202e\x1b\x07") & set(page.html)
    assert "\\u202e" in page.text
    assert "onerror" not in [name for _, attributes in page.elements for name in attributes]


def test_headings_form_an_outline_and_table_heads_have_a_scope(page: Page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    inside = page.html[: page.html.index('id="features-form"')]
    assert all("scope" in attributes for tag, attributes in Page(inside).elements if tag == "th")


def test_logs_are_bounded(page: Page, study: Study):
    assert (study.attempt_dir(4, 1) / "stderr.log").stat().st_size > 1_000_000
    assert len(page.html) < 1_500_000
    assert "bytes before this are not shown" in page.text
    tail = log_tail(study.run_dir(4) / "stderr.log", 1000)
    assert len(tail) < 1100
    assert tail.endswith("javascript:alert(1)")


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "stderr.log").symlink_to(tmp_path / "secret")
    assert log_tail(tmp_path / "stderr.log", 1000) == ""


def test_the_conversation_is_readable_and_inert(page: Page):
    section = page.html[page.html.index('id="run-1"') : page.html.index('id="run-2"')]
    run = Page(section)
    assert "Request 1 · proposal · scripted" in run.text
    assert "1,000 tokens read, 50 written · $0.2500" in run.text
    assert "as in request 0" in run.text, "a long prompt is shown once"
    assert "[a](javascript:alert(1)) ![b](http://example.org/x.png)" in run.text
    assert "<del>SPEED = 1</del>" in section
    assert "<ins>SPEED = 2</ins>" in section
    assert "Conversation about the study" in page.text


def test_markdown_of_a_model_has_no_links_images_html_headings_or_styles():
    hostile = "# T\n\n[a](http://x) ![b](http://x) <http://x> <b>c</b>\n\n| a |\n|--:|\n| 1 |\n\n[r]: http://x\n\n[r]"
    elements = Page(markdown(hostile)).elements
    assert {tag for tag, _ in elements} == {"p", "table", "thead", "tbody", "tr", "th", "td"}
    assert {name for _, attributes in elements for name in attributes} == {"class"}


def test_a_diff_shows_changed_lines_with_their_surroundings():
    before = "".join(f"line_{number} = {number}\n" for number in range(100))
    changed = diff(before, before.replace("line_50 = 50", "line_50 = '<b>'"))
    assert (changed.added, changed.removed) == (1, 1)
    rows = Page(changed.html)
    assert [tag for tag, _ in rows.elements if tag in ("ins", "del")] == ["del", "ins"]
    assert "line_46" not in rows.text
    assert "line_47" in rows.text
    assert "'<b>'" in rows.text.replace(" ", "")
    assert not diff(before, before)


def test_results_that_were_changed_or_are_gone_are_not_shown(tmp_path: Path):
    study = make_study(tmp_path)
    path = study.run_dir(1) / "final_info.json"
    path.write_text(path.read_text().replace("0.9607", "0.9999"))
    (study.run_dir(2) / "final_info.json").unlink()
    with (study.run_dir(3) / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    page = page_of(study)
    assert "0.9999" not in page.text
    assert "Not all of the study is shown." in page.text
    for name in ("run_1/final_info.json", "run_2/final_info.json", "run_3/metrics.jsonl"):
        assert f"{name} was changed after it was recorded, or is gone" in page.text
    assert page.text.count("no figure of it is shown") == 2
    assert "Solid: run 3." not in page.text


def test_damaged_features_are_named_and_the_rest_is_shown(tmp_path: Path):
    study = make_study(tmp_path)
    (study.run_dir(1) / features.FILE).write_bytes(b"no gzip")
    page = page_of(study)
    assert "features.json.gz is damaged" in page.text
    assert page.text.count("40 latents to look at") == 3


def test_the_answer_is_shown_with_the_rules_behind_it(tmp_path: Path):
    better = Condition(step="p3", metric="ce_loss_score", above=0.005)
    rules = Rules(
        supported_if_all=(better,), refuted_if_any=(Condition(step="p9", metric="ce_loss_score", outcome=("worse",)),)
    )
    page = page_of(make_study(tmp_path, answer=rules))
    assert "supported CE-loss score of run 3 differs by +0.0157" in page.text
    assert "yes CE-loss score above 0.005, run 3" in page.text
    assert "cannot be told worse, step p9 the step p9 has no run that counts" in page.text


def test_a_study_without_a_run_that_counts(tmp_path: Path):
    study = Study(tmp_path / "runs/new", tmp_path / "notes/new")
    write_ledger(study, [STARTED])
    assert "No run yet." in page_of(study).text
    write_ledger(study, [*FIRST[1:], StudyInterrupted(why="")])
    page = page_of(study)
    assert "interrupted; agent resume continues it" in page.text
    assert "Not finished: reserved." in page.text


@pytest.mark.parametrize("name", ["llm_study", "interrupted_study"])
def test_a_study_of_an_older_version_is_shown(tmp_path: Path, name: str):
    shutil.copytree(SAVED / name, tmp_path / "runs" / name)
    page = page_of(Study(tmp_path / "runs" / name, tmp_path / "notes" / name))
    assert "Run 2: " in page.text
    assert "Not all of the study is shown." not in page.text or name == "interrupted_study"
    assert "3 attempts before run 1, run 2" in page.text or name == "interrupted_study"


def test_two_studies_side_by_side(study: Study):
    other = make_study(study.directory.parent.parent, "other", smallest_effect=0.02)
    page = page_of(study, other)
    ids = page.values("id")
    assert sorted(ids) == sorted(set(ids))
    assert {"s1-run-3", "s2-run-3", "side-by-side"} <= set(ids)
    assert "10 runs" not in page.text
    settings = page.text[page.text.index("Settings") :]
    assert "Smallest effect worth having differs 0.005 0.02" in settings
    assert "Model tiny-lm tiny-lm" in settings


# The features


def test_features_are_json_that_ends_no_element(page: Page):
    (text,) = re.findall(r'id="features-data">(.*?)</script>', page.html, re.DOTALL)
    data = json.loads(text)
    assert not set("<>&") & set(text)
    assert [run["anchor"] for run in data["runs"]] == [f"run-{number}" for number in range(4)]
    assert f" {HOSTILE[1]}" in data["vocabulary"]
    first = data["runs"][1]["latents"][0]
    assert (first["latent"], first["sampled"], first["in_baseline"]) == (0, True, [777, 0.3])
    assert first["top"][0][2:] == [[5, 6], [3.33, 10.0]]


def test_latents_of_two_runs_are_matched_by_their_decoder_rows(page: Page):
    (text,) = re.findall(r'id="features-data">(.*?)</script>', page.html, re.DOTALL)
    closest, cosines = json.loads(text)["matches"]["1,0"]
    assert closest[10:] == list(range(29, -1, -1))
    assert set(cosines[10:]) == {100}
    assert closest[:10] == [-1] * 10  # the closest of all the baseline's latents is known, and was not kept
    assert set(cosines[:10]) == {30}
    between, _ = json.loads(text)["matches"]["1,2"]
    assert between[10:] == list(range(10, 40))


def test_features_that_are_too_many_are_cut(study: Study):
    found = find_study(study.directory)
    assert found
    collection = latents.collect({"": open_study(*found)})
    assert len(latents.as_json(collection, most_bytes=30_000)) <= 30_000
    assert any("contexts of each kind" in note for note in collection.notes)
    assert any("are left out" in note for note in collection.notes)


@pytest.mark.slow
def test_two_hundred_runs_are_a_page(tmp_path: Path):
    from page_study import many_runs

    study, before = many_runs(tmp_path, 200), time.monotonic()
    page = page_of(study)
    assert time.monotonic() - before < 60
    assert len(page.html) < 15_000_000
    assert "run-199" in page.values("id")
