"""The text: every prompt in one split, probed prompts in none."""

from collections import Counter
from functools import cache

import pytest

from agent.lab import text


@cache
def everything() -> list[str]:
    return list(text.prompts(*text.SHARES))


@cache
def keys() -> list[str]:
    return [text.normalise(prompt) for prompt in everything()]


@cache
def splits() -> Counter[text.Split]:
    return Counter(text.split_of(key) for key in keys())


@pytest.mark.slow
def test_a_split_is_its_part_of_the_whole_and_the_same_every_time():
    dev = list(text.prompts("dev"))
    assert dev == [prompt for prompt, key in zip(everything(), keys(), strict=True) if text.split_of(key) == "dev"]


def test_no_prompt_stands_in_two_splits_or_twice_in_one():
    assert len(set(keys())) == len(keys())
    assert set(splits()) == set(text.SHARES)


def test_duplicates_share_a_split_however_they_are_written():
    assert text.split_of("The  cat\n sat ") == text.split_of("the cat sat")


def test_the_splits_have_their_shares():
    for split, share in text.SHARES.items():
        assert abs(splits()[split] / len(everything()) - share / 1000) < 0.005


def test_held_out_prompts_and_their_duplicates_are_in_no_split():
    held_out = {
        text.normalise(prompt)
        for name in text.HELD_OUT
        for prompt in text.read_prompts(text.data_dir() / f"{name}.csv.zst")
    }
    assert len(held_out) > 10_000
    assert not held_out & set(keys())


def test_a_held_out_prompt_recurs_in_other_datasets():
    """Otherwise the test above could not fail."""
    names = {path.name.split(".")[0] for path in text.data_dir().glob("*.csv.zst")} - set(text.HELD_OUT)
    small = sorted(name for name in names if "headline" in name or "nyc_borough" in name)
    others = {text.normalise(p) for name in small for p in text.read_prompts(text.data_dir() / f"{name}.csv.zst")}
    assert others & text.held_out_prompts()


def test_the_probed_datasets_are_held_out():
    from agent.lab.evaluation.bench import probing

    assert set(probing.DATASETS) <= set(text.HELD_OUT)
