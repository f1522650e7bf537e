"""The text of the probing datasets inside the sae-probes wheel, split once and for all.

Every prompt goes to exactly one split, by a hash of its normalised text: the language model `tiny-lm` is trained on
`lm`, sparse autoencoders on `sae`; evaluations choose on `dev` and report on `test`. The datasets in HELD_OUT, for the
default probing evaluation, are left out whole, with every duplicate of their prompts in any other dataset, so that a
probed prompt was never trained on.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["lm", "sae", "dev", "test"]

VERSION = "sae-probes-0.4.2/1"  # of the data and the rules below; harvests are keyed by it

DATASETS = 155  # files in the package, of which sae-probes probes 113

# Share of the prompts in each split, in thousandths.
SHARES: dict[Split, int] = {"lm": 800, "sae": 160, "dev": 20, "test": 20}

# Chosen before the model was trained: binary, short prompts, together under 2% of the text.
HELD_OUT = (
    "105_click_bait",
    "68_credit-card",
    "96_spam_is",
    "135_context_type_Event_duration",
    "125_world_country_Italy",
    "110_aimade_humangpt3",
    "139_news_class_Politics",
    "114_nyc_borough_Manhattan",
    "149_twt_emotion_happiness",
    "22_headline_isobama",
    "42_temp_sense",
    "127_art_type_song",
    "113_movie_sent",
    "84_clinical-trials",
)


class TextMissing(RuntimeError):
    """The error of a sae-probes wheel, whose datasets are the text, that is missing or damaged."""


def normalise(prompt: str) -> str:
    """Return a prompt in lower case, white space folded: prompts that are equal in this form are duplicates."""
    return " ".join(prompt.lower().split())


def split_of(prompt: str) -> Split:
    """Return the split of a prompt, which does not depend on its dataset."""
    return _split_of_normalised(normalise(prompt))


def _split_of_normalised(key: str) -> Split:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % 1000
    for split, share in SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("SHARES must sum to 1000")


def data_dir() -> Path:
    """Find the folder of the wheel's datasets without importing sae_probes, which takes 8 s. Raises TextMissing."""
    spec = importlib.util.find_spec("sae_probes")
    if spec is None or spec.origin is None:
        raise TextMissing("the package sae-probes is not installed: pip install -e . in the project's root")
    folder = Path(spec.origin).parent / "data" / "cleaned_data"
    if not folder.is_dir():
        raise TextMissing(f"{folder} is missing: pip install --force-reinstall sae-probes")
    return folder


def check_datasets() -> int:
    """Compare each dataset with its packaged checksum and return their number. Raises TextMissing."""
    folder = data_dir()
    packaged = [file for file in importlib.metadata.files("sae-probes") or [] if file.parent.name == folder.name]
    for file in packaged:
        path = Path(str(file.locate()))
        digest = hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""
        if file.hash and base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
            raise TextMissing(f"{path} differs from its packaged checksum: pip install --force-reinstall sae-probes")
    if len(packaged) < DATASETS:
        raise TextMissing(f"sae-probes lists {len(packaged)} of {DATASETS} datasets: pip install --force-reinstall it")
    return len(packaged)


def read_prompts(path: Path) -> list[str]:
    """Read the prompts of one dataset file, in the file's order."""
    import pandas as pd

    frame = pd.read_csv(path, compression="zstd")
    return [str(prompt) for prompt in frame["prompt"]]


@cache
def held_out_prompts() -> frozenset[str]:
    """Return the normalised prompts of all held-out datasets."""
    folder = data_dir()
    return frozenset(normalise(p) for name in HELD_OUT for p in read_prompts(folder / f"{name}.csv.zst"))


def prompts(*splits: Split) -> Iterator[str]:
    """Yield every distinct prompt of the splits but the held-out ones, datasets in name order."""
    return (prompt for split, prompt in _prompts_with_splits() if split in splits)


@cache
def _prompts_with_splits() -> list[tuple[Split, str]]:
    """Return every distinct prompt with its split, read once a process: that takes some ten seconds."""
    seen, found = set(held_out_prompts()), []
    for path in sorted(data_dir().glob("*.csv.zst")):
        for prompt in read_prompts(path):
            key = normalise(prompt)
            if key not in seen:
                seen.add(key)
                found.append((_split_of_normalised(key), prompt))
    return found
