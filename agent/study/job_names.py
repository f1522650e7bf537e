"""The names of a study's jobs, which are those of their directories in jobs/. Each follows from what the job is for."""

import re

SENTINELS = "sentinels"


def rate(learning_rate: float) -> str:
    """Name the training of the baseline that tries a learning rate."""
    return f"rate_{learning_rate:g}"


def attempt(run: int, number: int) -> str:
    """Name the training of an attempt at a run, with its evaluation."""
    return f"run_{run}_attempt_{number}"


def evaluation(run: int) -> str:
    """Name the evaluation of a run that is trained already: by hand, or copied from the cache."""
    return f"run_{run}_evaluation"


def baseline(k: float, seed: int) -> str:
    """Name a baseline beside run 0."""
    return f"baseline_k{k:g}_seed{seed}"


def fresh_seed(run: int, seed: int) -> str:
    """Name a run with a fresh seed."""
    return f"run_{run}_seed_{seed}"


def at_k(run: int, k: float) -> str:
    """Name a run trained again with another K."""
    return f"run_{run}_k{k:g}"


def on_test_split(run: int, k: float | None = None, seed: int | None = None) -> str:
    """Name an evaluation on the test split: of a run, one of its fresh seeds, or a baseline."""
    if k is not None and seed is not None:
        return f"test_{baseline(k, seed)}"
    return f"test_run_{run}" if seed is None else f"test_{fresh_seed(run, seed)}"


def features(run: int) -> str:
    """Name the job that keeps what a person looks at of a run's latents."""
    return f"run_{run}_features"


def reference(name: str) -> str:
    """Name the evaluation of an SAE from elsewhere; its directory in the study has this name too."""
    return f"reference_{name}"


def baseline_of(name: str) -> tuple[float, int] | None:
    """Return knob and seed of a baseline's job, or None if it is another's."""
    match = re.fullmatch(r"baseline_k([\d.e+-]+)_seed(-?\d+)", name)
    return (float(match[1]), int(match[2])) if match else None


def fresh_seed_of(name: str) -> tuple[int, int] | None:
    """Return run and seed of the job of a fresh seed, or None if it is another's."""
    match = re.fullmatch(r"run_(\d+)_seed_(-?\d+)", name)
    return (int(match[1]), int(match[2])) if match else None


def features_of(name: str) -> int | None:
    """Return the run of the job that keeps its features, or None if it is another's."""
    match = re.fullmatch(r"run_(\d+)_features", name)
    return int(match[1]) if match else None


def at_k_of(name: str) -> tuple[int, float] | None:
    """Return run and K of the job of a run with another K, or None if it is another's."""
    match = re.fullmatch(r"run_(\d+)_k([\d.e+-]+)", name)
    return (int(match[1]), float(match[2])) if match else None


def reference_of(name: str) -> str | None:
    """Return the name of the reference whose evaluation a job is, or None if it is another's."""
    match = re.fullmatch(r"reference_(.+)", name)
    return match[1] if match else None
