"""List the held-out datasets that the default probing evaluation can use on tiny-lm.

    python benchmarks/probing_datasets.py

Prints, for every candidate, the share of prompts longer than the trained context (they are cut to their last tokens)
and the test AUC of a probe on the model's own activations. A dataset is suitable if that AUC is between 0.65 and 0.97
and at most 1 prompt in 200 is too long.
"""

import json
import tempfile
import warnings
from pathlib import Path

from agent.lab import models, text
from agent.lab.evaluation.bench import probing

HOOK_NAME = "blocks.1.hook_resid_post"


def main() -> None:
    warnings.simplefilter("ignore")
    model = models.load("tiny-lm")
    assert model.tokenizer
    with tempfile.TemporaryDirectory() as scratch:
        probes = probing.prepare_model(model, "tiny-lm", HOOK_NAME, Path(scratch), text.HELD_OUT)
        print("| dataset | prompts | too long | model's own AUC | suitable | in the default |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in text.HELD_OUT:
            prompts = text.read_prompts(text.data_dir() / f"{name}.csv.zst")
            lengths = [len(ids) for ids in model.tokenizer(prompts)["input_ids"]]
            too_long = sum(length > model.cfg.n_ctx for length in lengths) / len(lengths)
            (result,) = probes.results.rglob(f"{name}_{HOOK_NAME}_logreg.json")
            auc = json.loads(result.read_text())[0]["test_auc"]
            suitable = 0.65 <= auc <= 0.97 and too_long <= 0.005
            mark = "*" * (name in probing.DATASETS)
            print(
                f"| {name} | {len(prompts):,} | {too_long:.1%} | {auc:.3f} | {'yes' if suitable else 'no'} | {mark} |"
            )


if __name__ == "__main__":
    main()
