"""The baselines that runs are compared with: other seeds, other K, kept in the cache for every study of this ground."""

import hashlib
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from agent.comparison.matching import all_metrics, k_step
from agent.ideas import Fixed, render_baseline
from agent.lab import cache, defaults, results
from agent.lab.evaluation.catalogue import NAMES
from agent.lab.evaluation.requests import Score
from agent.lab.metrics import family_of
from agent.lab.results import FinalInfo
from agent.lab.verdicts import Verdict
from agent.running.workers import Workers
from agent.study.events import BaselineMeasured, StudyStarted
from agent.study.records import Baseline
from agent.study.workspace import Study

SEEDS = 5  # behind the noise, the study's own seed among them


def wanted(fixed: Fixed) -> list[tuple[float, int]]:
    """K and seed of every baseline a study needs whatever comes out: first what verdicts need, then the picture."""
    k = defaults.of(fixed.model).k
    near = k_step(k)
    neighbours = [(k - near, fixed.seed), (k + near, fixed.seed)]  # between which runs at the baseline's L0 are read
    seeds = [(k, fixed.seed + number) for number in range(SEEDS)]
    curve = [(other, fixed.seed) for other in (k / 2, 2 * k) if other <= fixed.d_sae // 8]
    return [seeds[0], *neighbours, *seeds[1:], *curve]


@dataclass
class Baselines:
    """Trains, scores and remembers baselines of one study."""

    study: Study
    started: StudyStarted
    workers: Workers

    @property
    def k(self) -> float:
        """The baseline's own K."""
        return defaults.of(self.started.fixed.model).k

    @property
    def folder(self) -> Path:
        """Where the cache keeps them: one folder for everything that their figures depend on, apart from K and seed."""
        fixed = self.started.fixed
        source = render_baseline(fixed.model_copy(update={"seed": 0}))
        digest = hashlib.sha256(f"{self.started.ground}\n{source}".encode()).hexdigest()[:12]
        return (
            cache.root() / "baselines" / f"{cache.slug(Path(fixed.model).name)}-{cache.slug(fixed.hook_name)}-{digest}"
        )

    def stored(self, k: float, seed: int) -> Path | None:
        """The run directory of a baseline in the cache."""
        folder = self.folder / f"k{k:g}_seed{seed}"
        return folder if (folder / "final_info.json").exists() else None

    def scored(self, k: float, seed: int) -> FinalInfo | None:
        """The results of a baseline in the cache, where it has figures of all families that the study asks for."""
        stored = self.stored(k, seed)
        info = results.read(stored) if stored else None
        return info if info and info.families >= set(self.started.evals) else None

    def measure(self, k: float, seed: int, training_seconds: float, evaluation_seconds: float) -> BaselineMeasured:
        """A baseline's figures, from the cache or by training or scoring it within the seconds given."""
        start, label = time.monotonic(), f"baseline with K {k:g}, seed {seed}"
        info = self.scored(k, seed)
        if info is None:
            run_dir = self.study.directory / f"baseline_k{k:g}_seed{seed}"
            if self.stored(k, seed):
                info = self.score_again(k, seed, run_dir, label, evaluation_seconds)
            else:
                source = render_baseline(self.started.fixed, k)
                info = self.train(source, seed, run_dir, label, training_seconds, evaluation_seconds)
            if info.verdict.ok:
                self.store(run_dir, k, seed)
        asked = {name: value for name, value in all_metrics(info).items() if family_of(name) in self.started.evals}
        return BaselineMeasured(
            baseline=Baseline(k=k, seed=seed, figures=asked if info.verdict.ok else {}),
            verdict=info.verdict,
            seconds=time.monotonic() - start,
        )

    def train(
        self, source: str, seed: int, run_dir: Path, label: str, training_seconds: float, evaluation_seconds: float
    ) -> FinalInfo:
        """Train and score an experiment outside the study's budget of runs."""
        if run_dir.exists():  # of a driver that was killed
            shutil.rmtree(run_dir)
        script = self.study.directory / "beside.py"
        script.write_text(source)
        failure = self.workers.train(script, run_dir, seed=seed, label=label, timeout=training_seconds)
        failure = failure or self.evaluate(run_dir, self.started.evals, label, evaluation_seconds)
        script.unlink(missing_ok=True)
        if failure:
            results.write(run_dir, FinalInfo(verdict=failure))
        return results.read(run_dir)

    def score_again(self, k: float, seed: int, run_dir: Path, label: str, seconds: float) -> FinalInfo:
        """Score a baseline of the cache by the families that it has no figures of, too, without training it again."""
        stored = self.stored(k, seed)
        assert stored
        if run_dir.exists():  # of a driver that was killed
            shutil.rmtree(run_dir)
        self.take(k, seed, run_dir)
        known = results.read(stored).families
        evals = tuple(name for name in NAMES if name in known | set(self.started.evals))
        if failure := self.evaluate(run_dir, evals, f"{label}, scored again", seconds):
            results.write(run_dir, FinalInfo(verdict=failure))
        return results.read(run_dir)

    def evaluate(self, run_dir: Path, evals: tuple[str, ...], label: str, seconds: float) -> Verdict | None:
        return self.workers.evaluate(Score(run_dir=run_dir, evals=evals), label=label, timeout=seconds)

    def store(self, run_dir: Path, k: float, seed: int) -> None:
        """Keep a copy in the cache, whole or not at all; of one that is there, figures of more families."""
        if stored := self.stored(k, seed):
            if results.read(run_dir).families > results.read(stored).families:
                shutil.copytree(run_dir / "eval", stored / "eval", dirs_exist_ok=True)
                results.write(stored, results.read(run_dir))
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        fixed = self.started.fixed
        about = fixed.model_dump(include={"model", "hook_name", "tokens", "d_sae"})
        (self.folder / "about.json").write_text(json.dumps(about))
        partial = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"k{k:g}_seed{seed}.", suffix=".partial"))
        shutil.copytree(run_dir, partial, symlinks=True, dirs_exist_ok=True)
        try:
            partial.rename(self.folder / f"k{k:g}_seed{seed}")
        except OSError:  # another study was faster
            shutil.rmtree(partial)

    def take(self, k: float, seed: int, run_dir: Path) -> bool:
        """Put a stored baseline's training in the place of a new one; whether there was one."""
        stored = self.stored(k, seed)
        if stored:
            left_out = shutil.ignore_patterns("final_info.json", "eval")
            shutil.copytree(stored, run_dir, symlinks=True, ignore=left_out)
        return stored is not None
