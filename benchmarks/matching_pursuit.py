"""Time an encoder of matching pursuit as a checkpoint holds it, unrolled: one thread, 192 x 1,024, random weights.

    python benchmarks/matching_pursuit.py [--k 16 64 320]

Prints, for every K, the CPU's seconds to export the encoder, its size, the seconds to encode 1,024 rows in it, in
SAELens' loop and, in place of K rounds, in one product with a top-k, the seconds for the slopes at one activation, by
which evaluations stand in for the W_enc that it lacks, and the largest memory of the process until then.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from agent.lab.checkpoint.graph import parse
from agent.lab.checkpoint.pursuit import matching_pursuit
from agent.lab.checkpoint.trace import trace

D_IN, D_SAE, ROWS = 192, 1024, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64, 320])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    W_dec, x = F.normalize(torch.randn(D_SAE, D_IN), dim=1), torch.randn(ROWS, D_IN)
    print("| K | to write | encode.json | 1,024 rows | in SAELens' loop | one product with a top-k | slopes | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for k in parser.parse_args().k:
        print(row(k, W_dec, x), flush=True)


@torch.no_grad()
def row(k: int, W_dec: Tensor, x: Tensor) -> str:
    """Return the row of the table for K, of decoder rows `[d_sae, d_in]` and activations `[rows, d_in]`."""
    from sae_lens.saes.matching_pursuit_sae import _encode_matching_pursuit

    (document, _), export = timed(lambda: trace(lambda rows: matching_pursuit(rows, W_dec, k), x, {"W_dec": W_dec}))
    graph = parse(document, ["W_dec"])
    ours, own = timed(lambda: graph(x, {"W_dec": W_dec}))
    theirs, loop = timed(lambda: _encode_matching_pursuit(x, W_dec, 0.0, k, False))
    assert ((ours != 0) & (theirs != 0)).sum() > 0.99 * (theirs != 0).sum()
    _, top_k = timed(lambda: (x @ W_dec.T).topk(k, dim=1))
    copies, directions = x[:1].expand(D_IN, -1).contiguous(), torch.eye(D_IN)
    _, slopes = timed(lambda: torch.func.jvp(lambda rows: graph(rows, {"W_dec": W_dec}), (copies,), (directions,)))
    times = " | ".join(f"{seconds:.2f} s" for seconds in (own, loop, top_k, slopes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"| {k} | {export:.1f} s | {len(json.dumps(document)) / 1e6:.2f} MB | {times} | {peak:.2f} GB |"


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and the CPU's seconds that it takes."""
    started = time.process_time()
    return call(), time.process_time() - started


if __name__ == "__main__":
    main()
