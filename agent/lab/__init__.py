"""The frozen harness that `experiment.py` imports and may not change: everything that touches torch.

Importing the package only sets environment variables that the libraries below read at their own import, and the C
library of processes that are started from here.
"""

import os
import sys

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",  # models are fetched once, by hub.py; a miss later is an error at once, not after retries
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "JAXTYPING_DISABLE": "1",  # sae_bench's annotations fail under beartype >= 0.19
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",  # sae_probes and sae_bench unpickle cached files, which may have been planted
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait are many times slower beside any other program
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same seed gives the same run on a GPU too
    # A step's tensors of a few MB each are made anew: in memory that the process keeps, on large pages.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the most that glibc takes
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "THP_MEM_ALLOC_ENABLE": "1",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

# torchvision comes with sae_bench and is used nowhere here; beside a CPU build of torch it cannot be imported and
# takes transformers down with it.
sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]
