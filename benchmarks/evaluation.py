"""Compare the evaluator with SAE-Bench's own entry points: the time of both, and that the figures are the same.

    python benchmarks/evaluation.py [RUN_DIR RUN_DIR] [--evals standard]

Scores two SAEs on tiny-lm (of the runs given, or two baselines trained here) by SAE-Bench's own entry points and by
ours, in this process and on the same data. The first SAE is timed apart from the second, because its time includes what
depends on the model alone. SAE-Bench keeps its artefacts between the two, as its users would, and loads the model at
every call, as it always does. Both sides fit with one thread. Run nothing else at the same time.

The largest difference is over all metrics of the second SAE: with the first, SAE-Bench's random state depends on the
artefacts that it makes. For the same reason it is called for one dataset at a time on the first SAE.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from agent import ideas
from agent.ideas import Fixed
from agent.lab import checkpoint, models, tokens
from agent.lab.evaluation import catalogue, doctor, families
from agent.lab.evaluation.bench import core, labelled_datasets, patching, probe_ablation, probing
from agent.lab.evaluation.bench.core_text import TokenStore
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.families import sparse_probing
from agent.lab.evaluation.sae_adapter import BenchSAE
from agent.lab.progress import notify

MODEL, HOOK_NAME = "tiny-lm", "blocks.1.hook_resid_post"
LEVELS = (16, 24)  # K of the two baselines
Figures = dict[str, float | None]


class TinyLmLoader:
    """A stand-in for HookedTransformer, which does not know tiny-lm by name: it loads tiny-lm."""

    @staticmethod
    def from_pretrained_no_processing(*_: object, **__: object) -> Any:
        return models.load(MODEL)


@dataclass
class SaeBench:
    """SAE-Bench as its users call it. Its artefacts are kept in `folder`."""

    evaluator: Evaluator  # ours, for its windows of text alone
    folder: Path

    def core(self, sae: BenchSAE, name: str, first: bool) -> Figures:  # noqa: ARG002
        """Run core on our windows; SAE-Bench's own ActivationsStore would cut different ones."""
        from sae_bench.evals.core import main

        model, text = models.load(MODEL), TokenStore(self.evaluator.held_out("dev").ids)
        config = core.settings(sae.cfg.model_name, text)
        special: Any = tokens.special_ids(model)
        metrics, features = main.run_evals(sae, text, model, config, {}, ignore_tokens=special)  # type: ignore[arg-type]
        groups = {**metrics, "misc_metrics": main.calculate_misc_metrics(features)}
        return {key: value for group in groups.values() for key, value in group.items()}

    def sparse_probing_sae_probes(self, sae: BenchSAE, name: str, first: bool) -> Figures:
        from sae_bench.evals.sparse_probing_sae_probes import main
        from sae_bench.evals.sparse_probing_sae_probes.eval_config import SparseProbingSaeProbesEvalConfig
        from sae_probes.generate_model_activations import ensure_dataset_activations

        slug = sae.cfg.model_name
        config = SparseProbingSaeProbesEvalConfig(
            model_name=slug,
            random_seed=probing.SEED,
            dataset_names=list(probing.DATASETS),
            ks=probing.KS,
            results_path=str(self.folder / "sae_probes"),
            model_cache_path=str(self.folder / "activations"),
        )
        if first:  # SAE-Bench asks for 1,024 tokens, whatever the model's context is
            model = models.load(MODEL)
            ensure_dataset_activations(
                slug,
                list(probing.DATASETS),
                [HOOK_NAME],
                str(self.folder / "activations"),
                models.device_config().device,
                model.cfg.n_ctx,
                model=model,
            )
        return self._run(main, config, sae, name)

    def sparse_probing(self, sae: BenchSAE, name: str, first: bool) -> Figures:
        from sae_bench.evals.sparse_probing import main

        config = sparse_probing.config(sae.cfg.model_name, sae.cfg.context_size, models.device_config().dtype)
        return self._on_prompts(main, config, patching.UnitNorm(sae), name, first)

    def tpp(self, sae: BenchSAE, name: str, first: bool) -> Figures:
        return self._perturbed(sae, name, first, spurious=False)

    def scr(self, sae: BenchSAE, name: str, first: bool) -> Figures:
        return self._perturbed(sae, name, first, spurious=True)

    def meta_structure(self, sae: BenchSAE, name: str, first: bool) -> Figures:  # noqa: ARG002
        from sae_bench.evals.meta_structure import main
        from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

        return self._run(main, MetaStructureEvalConfig(random_seed=42), patching.UnitNorm(sae), name)

    def _perturbed(self, sae: BenchSAE, name: str, first: bool, spurious: bool) -> Figures:
        from sae_bench.evals.scr_and_tpp import main

        config = probe_ablation.config(sae.cfg.model_name, spurious, sae.cfg.context_size, models.device_config().dtype)
        return self._on_prompts(main, config, sae, name, first)

    def _on_prompts(self, main: ModuleType, config: Any, sae: BenchSAE, name: str, first: bool) -> Figures:
        figures: Figures = {}
        parts = [replace(config, dataset_names=[dataset]) for dataset in config.dataset_names] if first else [config]
        with labelled_datasets.datasets_installed():
            for part in parts:
                figures = self._run(main, part, sae, name, artifacts_path=str(self.folder / "artefacts"))
        return figures

    def _run(self, main: ModuleType, config: Any, sae: BenchSAE, name: str, **more: Any) -> Figures:
        with tempfile.TemporaryDirectory(dir=self.folder) as out, ExitStack() as stack:
            loads = {"HookedTransformer": TinyLmLoader} if hasattr(main, "HookedTransformer") else {}
            stack.enter_context(patching.isolated_sae_bench(main, Path(out), 42, **loads))
            main.run_eval(config, [(name, sae)], str(sae.device), out, **more)
            return read_figures(Path(out), name)


def read_figures(out: Path, name: str) -> Figures:
    """Return the metrics of the JSON file that SAE-Bench wrote somewhere under a folder."""
    (path,) = out.rglob(f"{name}_custom_sae_eval_results.json")
    return patching.metrics(json.loads(path.read_text()))


def score_ours(evaluator: Evaluator, family: str, sae: BenchSAE, name: str, out: Path) -> Figures:
    out.mkdir()
    if family == "core":
        evaluator.score_core(sae, evaluator.held_out("dev"), out, name)
    elif family == "sparse_probing_sae_probes":
        evaluator.probe(sae, out, name)
    else:
        families.load(family).score(evaluator, sae, out, name)
    return read_figures(out, name)


@dataclass
class Row:
    family: str
    reason: str = ""  # why there is nothing to compare
    sae_bench: list[float] = field(default_factory=list)  # seconds: the first SAE, the second
    ours: list[float] = field(default_factory=list)
    difference: float = 0.0
    metric: str = ""  # the one that differs most

    def show(self) -> str:
        if self.reason:
            return f"| {self.family} | {self.reason} ||||||"
        numbers = [*self.sae_bench, *self.ours, self.sae_bench[1] / self.ours[1]]
        figures = " | ".join(f"{number:.1f}" for number in numbers)
        return f"| {self.family} | {figures} | {self.difference:.1e} ({self.metric}) |"


def time_call(work: Callable[[], Figures]) -> tuple[float, Figures]:
    started = time.monotonic()
    figures = work()
    return time.monotonic() - started, figures


def compare(family: str, evaluator: Evaluator, theirs: SaeBench, saes: dict[str, BenchSAE], scratch: Path) -> Row:
    """Run both sides on the first SAE, then on the second."""
    row = Row(family)
    for index, (name, sae) in enumerate(saes.items()):
        notify(f"{family}, SAE {index + 1}: SAE-Bench, then ours")
        seconds, expected = time_call(
            lambda sae=sae, name=name, first=not index: getattr(theirs, family)(sae, name, first)
        )
        row.sae_bench.append(seconds)
        seconds, figures = time_call(
            lambda sae=sae, name=name: score_ours(evaluator, family, sae, name, scratch / f"{family}-{name}")
        )
        row.ours.append(seconds)
        # Times are not compared; core's JSON has -1 where there is no value.
        shared = [key for key in expected if key in figures and not key.endswith("seconds")]
        differences = {key: abs((expected[key] or 0) - (figures[key] or 0)) for key in shared}
        row.metric = max(differences, key=lambda key: differences[key])
        row.difference = differences[row.metric]
    notify(row.show())
    return row


def train_baselines(out: Path) -> list[Path]:
    """Train two baselines with different K."""
    run_dirs = []
    for k in LEVELS:
        script, run_dir = out / f"k{k}.py", out / f"k{k}"
        source, count = re.subn(r"(?m)^K = 16\b", f"K = {k}", ideas.render_baseline(Fixed()))
        assert count == 1
        script.write_text(source)
        env = os.environ | {"SAE_AGENT_DRIVEN": "1"}
        subprocess.run([sys.executable, str(script), f"--out_dir={run_dir}"], env=env, check=True)
        run_dirs.append(run_dir)
    return run_dirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--evals", default="standard", help="families, or quick, standard, full")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        run_dirs = args.run_dirs or train_baselines(scratch)
        os.environ["SAE_AGENT_CACHE"] = str(scratch / "cache")  # empty: our side starts from nothing too
        started = time.monotonic()
        evaluator = Evaluator(MODEL, HOOK_NAME)
        held_out = evaluator.held_out("dev")
        notify(f"our evaluator: model loaded, text tokenized and read in {time.monotonic() - started:.1f} s, once")
        saes: dict[str, BenchSAE] = {
            f"sae-{checkpoint.content_hash(run_dir / 'checkpoint')[:16]}": evaluator.checkpoint_sae(
                evaluator.load_checkpoint(run_dir, held_out), held_out
            )
            for run_dir in run_dirs
        }
        (scratch / "sae_bench").mkdir()
        theirs = SaeBench(evaluator, scratch / "sae_bench")
        for checked in doctor.check_families(doctor.eval_target(MODEL, HOOK_NAME), catalogue.parse_evals(args.evals)):
            if checked.unmet_requirements:
                rows.append(Row(checked.name, reason=checked.unmet_requirements[0].reason))
            elif not hasattr(theirs, checked.name):
                rows.append(Row(checked.name, reason="SAE-Bench has no counterpart"))
            else:
                rows.append(compare(checked.name, evaluator, theirs, saes, scratch))
    print(f"{torch.get_num_threads()} threads, {models.device_config().device}; seconds\n")
    print(
        "| family | SAE-Bench, first SAE | second | ours, first | second | ratio of the seconds | largest difference |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.show())
    compared = [row for row in rows if not row.reason]
    sums = [sum(getattr(row, side)[index] for row in compared) for side in ("sae_bench", "ours") for index in (0, 1)]
    ratio = sums[1] / sums[3]
    figures = " | ".join(f"{number:.1f}" for number in (*sums, ratio))
    print(f"| {args.evals} | {figures} | at least 5: {'held' if ratio >= 5 else 'MISSED'} |")


if __name__ == "__main__":
    main()
