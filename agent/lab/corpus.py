"""A text of the user's own: pinned by its content, split by document, packed into windows of tokens that are kept.

It is named by a path, or by a hub dataset, OWNER/NAME. A pinned name ends in what fixes the content: `@` and a hash of
the files, or the hub's commit. "" is the text that comes with the installation (text.py).

Every document goes to exactly one split, by a hash of its normalised text, as in text.py, so that no duplicate of a
document that SAEs are trained on is in the text that they are scored on. Only as much is read as a study needs.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import cache, files, hub, models, start, text, text_files, tokens
from agent.lab.errors import UserError
from agent.lab.locks import waiting_lock
from agent.lab.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

FORMAT = 1
Split = Literal["train", "dev", "test"]
SHARES: dict[Split, int] = {"train": 900, "dev": 50, "test": 50}  # of the documents, in thousandths
HELD_OUT_WINDOWS = 1024  # of dev and of test, at most: twice what core scores, as some are dropped
LEAST_WINDOWS = 16  # of dev and of test: a batch of core
KEPT_PLACES = 1_300_000  # of training windows, beside them: about a million ordinary tokens
LONGEST_DOCUMENT = 1_000_000  # characters; what is beyond them is left out
FLUSH_CHARACTERS = 4_000_000  # tokenized at once
PINNED = re.compile(r"(.+)@([0-9a-f]{16}|[0-9a-f]{40})", re.DOTALL)
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

MIXED_ORDER = ("0", "2000")  # of a hub dataset: a seed for its files, and the documents that are mixed in a buffer
SAE_BENCH_ORDER = ("42", "1")

Models = Callable[[], "HookedTransformer"]  # loads the model whose tokenizer is used, if it is needed


def is_pinned(name: str) -> bool:
    """Return True if a text's name ends in what fixes its content."""
    return bool(PINNED.fullmatch(name)) and not files.exists(Path(name))


def version(name: str) -> str:
    """Return what fixes the content of a pinned text: the hash or commit in its name, or text.VERSION for ""."""
    match = PINNED.fullmatch(name)
    return match[2] if match else text.VERSION


def source(name: str) -> str:
    """Return the path or dataset of a text, pinned or not."""
    return PINNED.fullmatch(name)[1] if is_pinned(name) else name  # type: ignore[index]


def pin(name: str) -> str:
    """Return the pinned name of a text; for a hub dataset the commit that was used before, or else the newest.

    Raises UserError if there is no such text, or it cannot be had.
    """
    if not name or is_pinned(name):
        return name
    path = files.locate(name)
    if files.exists(path) or not HUB_NAME.fullmatch(name) or path.suffix.lower() in text_files.SUFFIXES:
        return f"{path.absolute()}@{text_files.identity(path)}"
    commit = _cache_folder() / f"{quote(name, safe='')}.commit"
    if not commit.exists():
        with hub_stream(name, None) as (found, _):
            commit.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(commit, found)
    return f"{name}@{commit.read_text()}"


def split_of(document: str) -> Split:
    """Return the split of a document."""
    return _split(_digest(_key(document)))


def _key(document: str) -> str:
    """Return the form in which documents are duplicates if they are equal."""
    return text.normalise(unicodedata.normalize("NFC", document))


def _is_visible(document: str) -> bool:
    """Return True if a document holds more than white space, control characters and characters without width."""
    return any(unicodedata.category(character)[0] not in "CZ" for character in document)


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest(), "big")


def _split(digest: int) -> Split:
    bucket = digest % 1000
    for split, share in SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("SHARES must sum to 1000")


def train_windows(name: str, model_name: str, model: Models, rows: int) -> Tensor:
    """Return the training windows `[windows, context]`, int32, of a pinned text, with at least `rows` ordinary tokens
    or all there are. They are made if need be. Raises UserError."""
    path = _folder(name, model_name) / f"train-{rows}.safetensors"
    cache.mark_used(path.parent)
    if not _is_whole(path):
        _make(name, path, model, rows)
    return load_file(path)["train"]  # mapped: what is not read takes no memory


def keep_held_out(name: str, model_name: str, folder: Path) -> None:
    """Put the dev and test windows of a text that was read for training into the evaluation's folder."""
    path = held_out_path(name, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(path) as partial:
            shutil.copyfile(_folder(name, model_name) / "held_out.safetensors", partial)


def held_out_path(name: str, folder: Path) -> Path:
    """Return where the evaluation's folder has the dev and test windows of a pinned text."""
    return folder / f"held_out-{version(name)}.safetensors"


def held_out_windows(name: str, model_name: str, folder: Path) -> dict[str, Tensor]:
    """Return windows `[windows, context]` of a pinned text: `dev`, `test`, and the first of those for training,
    `train`. Raises UserError if the text was not read yet."""
    try:
        keep_held_out(name, model_name, folder)
        return _load(held_out_path(name, folder))
    except (OSError, SafetensorError):
        raise UserError(
            f"what {source(name)} is evaluated on is missing or damaged in {folder}: train a run on it, or resume"
        ) from None


def keep_training(name: str, model_name: str, folder: Path) -> None:
    """Put the first windows of a text that was read for training into the evaluation's folder."""
    made = sorted(_folder(name, model_name).glob("train-*.safetensors"), key=lambda path: path.stat().st_size)
    if made:
        ids = load_file(made[-1])["train"]
        ids = ids[: KEPT_PLACES // ids.shape[1]]
        path = folder / f"train-{version(name)}-{len(ids)}.safetensors"
        if not path.exists():
            with files.atomic_path(path) as partial:
                save_file({"train": ids.int().contiguous()}, partial)


def kept_training_windows(name: str, model_name: str, folder: Path) -> Tensor:
    """Return the windows `[windows, context]` of the training text that the evaluation's folder has. Raises UserError
    if the text was not read yet."""
    kept = [_load(path)["train"] for path in folder.glob(f"train-{version(name)}-*.safetensors")]
    return max(kept, key=len) if kept else held_out_windows(name, model_name, folder)["train"]


def _cache_folder() -> Path:
    return cache.root() / "texts"


def _folder(name: str, model_name: str) -> Path:
    parts = [FORMAT, version(name), models.identity(model_name), models.most_context(), sorted(SHARES.items())]
    parts += [] if tokens.begins() else ["no beginning token"]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    slug = f"{cache.slug(Path(source(name)).name)}-{cache.slug(Path(models.canonical_name(model_name)).name)}"
    return _cache_folder() / f"{slug}-{digest}"


def _load(path: Path) -> dict[str, Tensor]:
    return {split: ids.long() for split, ids in load_file(path).items()}


def _is_whole(path: Path) -> bool:
    try:
        return bool(load_file(path.with_name("held_out.safetensors")) and load_file(path))
    except (OSError, SafetensorError):
        return False


@dataclass
class _Packer:
    """Windows of one split, filled with documents one after another, as tokens.pack fills them."""

    model: "HookedTransformer"
    context: int
    wanted: int  # ordinary tokens
    documents: int = 0
    tokens: int = 0
    _stream: "array[int]" = field(default_factory=lambda: array("i"))
    _waiting: list[str] = field(default_factory=list)
    _characters: int = 0

    @property
    def full(self) -> bool:
        return self.tokens >= self.wanted

    def add(self, document: str) -> None:
        self._waiting.append(document)
        self._characters += len(document)
        if len(self._waiting) >= tokens.CHUNK or self._characters >= FLUSH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Tokenize the documents that wait."""
        special = tokens.special_ids(self.model)
        for ids in tokens.encode(self.model, self._waiting):
            self._stream.extend(ids)
            self.documents += 1
            self.tokens += sum(i not in special for i in ids)
        self._waiting, self._characters = [], 0

    def windows(self) -> Tensor:
        empty = torch.empty(0, dtype=torch.int32)
        stream = torch.frombuffer(self._stream, dtype=torch.int32) if self._stream else empty
        return tokens.as_windows(self.model, stream, self.context)


def _make(name: str, path: Path, model: Models, rows: int) -> None:
    """Read as much of a text as `rows` training tokens and the evaluation need, and keep its windows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(path.parent.with_suffix(".lock"), "another process reads the same text"):
        if _is_whole(path):
            return
        loaded = model()
        context = models.context_size(loaded)
        held_out = HELD_OUT_WINDOWS * context
        least = tokens.TYPICAL_WINDOWS * context
        train = max(tokens.with_some_to_spare(rows), least)
        wanted: dict[Split, int] = {"train": train, "dev": held_out, "test": held_out}
        packers: dict[Split, _Packer] = {split: _Packer(loaded, context, number) for split, number in wanted.items()}
        _fill(packers, name)
        windows: dict[Split, Tensor] = {split: packer.windows() for split, packer in packers.items()}
        _check_enough(name, packers, windows)
        held = {split: windows[split][:HELD_OUT_WINDOWS] for split in ("dev", "test")}
        held["train"] = windows["train"][: tokens.TYPICAL_WINDOWS]
        for file, kept in ((path.with_name("held_out.safetensors"), held), (path, {"train": windows["train"]})):
            with files.atomic_path(file) as partial:
                save_file({split: ids.int().contiguous() for split, ids in kept.items()}, partial)


def _fill(packers: dict[Split, _Packer], name: str) -> None:
    """Give each split its documents until it is full or the text ends."""
    seen, probed = set[int](), text.held_out_prompts()
    train, shown = packers["train"], 0
    with progress_bar(f"reading {source(name)}", train.wanted, "tokens") as bar, _documents(name) as documents:
        for whole in documents:
            document = whole[:LONGEST_DOCUMENT].encode(errors="replace").decode()  # "?" for half a surrogate pair
            key = _key(document)
            digest = _digest(key)
            packer = packers[_split(digest)]
            if not _is_visible(key) or digest in seen or key in probed or packer.full:
                continue
            seen.add(digest)
            packer.add(document)
            bar.update(min(train.tokens, train.wanted) - shown)
            shown = min(train.tokens, train.wanted)
            if all(packer.full for packer in packers.values()):
                break
    for packer in packers.values():
        packer.flush()


def _check_enough(name: str, packers: dict[Split, _Packer], windows: dict[Split, Tensor]) -> None:
    documents, count = (sum(getattr(p, what) for p in packers.values()) for what in ("documents", "tokens"))
    if not documents:
        raise UserError(f"{source(name)} holds no text: give another")
    fewest = min(len(windows["dev"]), len(windows["test"]))
    if fewest < LEAST_WINDOWS or not len(windows["train"]):
        need = 2 * 1000 // SHARES["dev"] * LEAST_WINDOWS * windows["dev"].shape[1]
        raise UserError(
            f"{source(name)} is too short: of {documents:,} documents with {count:,} tokens a twentieth is kept to "
            f"choose on, a twentieth to test on, and that is {fewest} of {LEAST_WINDOWS} windows: give at least about "
            f"{need:,} tokens in many documents"
        )


@contextlib.contextmanager
def _documents(name: str) -> Iterator[Iterator[str]]:
    """Yield the documents of a pinned text. Raises UserError if its content is no longer the pinned one."""
    if len(version(name)) == 40:
        with hub_stream(source(name), version(name)) as (_, documents):
            yield documents
        return
    path = Path(source(name))
    changed = UserError(f"{path} is not as it was when it was pinned at {version(name)}: put it back, or begin anew")
    before = _signatures(path)
    if text_files.identity(path) != version(name):
        raise changed
    yield text_files.documents(path)
    if _signatures(path) != before:
        raise changed


def _signatures(path: Path) -> list[tuple[str, int, int]]:
    return [(str(file), (status := file.stat()).st_size, status.st_mtime_ns) for file in text_files.find_files(path)]


@contextlib.contextmanager
def hub_stream(
    name: str, commit: str | None, order: tuple[str, str] = MIXED_ORDER
) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield the commit of a hub dataset and its documents, read by text_stream.py. Raises UserError."""
    command = start.command("agent.lab.text_stream", name, *order, *([commit] if commit else []))
    env = {**os.environ, **hub.ONLINE}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout
        try:
            lines = _lines(process.stdout, errors)
            yield json.loads(next(lines))["commit"], map(json.loads, lines)
        finally:
            process.kill()  # it may still have much to say
            process.communicate()


def _lines(output: IO[bytes], errors: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines before the last one, which is null. Raises UserError if that is missing."""
    for line in output:
        if line == b"null\n":
            return
        yield line
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().splitlines()
    raise UserError(said[-1].removeprefix("error: ") if said else "the process that streams the text was killed")
