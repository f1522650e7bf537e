"""The evaluator: one model and hook, and all that scoring its SAEs has in common."""

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agent.lab import activations, cache, checkpoint, corpus, files, models, tokens
from agent.lab.checkpoint import Checkpoint
from agent.lab.defaults import CONTEXT, is_world
from agent.lab.errors import UserError
from agent.lab.evaluation import published
from agent.lab.evaluation.bench import core, core_text, probing
from agent.lab.evaluation.bench.core_text import CoreText
from agent.lab.evaluation.bench.hub_prompts import Fetched
from agent.lab.evaluation.random_floor import RandomSAE
from agent.lab.evaluation.requests import Split
from agent.lab.evaluation.sae_adapter import (
    UNTRAINED,
    BenchSAE,
    CheckpointSAE,
    Trained,
    Usage,
    bench_config,
    training_of,
)
from agent.lab.locks import waiting_lock
from agent.lab.results import Core, Floor, Number
from agent.lab.rows import Manifest

EVALUATION_SEED = 0
FORMAT = 1  # of the cached artefacts
NORMS = "typical_norm"  # name of the file
JACOBIAN_ROWS = 64  # activations over which a non-affine encoder's slope is averaged


@dataclass(frozen=True)
class HeldOut:
    """Held-out text and the model's activations on it; every SAE is scored on the same."""

    ids: Tensor  # [windows, context], token ids
    activations: Tensor  # [tokens, d_in], float32: at the hook, on the tokens that are scored
    mean: Tensor  # [d_in], of the activations
    batch: Tensor  # [rows, d_in], float32: the first batch of whole windows as it is scored, special tokens included
    scored: Tensor | None = None  # [windows, context], bool: ordinary tokens that are no outliers; None: a world's, all
    unmasked: "HeldOut | None" = None  # with the outlier tokens scored too; None: there are none
    published: Tensor | None = None  # [windows, context]: SAE-Bench's, all of which core scores; `ids` are the first


class Evaluator:
    """The evaluator of one model and hook. The model is loaded at once, the rest when it is first needed.

    What is costly is cached in `folder`.
    """

    def __init__(self, model_name: str, hook_name: str, text: str = "") -> None:
        """`text` is pinned, see corpus.py."""
        self.model_name, self.hook_name, self.text = model_name, hook_name, text
        self.split: Split = "dev"  # of the current request
        self.load_model()
        self.identity = models.identity(model_name)
        self.published = published.in_use()
        self.folder = artefact_folder(model_name, self.identity, hook_name, text)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held_out: dict[tuple[Split, int | None], HeldOut] = {}
        self._core_texts: dict[int, CoreText] = {}
        self.memory: dict[str, Any] = {}  # artefacts of the model that families read from `folder`, by file name

    def load_model(self) -> None:
        """Load the model. Raises UserError if it is unknown or has no such hook."""
        self.model = models.load(self.model_name)
        models.check_hook(self.model, self.hook_name)

    @property
    def context(self) -> int:
        """Return the tokens in a window of text."""
        return models.context_size(self.model)

    def held_out(self, split: Split, windows: int | None = None) -> HeldOut:
        """Return the text of a split, or its first windows, with the model's activations on it."""
        if (split, windows) not in self._held_out:
            self._held_out[split, windows] = self._run_model(self.token_windows(split)[:windows])
        return self._held_out[split, windows]

    @cached_property
    def median_norm(self) -> float:
        """Return the median norm of an activation on the training text."""

        def measure(_: Path) -> dict[str, float]:
            if self.text:
                ids = corpus.held_out_windows(self.text, self.model_name, self.folder)["train"]
            else:
                rows = tokens.TYPICAL_WINDOWS * models.most_context()
                ids = activations.training_windows(self.model, self.model_name, "", rows)
            first = ids[: tokens.TYPICAL_WINDOWS]
            return {"median": activations.median_norm(self.model, first, self.hook_name)}

        return self.cached_json(NORMS, measure)["median"]

    @cached_property
    def probes(self) -> probing.ModelProbes:
        """Return the model's side of sparse probing: its activations and its own probes."""
        with self._preparation_lock():
            return probing.prepare_model(self.model, self.model_name, self.hook_name, self.folder / "probing")

    def load_checkpoint(self, run_dir: Path, held_out: HeldOut) -> Checkpoint:
        """Load a run's checkpoint and check it on held-out text. Raises CheckpointError."""
        loaded = checkpoint.load(run_dir / "checkpoint", models.device_config().device)
        if loaded.header.d_in != held_out.activations.shape[1]:
            raise checkpoint.CheckpointError(
                f"d_in is {loaded.header.d_in}, but the hook's width is {held_out.activations.shape[1]}"
            )
        checkpoint.check_behaviour(loaded, held_out.activations[: len(held_out.batch)])
        checkpoint.check_behaviour(loaded, held_out.batch)
        return loaded

    def checkpoint_sae(self, loaded: Checkpoint, held_out: HeldOut) -> CheckpointSAE:
        """Return a checkpoint in the form of SAE-Bench's custom SAEs."""
        config = self.config(*loaded.W_dec.shape, trained=training_of(loaded.header, loaded.threshold))
        return CheckpointSAE(config, loaded, held_out.activations[:JACOBIAN_ROWS])

    def config(self, d_sae: int, d_in: int, trained: Trained = UNTRAINED) -> Any:
        """Return SAE-Bench's configuration of an SAE of this width on this hook."""
        return bench_config(cache.slug(Path(self.model_name).name), self.hook_name, d_in, d_sae, self.context, trained)

    def score_core(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> tuple[Core, Usage]:
        """Return SAE-Bench core, and how the latents are used. Raises EvaluationError."""
        if (key := id(held_out)) not in self._core_texts:  # self._held_out keeps it, so no other object gets its id
            self._core_texts[key] = self._core_text(held_out)
        return core.run_core(sae, self._core_texts[key], out, name)

    def _core_text(self, held_out: HeldOut) -> CoreText:
        if held_out.published is None:
            return CoreText(self.model, held_out.ids, self.hook_name, held_out.mean, held_out.scored)
        assert self.published
        size = {"reconstruction_batches": published.RECONSTRUCTION_BATCHES, "dataset": self.published.sources["core"]}
        return CoreText(self.model, held_out.published, self.hook_name, held_out.mean, **size)

    def sentinel_metrics(self, sae: BenchSAE, held_out: HeldOut, out: Path, name: str) -> dict[str, Number]:  # noqa: ARG002
        """Return the metrics that sentinels are checked by in addition to core. Raises EvaluationError."""
        scores, _ = self.probe(sae, out, name)
        return {"probing_auc_5": sum(by_k[5]["test_auc"] for by_k in scores.values()) / len(scores)}

    def ground_truth_metrics(self, sae: BenchSAE, held_out: HeldOut) -> dict[str, Number]:  # noqa: ARG002
        """Return the metrics against the true features; none for a language model, where they are not known."""
        return {}

    def probe(self, sae: BenchSAE, out: Path, name: str) -> tuple[probing.Scores, probing.OwnScores]:
        """Return the scores of sparse probing on the SAE and on the model's own activations. Raises EvaluationError."""
        return probing.run_probing(sae, self.probes, out / "sparse_probing_sae_probes", name)

    def fetched_prompts(self, family: str) -> Fetched | None:
        """Return SAE-Bench's own prompts of a family, or None if it has the local ones."""
        return self.published.prompts(family) if self.published else None

    def floor(self, split: Split, d_sae: int, k: int) -> Floor:
        """Return the scores of a random untrained SAE that keeps k latents; cached by split, width and k."""

        def measure(out: Path) -> dict[str, Any]:
            scores, _ = self.score_core(self.random_sae(d_sae, k), self.held_out(split), out, "random")
            truth = self.ground_truth_metrics(self.random_sae(d_sae, k), self.held_out(split))
            included = scores.model_dump(include={"explained_variance_centered", "ce_loss_score"})
            return included | {"k": k, "truth": truth}

        return Floor.model_validate(self.cached_json(f"floor-{split}-{d_sae}-{k}", measure))

    def random_auc(self, d_sae: int, k: int) -> dict[str, dict[int, Number]]:
        """Return the probing test AUC of the same random SAE, by dataset and number of latents; cached too."""

        def measure(out: Path) -> dict[str, Any]:
            scores, _ = self.probe(self.random_sae(d_sae, k), out, "random")
            return {name: {n: by_k[n]["test_auc"] for n in by_k} for name, by_k in scores.items()}

        auc_by_dataset = self.cached_json(f"random-auc-{d_sae}-{k}", measure)
        return {name: {int(n): auc for n, auc in by_k.items()} for name, by_k in auc_by_dataset.items()}

    def random_sae(self, d_sae: int, k: int) -> RandomSAE:
        """Return the random untrained SAE, centred on the mean activation of the development text."""
        mean = self.held_out("dev").mean
        return RandomSAE(self.config(d_sae, len(mean)), k, mean)

    def cached_json(self, name: str, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return the cached result of `measure(empty folder)`, measured first if no process has done so."""
        path = self.folder / f"{name}.json"
        with waiting_lock(path.with_suffix(".json.lock"), "another process measures the same"):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=self.folder) as out:
                    files.write_atomically(path, json.dumps(measure(Path(out))))
            return json.loads(path.read_text())

    @property
    def _published_text(self) -> published.Published | None:
        """Return the data in use if core is scored on its text, or None."""
        return self.published if self.published and "core" in self.published.sources else None

    def _preparation_lock(self) -> AbstractContextManager[None]:
        return waiting_lock(
            self.folder / "preparation.lock", "another process prepares the evaluation of the same model"
        )

    def token_windows(self, split: Split) -> Tensor:
        """Return windows of held-out text `[windows, context]`, cached. No window is in both splits."""
        path = self._windows_path(split)
        data = self._published_text
        taken = self.token_windows("dev") if split == "test" and not data else None
        with self._preparation_lock():
            if not path.exists():
                # Of published text both splits at once: what they are read from is not looked at again.
                drawn = (
                    data.core_windows(self.model, self.context) if data else {split: self._draw_windows(split, taken)}
                )
                for name, ids in drawn.items():
                    with files.atomic_path(self._windows_path(name)) as partial:
                        save_file({"ids": ids.contiguous()}, partial)
        return load_file(path)["ids"]

    def _windows_path(self, split: str) -> Path:
        return self.folder / f"tokens-{split}-{cache.slug(corpus.version(self.text))}.safetensors"

    def _draw_windows(self, split: Split, taken: Tensor | None) -> Tensor:
        """Return as many windows `[windows, context]` as core scores, in a seeded order, none of them in `taken`."""
        count = core_text.WINDOWS
        if self.text:
            ids = corpus.held_out_windows(self.text, self.model_name, self.folder)[split]
        else:
            splits = tokens.text_split_for(self.model_name, split)
            ids = tokens.windows(self.model, splits, self.context, 2 * count * self.context, EVALUATION_SEED)
        rows = set() if taken is None else {tuple(row) for row in taken.tolist()}
        # Two documents can contain the same long row of asterisks.
        ids = ids[torch.tensor([tuple(row) not in rows for row in ids.tolist()])]
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(EVALUATION_SEED))
        whole_batches = order[:count][: core_text.whole_batches(len(order))]
        if len(whole_batches) == 0:
            raise UserError(f"{corpus.source(self.text)} is too repetitive to be evaluated on: give another")
        return ids[whole_batches]

    @torch.no_grad()
    def _run_model(self, ids: Tensor) -> HeldOut:
        every, ids = ids, ids[: core_text.WINDOWS]
        batches = ids.split(core_text.BATCH_WINDOWS)
        hidden = [activations.run_to_hook(self.model, batch, self.hook_name).float() for batch in batches]
        ordinary = activations.ordinary_mask(self.model, ids)
        if self._published_text:
            return replace(_held_out(ids, hidden, ordinary), published=every)
        usual = ordinary & ~torch.cat([activations.is_outlier(h, self.median_norm) for h in hidden])
        whole = _held_out(ids, hidden, ordinary)
        if torch.equal(usual, ordinary):
            return whole
        return replace(_held_out(ids, hidden, usual), unmasked=whole)


def _held_out(ids: Tensor, hidden: list[Tensor], scored: Tensor) -> HeldOut:
    masks = scored.split(core_text.BATCH_WINDOWS)
    rows = torch.cat([h[mask] for h, mask in zip(hidden, masks, strict=True)])
    return HeldOut(ids, rows, rows.mean(0), hidden[0].flatten(0, 1), scored)


def keep_what_was_read(folder: Path, model_name: str, text: str, manifest: Manifest) -> None:
    """Put what a harvest knows of the text into the evaluation's folder, so that it need not be read again."""
    folder.mkdir(parents=True, exist_ok=True)
    cache.mark_used(folder)
    path = folder / f"{NORMS}.json"
    with waiting_lock(path.with_suffix(".json.lock"), "another process keeps what it has read of the same text"):
        if text:
            corpus.keep_held_out(text, model_name, folder)
            corpus.keep_training(text, model_name, folder)
        if manifest.median_norm is not None and not path.exists():
            files.write_atomically(path, json.dumps({"median": manifest.median_norm}))


def artefact_folder(model_name: str, identity: str, hook_name: str, text: str = "") -> Path:
    """Return the cache folder of what the evaluation computes for a model and hook, and a text of the user's own."""
    config = models.device_config()
    kind = config.device[:4]
    if (kind, config.dtype) != ("cpu", torch.float32):
        kind += f"-{str(config.dtype).removeprefix('torch.')}"
    key = f"{identity}-{cache.slug(hook_name)}-{kind}-v{FORMAT}"
    key += f"-{corpus.version(text)[:12]}" if text else ""
    if (context := models.most_context()) != CONTEXT and not is_world(model_name):
        key += f"-context{context}"
    key += "" if tokens.begins() or is_world(model_name) else "-nobegin"
    if data := published.in_use():
        key += f"-{data.folder.name}"
    return cache.root() / "evaluation" / f"{cache.slug(Path(models.canonical_name(model_name)).name)}-{key}"
