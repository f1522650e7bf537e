"""A text of the user's own: no duplicate across splits, nothing half-read kept, and what was read is said."""

import json
import random
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import torch
from small_lab import HOOK

from agent.lab import activations, corpus, models, text
from agent.lab.errors import UserError
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.text_files import LONGEST_PIECE

ROWS = 30_000
WORDS = "the of and to a in is it you that he was for on are with as his they be at one".split()  # noqa: SIM905


def made_up(count: int, seed: int = 0, words: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=words)) + f" {number}." for number in range(count)]


def write(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("a corpus") / "my text.jsonl", made_up(6000, words=20))


@pytest.fixture(scope="module")
def pinned(corpus_file: Path, small_model: Path) -> str:
    """The corpus, read and harvested."""
    name = corpus.pin(str(corpus_file))
    activations.ensure_harvest(str(small_model), HOOK, ROWS, name)
    return name


def windows_of(model: Path, name: str, rows: int = ROWS) -> torch.Tensor:
    return corpus.train_windows(name, str(model), lambda: models.load(str(model)), rows).long()


# Splits


def variants(document: str) -> list[str]:
    """The same document as other files may have it."""
    return [
        document.upper(),
        f"  {document}\r\n",
        document.replace(" ", "\n"),
        unicodedata.normalize("NFD", document),
        unicodedata.normalize("NFC", document),
    ]


def test_duplicates_share_a_split_however_they_are_written():
    for document in ("A cat sat on the mat", "Ein Café, äöü", "Żółć gęś", "한국어 문장", "第三篇文章没有空格", "x"):
        assert len({corpus.split_of(variant) for variant in variants(document)}) == 1


def test_the_splits_have_their_shares():
    counted = Counter(corpus.split_of(document) for document in made_up(20_000))
    assert counted["dev"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert counted["test"] / 20_000 == pytest.approx(0.05, abs=0.006)


def test_no_duplicate_across_unlike_files_is_both_trained_and_scored_on(small_model: Path, tmp_path: Path):
    """Other languages, tiny documents, lines of Windows, one huge line: a document is in one split, and once."""
    model = models.load(str(small_model))
    plain = made_up(1500, seed=1)
    languages = [f"Der {n}. Satz über Öl und Äpfel, {n * 7}" for n in range(700)] + [
        f"文章{n}没有空格" for n in range(700)
    ]
    tiny = [f"w{number}" for number in range(2000)]
    (tmp_path / "windows.txt").write_bytes("\r\n".join([*plain[:1000], *languages]).encode())
    (tmp_path / "paragraphs.txt").write_text("\n\n".join(document.upper() for document in plain[500:]))
    (tmp_path / "tiny.txt").write_text("\n".join(tiny + tiny))
    for name in ("huge.txt", "the same huge line.txt"):
        (tmp_path / name).write_text(" ".join(made_up(2000, seed=2)))
    write(tmp_path / "again.jsonl", [*plain, *languages, *tiny])
    name = corpus.pin(str(tmp_path))
    train = windows_of(small_model, name, 10**6)
    folder = tmp_path / "evaluation"
    held_out = corpus.held_out_windows(name, str(small_model), folder)
    documents = {split: set(decoded(model, ids)) for split, ids in (("train", train), *held_out.items())}
    assert len(documents["dev"]) > 100
    assert documents["train"].isdisjoint(documents["dev"] | documents["test"])
    assert documents["dev"].isdisjoint(documents["test"])
    everything = Counter(
        document for ids in (train, held_out["dev"], held_out["test"]) for document in decoded(model, ids)
    )
    assert max(everything.values()) == 1
    assert max(map(len, everything)) <= LONGEST_PIECE
    assert {"w7", "w8", "w9"} <= set(everything)


def decoded(model, ids: torch.Tensor) -> list[str]:
    """The whole documents in windows, normalised."""
    end = model.tokenizer.eos_token_id
    found, current = [], None  # the first and the last may be cut off
    for token in ids[:, 1:].flatten().tolist():
        if token == end:
            if current:
                found.append(text.normalise(model.tokenizer.decode(current)))
            current = []
        elif current is not None:
            current.append(token)
    return found


def test_a_probed_prompt_is_not_trained_on(small_model: Path, tmp_path: Path):
    prompt = min(text.held_out_prompts(), key=len)
    assert len(prompt) < 200
    model = models.load(str(small_model))
    write(tmp_path / "a.jsonl", [prompt, *made_up(1500, seed=3)])
    train = windows_of(small_model, corpus.pin(str(tmp_path)))
    assert prompt not in decoded(model, train)


# What is read of it


def test_training_windows_are_kept_beside_the_evaluation_for_one_that_cannot_read_the_text(
    pinned: str, small_model: Path, tmp_path: Path
):
    train = windows_of(small_model, pinned)
    without = corpus.kept_training_windows(pinned, str(small_model), tmp_path / "without")
    assert torch.equal(without, train[: len(without)]), "a few are kept in any case"
    (tmp_path / "with").mkdir()
    corpus.keep_training(pinned, str(small_model), tmp_path / "with")
    corpus.keep_training(pinned, str(small_model), tmp_path / "with")
    kept = corpus.kept_training_windows(pinned, str(small_model), tmp_path / "with")
    assert len(kept) >= max(len(train), len(without))
    assert torch.equal(kept[: len(train)], train)


def test_held_out_windows_do_not_depend_on_the_tokens_of_the_study(pinned: str, small_model: Path, tmp_path: Path):
    few = corpus.held_out_windows(pinned, str(small_model), tmp_path / "few")
    windows_of(small_model, pinned, 3 * ROWS)
    many = corpus.held_out_windows(pinned, str(small_model), tmp_path / "many")
    assert all(torch.equal(few[split], many[split]) for split in ("train", "dev", "test"))


def test_the_manifest_says_what_was_read(pinned: str, small_model: Path):
    _, manifest = activations.ensure_harvest(str(small_model), HOOK, ROWS, pinned)
    assert (manifest.text, manifest.rows) == (pinned, ROWS)
    assert 0 < manifest.documents < 6000
    assert manifest.passes(3 * ROWS) == 3
    assert manifest.median_norm


def test_a_text_shorter_than_the_training_is_read_in_passes(small_model: Path, tmp_path: Path):
    name = corpus.pin(str(write(tmp_path / "a.jsonl", made_up(900, seed=4))))
    _, manifest = activations.ensure_harvest(str(small_model), HOOK, 500_000, name)
    assert manifest.rows < 250_000
    assert manifest.passes(500_000) > 2


def test_a_harvest_is_of_the_content(pinned: str, small_model: Path, corpus_file: Path, tmp_path: Path):
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(corpus_file.read_bytes())
    folder, _ = activations.ensure_harvest(str(small_model), HOOK, ROWS, pinned)
    key = activations.HarvestKey(str(small_model), models.identity(str(small_model)), HOOK, ROWS)
    assert folder != key.folder()
    write(moved, made_up(5999, words=20))
    assert corpus.version(corpus.pin(str(moved))) != corpus.version(pinned)


def test_a_changed_text_is_not_read_in_the_place_of_the_pinned_one(small_model: Path, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", made_up(1500, seed=5))
    name = corpus.pin(str(file))
    write(file, made_up(1500, seed=6))
    with pytest.raises(UserError, match="is not as it was when it was pinned"):
        windows_of(small_model, name)


def test_kept_windows_serve_without_the_files(small_model: Path, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", made_up(1500, seed=7))
    name = corpus.pin(str(file))
    before = windows_of(small_model, name)
    file.unlink()
    assert torch.equal(windows_of(small_model, name), before)


def test_windows_cut_short_on_the_disk_are_read_again(small_model: Path, tmp_path: Path):
    name = corpus.pin(str(write(tmp_path / "a.jsonl", made_up(1500, seed=8))))
    before = windows_of(small_model, name)
    kept = next(corpus._folder(name, str(small_model)).glob("train-*"))
    kept.write_bytes(kept.read_bytes()[:-100])
    assert torch.equal(windows_of(small_model, name), before)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "holds no text"),
        (["  "] * 50, "holds no text"),
        (made_up(20), "is too short"),
        (["the same document"] * 9000, "is too short"),
    ],
    ids=["empty", "blank", "short", "one document again and again"],
)
def test_a_text_of_too_little_is_refused_and_nothing_kept(
    small_model: Path, tmp_path: Path, documents: list[str], message: str
):
    name = corpus.pin(str(write(tmp_path / "a.jsonl", documents)))
    with pytest.raises(UserError, match=message) as caught:
        windows_of(small_model, name)
    assert "\n" not in str(caught.value)
    assert not list(corpus._folder(name, str(small_model)).glob("*"))


def test_a_mistake_in_the_middle_keeps_nothing(small_model: Path, tmp_path: Path):
    file = write(tmp_path / "a.jsonl", made_up(1500, seed=9))
    file.write_bytes(file.read_bytes() + b'{"text": "cut o')
    name = corpus.pin(str(file))
    with pytest.raises(UserError, match="line 1501 is not JSON"):
        windows_of(small_model, name, 10**6)
    assert not list(corpus._folder(name, str(small_model)).glob("*"))


def test_half_a_surrogate_pair_is_read_as_a_question_mark(small_model: Path, tmp_path: Path):
    """A row of scraped text ends in half an emoji: JSON has it as an escape, and no tokenizer takes it."""
    ids = []
    for name, half in (("a", "\ud83d"), ("b", "?")):
        documents = [document + half for document in made_up(6000, seed=10, words=20)]
        ids.append(windows_of(small_model, corpus.pin(str(write(tmp_path / f"{name}.jsonl", documents)))))
    assert torch.equal(*ids)


def test_a_text_that_nobody_could_see_is_none(small_model: Path, tmp_path: Path):
    invisible = ["\u200b\u200d\ufeff \x07" * number for number in range(1, 2000)]
    name = corpus.pin(str(write(tmp_path / "a.jsonl", invisible)))
    with pytest.raises(UserError, match="holds no text"):
        windows_of(small_model, name)


def test_a_name_with_a_line_end_is_pinned_as_any_other(tmp_path: Path):
    (tmp_path / "two\nlines").mkdir()
    file = write(tmp_path / "two\nlines/a.jsonl", made_up(10))
    assert corpus.source(corpus.pin(str(file))) == str(file)


# Runs by hand, worlds, the evaluator


def test_a_world_has_no_text(pinned: str):
    with pytest.raises(UserError, match="is a synthetic world and has no text"):
        activations.stream("synth2k", "activations", text=pinned, tokens=100, batch=10, seed=0)


def test_a_stream_by_hand_takes_the_path(pinned: str, corpus_file: Path, small_model: Path):
    taken = activations.stream(str(small_model), HOOK, text=str(corpus_file), tokens=ROWS, batch=1000, seed=0)
    assert taken.manifest.text == pinned


def test_the_text_of_a_study_cannot_be_changed(pinned: str, small_model: Path, monkeypatch: pytest.MonkeyPatch):
    fixed = {"model": str(small_model), "hook_name": HOOK, "text": pinned, "tokens": ROWS}
    monkeypatch.setenv("SAE_AGENT_FIXED", json.dumps(fixed))
    with pytest.raises(UserError, match="TEXT is '' but the study fixes it to"):
        activations.stream(str(small_model), HOOK, tokens=ROWS, batch=1000, seed=0)


def test_saes_are_scored_on_held_out_documents(pinned: str, small_model: Path):
    evaluator = Evaluator(str(small_model), HOOK, pinned)
    dev, test = evaluator.held_out("dev").ids, evaluator.held_out("test").ids
    assert len(dev) % 16 == 0
    rows = {tuple(row) for row in dev.tolist()}
    assert rows.isdisjoint(map(tuple, test.tolist()))
    documents = [document for window in dev for document in decoded(evaluator.model, window[None])]
    assert {corpus.split_of(document) for document in documents} == {"dev"}
    assert evaluator.folder != Evaluator(str(small_model), HOOK).folder
