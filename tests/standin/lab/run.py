"""A stand-in for the command line of an experiment."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path


def run(main: Callable[[Path], None]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out_dir", type=Path, required=True)
    out_dir: Path = parser.parse_args().out_dir
    if out_dir.exists() and any(path.suffix != ".safetensors" for path in out_dir.iterdir()):
        sys.exit("error: the directory exists and is not empty")
    out_dir.mkdir(exist_ok=True)
    if seed := os.environ.get("SAE_AGENT_SEED"):
        main.__globals__["SEED"] = int(seed)
    main(out_dir)
