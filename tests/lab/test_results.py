"""Files that an experiment may plant in place of results: read as damage, never followed or waited for."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.lab import results
from agent.lab.files import BadFile
from agent.lab.results import FinalInfo, Measure
from agent.lab.verdicts import Verdict

OK = FinalInfo(verdict=Verdict(name="ok", evidence="sound"))


def link(path: Path) -> None:
    real = path.with_name("elsewhere")
    results.write(path.parent, OK)
    (path.parent / "final_info.json").rename(real)
    path.symlink_to(real)


def dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.mkdir()


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10**12)


PLANTED = {
    link: "is not a regular file",
    dangling_link: "is not a regular file",
    pipe: "is not a regular file",
    directory: "is not a regular file",
    huge: "is larger than (2|16) MiB",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize(("plant", "said"), PLANTED.items(), ids=[plant.__name__ for plant in PLANTED])
@pytest.mark.parametrize(("name", "read"), [("final_info.json", results.read), ("metrics.jsonl", results.read_metrics)])
def test_anything_but_a_regular_file_is_damage(tmp_path: Path, plant: Callable, said: str, name: str, read: Callable):
    plant(tmp_path / name)
    with pytest.raises(BadFile, match=f"{name} {said}"):
        read(tmp_path)


def test_results_come_back_as_they_were_written(tmp_path: Path):
    results.write(tmp_path, OK)
    assert results.read(tmp_path) == OK


@pytest.mark.parametrize("name", ["definition", "says"])
def test_an_idea_may_call_the_definition_of_a_measure_by_either_name(name: str):
    assert (
        Measure.model_validate({"title": "L0", name: "active latents a token"}).definition == "active latents a token"
    )
