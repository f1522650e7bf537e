"""How much time the evaluator saves on SAE-Bench's own entry points, and that it gives the same figures.

    python benchmarks/evaluation.py [RUN_DIR RUN_DIR] [--evals standard]

Scores two SAEs on tiny-lm (of the runs given, or two baselines trained here) by SAE-Bench's own entry points and by
ours, in this process and on the same data, the first SAE apart from the second: the first also makes what depends on
the model alone. SAE-Bench keeps its artefacts between the two, as its users would, and loads the model at every call,
as it does. Both sides have one thread for their small fits. Nothing else should run beside it.

The largest difference is over all metrics of the second SAE: those of the first hang, in SAE-Bench, on random numbers
that making its artefacts has used up. It is called for one dataset at a time on the first SAE for the same reason.
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


class Loads:
    """In the place of HookedTransformer in an evaluation: loads tiny-lm, whose name it does not know."""

    @staticmethod
    def from_pretrained_no_processing(*_: object, **__: object) -> Any:
        return models.load(MODEL)


@dataclass
class Stock:
    """SAE-Bench as its users call it; what it keeps between two SAEs is under `folder`."""

    evaluator: Evaluator  # of ours, for its windows of text alone
    folder: Path

    def core(self, sae: BenchSAE, name: str, first: bool) -> Figures:  # noqa: ARG002
        """On our windows: its own ActivationsStore would cut others from a text."""
        from sae_bench.evals.core import main

        model, ids = models.load(MODEL), self.evaluator.held_out("dev").ids
        config = core.settings(sae.cfg.model_name, ids)
        special: Any = tokens.special_ids(model)
        metrics, features = main.run_evals(sae, TokenStore(ids), model, config, {}, ignore_tokens=special)  # type: ignore[arg-type]
        found = {**metrics, "misc_metrics": main.calculate_misc_metrics(features)}
        return {key: value for group in found.values() for key, value in group.items()}

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
        if first:  # its own call asks for 1,024 tokens, whatever the model was made for
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
        found: Figures = {}
        each = [replace(config, dataset_names=[one]) for one in config.dataset_names] if first else [config]
        with labelled_datasets.datasets_installed():
            for part in each:
                found = self._run(main, part, sae, name, artifacts_path=str(self.folder / "artefacts"))
        return found

    def _run(self, main: ModuleType, config: Any, sae: BenchSAE, name: str, **more: Any) -> Figures:
        with tempfile.TemporaryDirectory(dir=self.folder) as out, ExitStack() as stack:
            loads = {"HookedTransformer": Loads} if hasattr(main, "HookedTransformer") else {}
            stack.enter_context(patching.isolated_sae_bench(main, Path(out), 42, **loads))
            main.run_eval(config, [(name, sae)], str(sae.device), out, **more)
            return written(Path(out), name)


def written(out: Path, name: str) -> Figures:
    """The metrics of the JSON that SAE-Bench left somewhere under a folder."""
    (path,) = out.rglob(f"{name}_custom_sae_eval_results.json")
    return patching.metrics(json.loads(path.read_text()))


def ours(evaluator: Evaluator, family: str, sae: BenchSAE, name: str, out: Path) -> Figures:
    out.mkdir()
    if family == "core":
        evaluator.score_core(sae, evaluator.held_out("dev"), out, name)
    elif family == "sparse_probing_sae_probes":
        evaluator.probe(sae, out, name)
    else:
        families.load(family).score(evaluator, sae, out, name)
    return written(out, name)


@dataclass
class Row:
    family: str
    why: str = ""  # there is nothing to compare
    stock: list[float] = field(default_factory=list)  # seconds: the first SAE, the second
    ours: list[float] = field(default_factory=list)
    difference: float = 0.0
    metric: str = ""  # that differs most

    def show(self) -> str:
        if self.why:
            return f"| {self.family} | {self.why} ||||||"
        seconds = [*self.stock, *self.ours, self.stock[1] / self.ours[1]]
        figures = " | ".join(f"{each:.1f}" for each in seconds)
        return f"| {self.family} | {figures} | {self.difference:.1e} ({self.metric}) |"


def timed(work: Callable[[], Figures]) -> tuple[float, Figures]:
    started = time.monotonic()
    found = work()
    return time.monotonic() - started, found


def compare(family: str, evaluator: Evaluator, theirs: Stock, saes: dict[str, BenchSAE], scratch: Path) -> Row:
    """Both sides on the first SAE, then on the second."""
    row = Row(family)
    for index, (name, sae) in enumerate(saes.items()):
        notify(f"{family}, SAE {index + 1}: SAE-Bench, then ours")
        seconds, expected = timed(lambda sae=sae, name=name, first=not index: getattr(theirs, family)(sae, name, first))
        row.stock.append(seconds)
        seconds, found = timed(
            lambda sae=sae, name=name: ours(evaluator, family, sae, name, scratch / f"{family}-{name}")
        )
        row.ours.append(seconds)
        # Times are no metrics, and what has no value is -1 in core's JSON.
        shared = [key for key in expected if key in found and not key.endswith("seconds")]
        gaps = {key: abs((expected[key] or 0) - (found[key] or 0)) for key in shared}
        row.metric = max(gaps, key=lambda key: gaps[key])
        row.difference = gaps[row.metric]
    notify(row.show())
    return row


def trained(out: Path) -> list[Path]:
    """Two baselines of other K."""
    run_dirs = []
    for k in LEVELS:
        script, run_dir = out / f"k{k}.py", out / f"k{k}"
        source, found = re.subn(r"(?m)^K = 16\b", f"K = {k}", ideas.render_baseline(Fixed()))
        assert found == 1
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
        run_dirs = args.run_dirs or trained(scratch)
        os.environ["SAE_AGENT_CACHE"] = str(scratch / "cache")  # ours makes everything anew
        started = time.monotonic()
        evaluator = Evaluator(MODEL, HOOK_NAME)
        held_out = evaluator.held_out("dev")
        notify(f"our evaluator: model loaded, text tokenized and read in {time.monotonic() - started:.1f} s, once")
        saes: dict[str, BenchSAE] = {
            f"sae-{checkpoint.content_hash(each / 'checkpoint')[:16]}": evaluator.checkpoint_sae(
                evaluator.load_checkpoint(each, held_out), held_out
            )
            for each in run_dirs
        }
        (scratch / "stock").mkdir()
        theirs = Stock(evaluator, scratch / "stock")
        for checked in doctor.check_families(doctor.eval_target(MODEL, HOOK_NAME), catalogue.parse_evals(args.evals)):
            if checked.unmet_requirements:
                rows.append(Row(checked.name, why=checked.unmet_requirements[0].reason))
            elif not hasattr(theirs, checked.name):
                rows.append(Row(checked.name, why="SAE-Bench has no counterpart"))
            else:
                rows.append(compare(checked.name, evaluator, theirs, saes, scratch))
    print(f"{torch.get_num_threads()} threads, {models.device_config().device}; seconds\n")
    print(
        "| family | SAE-Bench, first SAE | second | ours, first | second | ratio of the seconds | largest difference |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(row.show())
    run = [row for row in rows if not row.reason]
    sums = [sum(getattr(row, side)[index] for row in run) for side in ("stock", "ours") for index in (0, 1)]
    ratio = sums[1] / sums[3]
    figures = " | ".join(f"{each:.1f}" for each in (*sums, ratio))
    print(f"| {args.evals} | {figures} | at least 5: {'held' if ratio >= 5 else 'MISSED'} |")


if __name__ == "__main__":
    main()
