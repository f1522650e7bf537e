"""A stand-in for the guard and for finish: behaves as the experiment says, and trains nothing."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agent.lab import cache
from agent.lab.defaults import SAVE_EVERY, SOCKET_VARIABLE, STATE_FILE

FORGED = '{"format_version": 1, "verdict": {"name": "ok", "evidence": "mine"}}'


def constants(names: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in names.items() if name.isupper()}


class TrainingGuard:
    def __init__(self, out_dir: Path, named: str, data: range, *, model: str, hook_name: str, settings: Any) -> None:
        self.out_dir, self.named, self.steps = out_dir, named, len(data)
        self.settings = settings | {"MODEL": model, "HOOK_NAME": hook_name}
        self.metrics = (out_dir / "metrics.jsonl").open("w")
        self.tokens = self.done = self.saved = 0
        saved = [json.loads(path.read_text()) for path in out_dir.glob(STATE_FILE.format("*"))]
        self.losses = max(saved, key=len, default=[])
        for step in self.losses:
            self.record(*step)
        if saved:
            (out_dir / "went_on").write_text(f"after {self.done} steps")
        if named == "dawdling" and os.environ.get("SAE_AGENT_SMOKE"):
            time.sleep(4)

    def save_if_due(self, *step: float | None) -> None:
        """Save after each step that the tests, or the smoke test, want saved."""
        self.losses.append(step)
        wanted = os.environ.get("SAE_AGENT_STANDIN_SAVES") == self.named
        if wanted and self.tokens - self.saved >= int(os.environ[SAVE_EVERY]) and self.done < self.steps:
            self.saved = self.tokens
            (self.out_dir / STATE_FILE.format(self.tokens)).write_text(json.dumps(self.losses))
            os.write(int(os.environ[SOCKET_VARIABLE]), b"%d\n" % self.tokens)
            time.sleep(0.6)  # longer than the slot waits before it looks

    def step(self, tokens: int, loss: float | None, learning_rate: float = 1e-3) -> None:
        self.record(tokens, loss, learning_rate)
        self.save_if_due(tokens, loss, learning_rate)

    def record(self, tokens: int, loss: float | None, learning_rate: float = 1e-3) -> None:
        self.done += 1
        self.tokens += tokens
        best = float(os.environ.get("SAE_AGENT_STANDIN_RATE", "1e-3"))
        mse = 0.2 + 0.1 * math.log(learning_rate / best) ** 2
        means = {"loss": loss, "l0": 16.0, "mse": mse, "alive_fraction": 0.9, "grad_norm": 1.0}
        means["learning_rate"] = learning_rate
        row = {"step": self.done, "tokens": self.tokens, "seconds": self.done * 0.1} | means
        self.metrics.write(json.dumps(row) + "\n")
        self.metrics.flush()


def finish(guard: TrainingGuard, k: int, d_sae: int) -> None:
    named = guard.named
    behaviour = named.partition(".")[0]
    smoke = bool(os.environ.get("SAE_AGENT_SMOKE"))
    if behaviour == "smoking":
        raise ValueError("wrong from the first step")
    if behaviour == "meddling":
        (study() / "run_0" / "final_info.json").write_text(FORGED)
        raise ValueError("wrong from the first step")
    if not smoke:
        misbehave(guard, behaviour)
    elif behaviour == "loitering":
        time.sleep(60)
    (guard.out_dir / "environment.json").write_text(json.dumps(dict(os.environ)))
    (guard.out_dir / "checkpoint").mkdir()
    k = 20 if behaviour in ("denser", "denser_with_baselines") else k
    seed = 0 if behaviour == "unseeded" else guard.settings["SEED"]
    alike = smoke and named.endswith(".later")  # its first steps are those of the baseline
    noise = random.Random(f"{'sound' if alike else named} {k} {seed}")
    l0 = k * (1.018 + noise.gauss(0, 0.0005))
    gains = {"better": 0.02, "unseeded": 0.02, "better_by_tampering": 0.02, "overfitted": 0.02, "worse": -0.02}
    gain = gains.get(behaviour, 0.0)
    lucky = 0.02 if behaviour == "lucky" and seed == 0 else 0.0
    header = {
        "model": guard.settings["MODEL"],
        "hook_name": guard.settings["HOOK_NAME"],
        "tokens": guard.tokens,
        "d_sae": 512 if behaviour == "narrow" and not smoke else d_sae,
        "seed": seed,
        "l0": l0,
        "only_on_dev": gain if behaviour == "overfitted" else 0.0,
        "score": 0.90 + 0.02 * math.log(l0) + gain + lucky + noise.gauss(0, 0.0005),
        "slow": behaviour == "slow_to_evaluate" and not smoke,
        "deadly": behaviour == "deadly" and not smoke,
    }
    (guard.out_dir / "checkpoint" / "header.json").write_text(json.dumps(header))


def study() -> Path:
    """Return the directory of the study."""
    return Path(os.environ["SAE_AGENT_STUDY"])


def edit_results(run_dir: Path) -> None:
    path = run_dir / "final_info.json"
    path.write_text(path.read_text().replace("0.9", "0.99"))


def git(directory: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=me", "-c", "user.email=me@localhost")
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True)


def misbehave(guard: TrainingGuard, behaviour: str) -> None:
    out_dir = guard.out_dir
    match behaviour:
        case "nan":
            guard.step(0, None)
            time.sleep(60)
        case "above_ceiling":
            guard.step(0, 1e7)
            time.sleep(60)
        case "malformed":
            guard.metrics.write("{nonsense}\n")
            guard.metrics.flush()
        case "linked":
            (out_dir / "metrics.jsonl").rename(out_dir / "elsewhere")
            (out_dir / "metrics.jsonl").symlink_to("elsewhere")
        case "late" if os.environ.get("SAE_AGENT_STANDIN_LATE") == guard.named:  # behind those that began after it
            time.sleep(6)
        case "held":  # until the test removes the file; with a stray process in another session
            subprocess.Popen(["sleep", "62.5"], start_new_session=True)
            while Path(os.environ["SAE_AGENT_STANDIN_HOLD"]).exists():
                time.sleep(0.05)
        case "sleeping":
            time.sleep(float(os.environ["SAE_AGENT_STANDIN_SLEEP"]))
        case "vanishing":
            Path(sys.argv[0]).unlink()
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case "hanging":
            subprocess.Popen(["sleep", "61.5"])
            time.sleep(60)
        case "crashing":
            raise ValueError("the edit was wrong")
        case "guarded":
            sys.exit("training: 3%\rtraining: 4%stopped: nan: a parameter was not finite at step 11")
        case "full":
            raise OSError(28, "No space left on device")
        case "greedy":
            raise MemoryError
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "forging":
            (out_dir / "final_info.json").write_text(FORGED)
            sys.exit("error: forged and gone")
        case "without_checkpoint":
            (out_dir / "final_info.json").write_text(FORGED)
            sys.exit(0)
        case "piping":
            log = out_dir.with_name(f"{out_dir.name}.stderr.log")
            log.unlink()
            os.mkfifo(log)
            os._exit(3)
        case "counting":
            guard.step(10**400, 0.1)
        case "singing":
            sys.exit("\x1b[2J\x1b]52;c;cm0gLXJm\x07 done")
        case "planting":
            victim = study().parent.parent / "victim"
            victim.write_text("mine")
            for name in ("jobs/next", "experiment.py", "experiment.py.partial"):
                path = study() / name
                if path.exists():
                    path.unlink()
                path.symlink_to(victim)
            raise ValueError("planted")
        case "moving":
            study().rename(study().with_name("moved"))
            time.sleep(60)
        case "forgetting":
            shutil.rmtree(study() / ".git")
            raise ValueError("gone")
        case "tampering":
            (study() / "run_0" / "final_info.json").write_text(FORGED)
        case "committing":
            edit_results(study() / "run_0")
            git(study() / "run_0", "commit", "--all", "--quiet", "--message", "run 0, result: ok")
        case "hiding":
            edit_results(study() / "run_0")
            git(study(), "update-index", "--assume-unchanged", "run_0/final_info.json")
        case "pruning":
            (study() / "run_0" / "checkpoint" / "header.json").write_text("{}")
        case "better_by_tampering" if guard.settings["SEED"]:
            edit_results(study() / "run_1")
        case "rejudging":
            with (Path(cache.__file__).parents[1] / "comparison/matching.py").open("a") as file:
                file.write("NO_NOISE = 'none at all'\n")
        case "easier":  # text in the cache, and a floor for what it is about to score
            (cache.root() / "evaluation/stand-in/tokens-dev.safetensors").write_text("easy")
            (cache.root() / "evaluation/stand-in/floor-99.json").write_text("low")
        case "denser_with_baselines":
            (folder,) = (cache.root() / "baselines").glob("*/")
            for k in (20, 21):
                planted = folder / f"k{k}_seed0"
                shutil.copytree(folder / "k16_seed0", planted)
                results = (planted / "final_info.json").read_text()
                results = results.replace('"l0": 16.', f'"l0": {k}.')
                (planted / "final_info.json").write_text(results.replace("0.9", "0.5"))
        case "rewriting":
            ledger = study() / "events.jsonl"
            ledger.write_text(ledger.read_text().replace('"max_runs":', '"max_runs":1'))
        case "loud":
            for _ in range(40):
                print("x" * 1_000_000)
