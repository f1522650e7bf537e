"""The review page in Chromium: it works from a file, runs no text of others as code, and asks for nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from page_study import converse, make_study

from agent.report.page.opened import open_study
from agent.report.page.render import render
from agent.study.events import RunDescribed
from agent.study.ledger import Ledger
from agent.study.workspace import Study, find_study

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on PATH: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_study(tmp_path_factory.mktemp("a study"))
    converse(study)
    found = find_study(study.directory)
    assert found
    study.notes.mkdir(parents=True)
    (study.notes / "review.html").write_text(render([open_study(*found)]))
    return study


class Watched:
    """A page with what it asked for and complained of."""

    def __init__(self, page: "Page", address: str) -> None:
        self.page, self.requests, self.complaints = page, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(address)
        self.address = address

    def assert_quiet(self) -> None:
        assert [url for url in self.requests if not url.startswith(self.address)] == []
        assert self.complaints == []
        assert self.page.evaluate("window.hacked") is None


@pytest.fixture
def opened(browser: "Browser", study: Study) -> Iterator[Watched]:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    watched = Watched(page, (study.notes / "review.html").as_uri())
    yield watched
    watched.assert_quiet()
    page.close()


def cells(page: "Page", column: int) -> list[str]:
    """Return the texts of a column of the table of results, as far as rows are visible."""
    rows = page.locator("#results-table tbody tr:visible").all()
    return [row.locator("td").nth(column).inner_text() for row in rows]


def test_a_column_sorts_up_and_down_by_keyboard(opened: Watched):
    button = opened.page.get_by_role("button", name="CE-loss score")
    button.focus()
    opened.page.keyboard.press("Enter")
    assert cells(opened.page, 0) == ["2", "1", "0", "3", "4"]
    opened.page.keyboard.press("Enter")
    assert cells(opened.page, 0) == ["3", "0", "1", "2", "4"], "what has no figure comes last"
    heads = opened.page.locator("#results-table th[aria-sort=descending]")
    assert heads.count() == 1


def test_rows_are_filtered_by_text_and_outcome(opened: Watched):
    form = opened.page.locator("form[data-table=results-table]")
    form.get_by_label("Search").fill("slower")
    assert cells(opened.page, 0) == ["2"]
    assert "1 of 5 runs" in form.inner_text()
    form.get_by_label("Search").fill("")
    form.get_by_label("Outcome").select_option("crashed")
    assert cells(opened.page, 0) == ["4"]


def test_a_link_leads_to_a_run(opened: Watched):
    opened.page.locator("#results-table").get_by_role("link", name="2", exact=True).click()
    opened.page.wait_for_url("**#run-2")
    box = opened.page.locator("#run-2").bounding_box()
    assert box
    assert abs(box["y"]) < 200


def test_a_mark_of_a_figure_says_what_it_shows_and_leads_to_its_run(opened: Watched):
    mark = opened.page.locator("#figures svg .mark[data-run='2'] use").first
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    assert box
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = opened.page.locator("#tip")
    assert "run 2: Slower {{ 7*7 }}: CE-loss score -0.0" in tip.inner_text()
    assert "±" in tip.inner_text()
    opened.page.mouse.down()
    opened.page.mouse.up()
    opened.page.wait_for_url("**#run-2")


def test_a_training_curve_is_read_at_the_pointer(opened: Watched):
    path = opened.page.locator("#run-1-curves-loss .own path")
    path.scroll_into_view_if_needed()
    box = path.bounding_box()
    assert box
    opened.page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 1)
    words = opened.page.locator("#tip").inner_text()
    assert words == "run 1\ntokens (millions) 1.5, training loss 4"


def test_latents_are_found_by_token_and_by_label(opened: Watched):
    form = opened.page.locator("#features-form")
    rows = opened.page.locator("#latents tbody tr")
    assert rows.count() == 40
    form.get_by_label("Active on token").fill("river")
    assert 0 < rows.count() < 40
    form.get_by_label("Active on token").fill("window.hacked = 'token'")
    assert rows.count() > 0
    form.get_by_label("Active on token").fill("no such token")
    assert rows.count() == 0
    form.get_by_label("Active on token").fill("")
    form.get_by_label("Label or number").fill("composed of")
    assert rows.count() == 1
    assert "14" in rows.first.inner_text()


def test_latents_are_sorted_and_those_that_are_new_are_chosen(opened: Watched):
    form, rows = opened.page.locator("#features-form"), opened.page.locator("#latents tbody tr")
    form.locator("[name=run]").select_option(label="run 3: Longer \\u202edesrever")
    assert rows.first.locator("td").first.inner_text() == "14", "the one that the idea names"
    form.locator("[name=sort]").select_option("density")
    assert rows.first.locator("td").first.inner_text() == "78"
    form.locator("[name=show]").select_option("new")
    assert rows.count() == 10


def test_a_latent_has_a_page_of_its_own(opened: Watched):
    opened.page.evaluate("location.hash = 'run-1-latent-10'")
    panel = opened.page.locator("#run-1-latent-10")
    text = panel.inner_text()
    for said in ("Latent 10", "Fired fewer than 10 times", "Strongest contexts", "Promoted tokens", "latent 999"):
        assert said in text
    assert panel.locator("mark.peak").first.get_attribute("title") == "activation 1.5"
    assert panel.locator("svg.histogram rect").count() == 4
    assert panel.get_by_role("link", name="latent 2").first.get_attribute("href") == "#run-1-latent-2"
    assert panel.get_by_role("link", name="latent 999").count() == 0, "it was not kept"
    panel.get_by_role("link", name="latent 2").first.click()
    assert "true feature 11, cosine 0.9, F1 0.8, below 3, 1" in opened.page.locator("#run-1-latent-2").inner_text()


def test_two_runs_are_side_by_side_with_their_matched_latents(opened: Watched):
    opened.page.evaluate("location.hash = 'run-1-latent-40'")
    opened.page.locator("#features-form [name=beside]").select_option(label="run 0: Baseline")
    titles = opened.page.locator("#run-1-latent-40 h3").all_inner_texts()
    assert titles == ["Latent 40", "Latent 38"]
    assert "cosine 1." in opened.page.locator("#run-1-latent-40").inner_text()
    opened.page.locator("#features-form [name=show]").select_option("lost")
    assert opened.page.locator("#latents tbody tr").count() > 5


def test_a_link_into_something_folded_unfolds_it(opened: Watched):
    opened.page.evaluate("location.hash = 'request-1'")
    assert opened.page.locator("#request-1").is_visible()


def test_the_page_prints_and_is_dark_where_screens_are(browser: "Browser", study: Study):
    page = browser.new_page(color_scheme="dark")
    watched = Watched(page, (study.notes / "review.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 28)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav.contents").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")
    watched.assert_quiet()
    page.close()


def test_a_served_page_loads_again_when_the_study_goes_on(browser: "Browser", tmp_path: Path):
    study = make_study(tmp_path)
    command = [sys.executable, "-m", "agent", "review", str(study.directory), "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        address = server.stdout.readline().split()[0]
        page = browser.new_page()
        watched = Watched(page, address)
        assert page.get_by_text("What came out, by the language model").count() == 0
        Ledger(study.ledger).append(RunDescribed(run=1, text="It went on."))
        page.get_by_text("It went on.").wait_for(timeout=30_000)
        page.get_by_label("Active on token").fill("river")
        Ledger(study.ledger).append(RunDescribed(run=1, text="And on."))
        page.get_by_role("button", name="The study has gone on").click(timeout=30_000)
        page.get_by_text("And on.").wait_for(timeout=30_000)
        watched.assert_quiet()
        page.close()
    finally:
        server.terminate()
        assert server.wait(timeout=20) in (0, 130)


def test_the_features_survive_as_they_were_written(opened: Watched):
    data = json.loads(opened.page.locator("#features-data").text_content() or "")
    assert len(data["runs"]) == 4
