"""Time what is kept of a run's latents, with its size and the memory that it takes, by one thread.

    python benchmarks/features.py RUN_DIR [--baseline RUN_0] [--threads 1] [--tokens 1000000]
    python benchmarks/features.py --d_sae 65536 --tokens 20000

The first looks at a finished run as its study does. It is done twice, as the first time the model may have to be run
over the text. The second makes an SAE of random weights on tiny-lm, of which about 64 latents fire on a token. Nothing
is written into a run.
"""

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from agent.lab import checkpoint, features
from agent.lab.checkpoint import Header
from agent.lab.evaluation import keep_features
from agent.lab.evaluation.evaluator import Evaluator
from agent.lab.evaluation.requests import KeepFeatures
from agent.lab.results import Training

HOOK, D_IN, ACTIVE = "blocks.1.hook_resid_post", 192, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", type=Path)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--d_sae", type=int, default=65_536)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if "AS_IN_A_STUDY" not in os.environ:  # how memory is kept is read when a process starts; agent.lab has just set it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"AS_IN_A_STUDY": "1"})
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir = Path(scratch) / "run"
        if args.run_dir:
            shutil.copytree(args.run_dir, run_dir)
        else:
            save_random(run_dir / "checkpoint", args.d_sae)
        header = checkpoint.read_header(run_dir / "checkpoint")
        evaluator = Evaluator(header.model, header.hook_name, header.text)
        request = KeepFeatures(run_dir=run_dir, baseline=args.baseline, tokens=args.tokens, seconds=1e6)
        for time_of_day in ("first", "second"):
            start, cpu = time.perf_counter(), time.process_time()
            found = keep_features.keep(evaluator, request)
            features.write(run_dir, found)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            size = (run_dir / features.FILE).stat().st_size
            print(f"{time_of_day}: {seconds:.1f} s, {cpu:.1f} of the CPU, {size / 1e6:.2f} MB, {found.text}")
        print(f"{len(found.features)} latents of {found.d_sae:,} are kept")
        print(f"largest memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def save_random(folder: Path, d_sae: int) -> None:
    """Save an SAE with random weights and a threshold that about ACTIVE latents exceed on a token."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, D_IN, generator=generator), dim=1)
    W_enc = W_dec.T.contiguous()
    # Of a row of norm sqrt(d_in) the pre-activations are about standard normal.
    threshold = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - ACTIVE / d_sae))

    def encode(x: Tensor) -> Tensor:
        pre = x @ W_enc
        return torch.where(pre > threshold, pre, 0.0)

    training = Training(
        model="tiny-lm",
        hook_name=HOOK,
        layer=1,
        d_in=D_IN,
        d_sae=d_sae,
        steps=1,
        tokens=1,
        final_loss=1.0,
        seconds=1.0,
        learning_rate=1e-3,
        seed=0,
        settings={},
    )
    header = Header(
        model="tiny-lm",
        hook_name=HOOK,
        layer=1,
        d_in=D_IN,
        d_sae=d_sae,
        scale=1.0,
        training=training,
        any_parameter_changed=True,
    )
    folder.parent.mkdir(parents=True)
    checkpoint.save(folder, encode, W_dec, torch.zeros(D_IN), header)


if __name__ == "__main__":
    main()
