"""SAE-Bench's own data, for figures that stand beside published tables: --evaluation-data sae-bench.

A family with data on the hub is scored on that, with SAE-Bench's own numbers of batches; where it cannot be had, on its
local counterpart. A study is pinned to `sae-bench@HASH`: a folder of the cache with the data and a manifest that names
for each family the source, or why it is local.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from agent.lab import cache, corpus, files, hub, start, tokens
from agent.lab.defaults import EVALUATION_DATA, SAE_BENCH
from agent.lab.errors import UserError
from agent.lab.evaluation.bench import hub_prompts
from agent.lab.evaluation.bench.core_text import BATCH_WINDOWS, WINDOWS, whole_batches
from agent.lab.evaluation.bench.hub_prompts import Fetched
from agent.lab.progress import notify, progress_bar

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PINNED = re.compile(rf"{SAE_BENCH}@([0-9a-f]{{16}})")
MANIFEST, CORE = "manifest.json", "core.jsonl"

# Of core, in SAE-Bench 0.6.0: the default of --dataset, and the numbers in the commands that its main.py gives.
CORE_DATASET = "Skylion007/openwebtext"
RECONSTRUCTION_BATCHES, VARIANCE_BATCHES = 200, 2000
DEV_WINDOWS = VARIANCE_BATCHES * BATCH_WINDOWS
TEST_WINDOWS = WINDOWS  # SAE-Bench has no second text: what comes after its own
CORE_CHARACTERS = 40_000_000  # of documents: 32,512 windows of 128 tokens have up to 9 characters a token


@dataclass(frozen=True)
class Published:
    """The data that a study is pinned to."""

    folder: Path
    sources: dict[str, str]  # family -> what it is scored on, e.g. Skylion007/openwebtext@COMMIT
    local: dict[str, str]  # family -> why it is scored on its local counterpart

    def core_windows(self, model: "HookedTransformer", context: int) -> dict[str, Tensor]:
        """Return the windows `[windows, context]` of core, whole batches that SAELens packs as for SAE-Bench: `dev`,
        those that SAE-Bench scores, and `test`, those after them. Of a shorter text a tenth is `test`."""
        from sae_lens.tokenization_and_batching import concat_and_batch_sequences

        begin = getattr(model.tokenizer, "bos_token_id", None)
        packed = concat_and_batch_sequences(
            self._core_tokens(model), context, begin_batch_token_id=begin, sequence_separator_token_id=begin
        )
        ids = torch.stack(list(islice(packed, DEV_WINDOWS + TEST_WINDOWS)))
        dev = whole_batches(len(ids) - min(TEST_WINDOWS, len(ids) // 10))
        return {"dev": ids[:dev], "test": ids[dev : dev + whole_batches(len(ids) - dev)]}

    def prompts(self, family: str) -> Fetched | None:
        """Return SAE-Bench's prompts of a family, or None if it has the local ones."""
        return Fetched(family, self.folder) if family in self.sources else None

    def _core_tokens(self, model: "HookedTransformer") -> Iterator[Tensor]:
        assert model.tokenizer is not None
        with (self.folder / CORE).open(encoding="utf-8") as lines:
            while documents := [json.loads(line) for line in islice(lines, tokens.CHUNK)]:
                yield from map(torch.tensor, model.tokenizer(documents, add_special_tokens=False)["input_ids"])


def in_use() -> Published | None:
    """Return the data that this process evaluates on, by SAE_AGENT_EVALUATION_DATA, or None for the local one.

    Raises UserError if it is not pinned, or not in the cache.
    """
    pinned = os.environ.get(EVALUATION_DATA)
    return _open(pinned) if pinned else None


def use(wish: str, evals: Iterable[str], trained_on: str) -> dict[str, str]:
    """Make this process evaluate on SAE-Bench's data, and return on what each family with such data is scored.

    Raises UserError, also for SAEs that are trained on the text of core.
    """
    if trained_on == CORE_DATASET:
        raise UserError(f"SAE-Bench scores on {CORE_DATASET}: train on another text, or leave out --evaluation-data")
    os.environ[EVALUATION_DATA] = pinned = pin(wish, evals)
    data = _open(pinned)
    cache.mark_used(data.folder.parent)
    local = {family: f"its local counterpart, as {reason}" for family, reason in data.local.items()}
    return data.sources | local


def pin(wish: str, evals: Iterable[str]) -> str:
    """Return the pinned name of SAE-Bench's data for some families, fetched if need be.

    What was fetched before is used again, if nothing was missing. Raises UserError if pinned data is gone, and another
    one is there today.
    """
    families = [name for name in evals if name in SOURCES]
    if PINNED.fullmatch(wish):
        if not _folder(wish).exists() and (found := _fetch(families)) != wish:
            raise UserError(f"{wish} is no longer in the cache, and the hub gives {found} today: begin a new study")
        return wish
    known = _root() / f"{'-'.join(map(cache.slug, families))}.pin"
    if known.exists() and _folder(known.read_text()).exists():
        return known.read_text()
    pinned = _fetch(families)
    if not _open(pinned).local:
        files.write_atomically(known, pinned)
    return pinned


def _root() -> Path:
    return cache.root() / "texts" / SAE_BENCH


def _folder(pinned: str) -> Path:
    if match := PINNED.fullmatch(pinned):
        return _root() / match[1]
    raise UserError(
        f"{EVALUATION_DATA}={pinned}: give {SAE_BENCH}@ and 16 hex digits, as they are in the notes of a study"
    )


def _open(pinned: str) -> Published:
    try:
        manifest = json.loads((_folder(pinned) / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{pinned} is not in the cache ({_folder(pinned)}): agent resume fetches it") from None
    return Published(_folder(pinned), manifest["sources"], manifest["local"])


def _fetch(families: list[str]) -> str:
    """Fetch the data of some families into a folder of the cache, and return its pinned name."""
    _root().mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=_root(), prefix="partial-"))
    sources, local = dict[str, str](), dict[str, str]()
    try:
        for family in families:
            try:
                sources[family] = SOURCES[family](partial)
            except UserError as error:
                local[family] = str(error)
        (partial / MANIFEST).write_text(json.dumps({"sources": sources, "local": local}, indent=2))
        digest = hashlib.sha256(json.dumps(sources, sort_keys=True).encode()).hexdigest()
        pinned = f"{SAE_BENCH}@{digest[:16]}"
        if not _folder(pinned).exists():
            partial.rename(_folder(pinned))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return pinned


def _fetch_core(folder: Path) -> str:
    """Write the first documents of SAE-Bench's text, in its order, and return the dataset and commit.

    Raises UserError.
    """
    with (
        corpus.hub_stream(CORE_DATASET, None, corpus.SAE_BENCH_ORDER) as (commit, documents),
        (folder / CORE).open("w", encoding="utf-8") as out,
        progress_bar(f"fetching {CORE_DATASET}", CORE_CHARACTERS, "characters") as bar,
    ):
        for document in documents:
            out.write(json.dumps(document) + "\n")
            bar.update(len(document))
            if bar.n >= CORE_CHARACTERS:
                break
    return f"{CORE_DATASET}@{commit}"


def _fetch_prompts(family: str, folder: Path) -> str:
    """Write the labelled prompts of a family, and return the names of their datasets and a hash of all.

    Raises UserError if any is missing: a mean over other datasets would not stand beside a published one.
    """
    command = start.command(hub_prompts.__name__, family, str(folder))
    env = {**os.environ, **hub.ONLINE}
    notify(f"fetching SAE-Bench's prompts of {family}: some minutes")
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(f"the process that fetches its prompts failed ({ended.stderr.strip()[-200:]})")
    report: dict[str, str] = json.loads(ended.stdout)
    for dataset, why in report.items():
        if why:
            raise UserError(f"{dataset} cannot be had ({why})")
    digest = hashlib.sha256()
    for file in sorted(folder.glob(f"{family}-*")):
        digest.update(file.read_bytes())
    return f"{', '.join(report)}@{digest.hexdigest()[:16]}"


SOURCES: dict[str, Callable[[Path], str]] = {"core": _fetch_core} | {
    family: functools.partial(_fetch_prompts, family) for family in hub_prompts.FAMILIES
}
