"""Make the wheels that a GPU machine lacks which has torch, transformers and their like, and no network.

    python benchmarks/gpu_kit.py FOLDER

For Python 3.12 on Linux x86-64, in the versions of constraints.txt, about 38 MiB: docs/gpu.md lists them. Wheels are
packed anew by LZMA, without what nothing here uses (LEFT_OUT); of the text in sae-probes the prompts that only tiny-lm
was trained on are left out, so harvests and scores of the tier `quick` are the same, and `tpp` and `unlearning` may
not run.
"""

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    *("annotated-types", "beartype", "better-abc", "datasets", "dill", "distro", "docstring_parser", "fancy-einsum"),
    *("gitdb", "GitPython", "httpcore2", "httpx2", "importlib_resources", "jiter", "multiprocess", "openai"),
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-semantic-conventions", "platformdirs", "plotly"),
    *("pydantic", "pydantic_core", "python-dotenv", "pytz", "ruff", "sae-bench", "sae-lens", "sae-probes"),
    *("simple-parsing", "smmap", "sniffio", "transformer-lens", "truststore", "typeguard", "typing-inspection"),
    *("tzdata", "wandb", "xgboost", "zstandard"),
)
SMALLER = {"xgboost": "xgboost-cpu"}  # the same package without its code for GPUs, which sae-probes does not use
LEFT_OUT = {  # what only their own features need: a server, a browser, another interpreter
    "wandb": r"^wandb/bin/",
    "zstandard": r"_cffi",
    "ruff": r"/sboms/",
    "plotly": r"\.js$|\.js\.map$|labextension",
}
PLATFORMS = ("2_17", "2_24", "2_27", "2_28", "2_31", "2_34", "2_35")
WHOLE = (  # datasets that tests and other evaluations read whole, beside those held out
    *("24_headline_isiran", "41_truthqa_tf", "87_glue_cola", "95_toxic_is", "5_hist_fig_ismale"),
    *("17_world_country", "97_news_class"),
)
Change = Callable[[str, bytes], bytes]


def requirements() -> list[str]:
    """Return what is to be downloaded, in the versions of constraints.txt."""
    lines = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    versions = {name: version for name, _, version in lines}
    return [f"{SMALLER.get(name, name)}=={versions[name]}" for name in NAMES]


def download(folder: Path) -> None:
    platforms = [f"manylinux_{each}_x86_64" for each in PLATFORMS] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
    options = [word for platform in platforms for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    command += ["--python-version", "3.12", "--implementation", "cp", *options, *requirements()]
    subprocess.run(command, check=True)


def pack_anew(wheel: Path, folder: Path, change: Change) -> None:
    """Write a wheel to a folder, compressed better, without what is left out, with a new record of its files."""
    left_out = re.compile(LEFT_OUT.get(wheel.name.split("-")[0], r"$^"))
    with zipfile.ZipFile(wheel) as old:
        kept = [member for member in old.infolist() if not member.is_dir() and not left_out.search(member.filename)]
        contents = {member.filename: change(member.filename, old.read(member)) for member in kept}
    (record,) = [name for name in contents if name.endswith(".dist-info/RECORD")]
    contents[record] = _record({name: data for name, data in contents.items() if name != record}, record)
    with zipfile.ZipFile(folder / wheel.name, "w", zipfile.ZIP_LZMA) as new:
        for member in kept:
            written = zipfile.ZipInfo(member.filename)
            written.external_attr = member.external_attr
            new.writestr(written, contents[member.filename], zipfile.ZIP_LZMA)


def _record(contents: dict[str, bytes], record: str) -> bytes:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.writerow([name, f"sha256={digest}", len(data)])
    rows.writerow([record, "", ""])
    return text.getvalue().encode()


def without_training_text(name: str, data: bytes) -> bytes:
    """Return a file of sae-probes: a dataset without the prompts of the split `lm`, unless it is read whole."""
    import pandas as pd
    import zstandard

    from agent.lab import text

    if "/cleaned_data/" not in name:
        return data
    content = zstandard.ZstdDecompressor().stream_reader(data).read()
    if Path(name).name.removesuffix(".csv.zst") not in (*text.HELD_OUT, *WHOLE):
        prompts = [str(prompt) for prompt in pd.read_csv(io.BytesIO(content))["prompt"]]
        frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
        kept = frame[[text.split_of(prompt) != "lm" for prompt in prompts]]
        content = kept.to_csv(index=False, quoting=csv.QUOTE_ALL).encode()  # a prompt may hold a carriage return
    return zstandard.ZstdCompressor(level=22).compress(content)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        download(Path(scratch))
        for wheel in sorted(Path(scratch).glob("*.whl")):
            trimmed = wheel.name.startswith("sae_probes-")
            pack_anew(wheel, folder, without_training_text if trimmed else lambda _, data: data)
    for path in sorted(folder.iterdir(), key=lambda path: -path.stat().st_size):
        print(f"{path.stat().st_size:>12,}  {path.name}")


if __name__ == "__main__":
    main()
