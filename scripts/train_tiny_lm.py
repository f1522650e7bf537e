"""Train tiny-lm, the embedded language model, and write its weights, tokenizer, log and model card.

    python scripts/train_tiny_lm.py --out_dir agent/lab/tiny_lm

Two CPU cores take about an hour and a half. A checkpoint is kept every CHECKPOINT_EVERY steps in
<out_dir>/checkpoint.pt (git-ignored); the same command continues from it. The same seed, thread count and
library versions give the same weights.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from agent.lab import files, text

SEED = 0
VOCAB_SIZE = 4096  # embedding and unembedding together stay under half of the parameters
CONTEXT = 256  # every position up to here is trained
D_MODEL = 192
N_LAYERS = 4
N_HEADS = 6
BATCH = 32  # windows a step: 8,192 predicted tokens
STEPS = 3200  # nearly one pass over the text
WARMUP_STEPS = 100
DECAY_SHARE = 0.3  # the learning rate falls linearly to zero over the last part
LR_MATRICES = 0.02  # Muon, for the matrices inside the blocks
LR_OTHER = 3e-3  # AdamW, for embeddings, norms and biases
CHECKPOINT_EVERY = 200
EVAL_WINDOWS = 256
END = "<|endoftext|>"


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE like GPT-NeoX's on a third of the documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = random.Random(SEED).sample(documents, len(documents) // 3)
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        unk_token=END,
        model_max_length=CONTEXT,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> np.ndarray:
    """Return all documents in a seeded order, END after each, as one stream of token ids."""
    documents = random.Random(SEED).sample(documents, len(documents))
    end = tokenizer.eos_token_id
    encoded = tokenizer.backend_tokenizer.encode_batch(documents)
    return np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in encoded])


def build_model() -> GPTNeoXForCausalLM:
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=4 * D_MODEL,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
        use_parallel_residual=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(SEED)
    return GPTNeoXForCausalLM(config)


def windows(stream: np.ndarray, step: int) -> Tensor:
    """Return batch number `step`, token ids `[BATCH, CONTEXT + 1]`; an epoch is cut at an offset of its own.

    Half of the windows begin with END, as harvesting and evaluation prepend it; the other half do not, as the
    probing evaluation does not.
    """
    per_epoch = (len(stream) - CONTEXT) // (CONTEXT + 1) // BATCH
    epoch, index = divmod(step, per_epoch)
    rng = np.random.default_rng([SEED, epoch])
    offset = rng.integers(0, CONTEXT)
    order = rng.permutation(per_epoch * BATCH)[index * BATCH : (index + 1) * BATCH]
    rows = np.stack([stream[offset + i * (CONTEXT + 1) :][: CONTEXT + 1] for i in order]).astype(np.int64)
    rows[: BATCH // 2, 0] = 0
    return torch.from_numpy(rows)


def loss_per_token(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the cross-entropy `[batch, CONTEXT]` in nats."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1]).logits
    losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
    return losses.view(batch.shape[0], -1)


def learning_rate_factor(step: int, steps: int) -> float:
    decay_steps = DECAY_SHARE * steps
    return min((step + 1) / WARMUP_STEPS, 1.0, (steps - step) / decay_steps)


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    other = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    return [
        torch.optim.Muon(matrices, lr=LR_MATRICES, weight_decay=0.02),
        torch.optim.AdamW(other, lr=LR_OTHER, betas=(0.9, 0.95), weight_decay=0.01),
    ]


@torch.no_grad()
def held_out_loss(model: nn.Module, stream: np.ndarray, n_windows: int) -> Tensor:
    """Return the mean cross-entropy `[CONTEXT]` by position over the first n_windows windows, END before each."""
    count = min(n_windows, len(stream) // CONTEXT)
    rows = torch.from_numpy(stream[: count * CONTEXT].astype(np.int64)).view(count, CONTEXT)
    rows = torch.cat([torch.zeros(count, 1, dtype=torch.long), rows], dim=1)
    return torch.cat([loss_per_token(model, chunk) for chunk in rows.split(32)]).mean(0)


def train(model: nn.Module, stream: np.ndarray, dev: np.ndarray, out_dir: Path, steps: int) -> None:
    optimizers = build_optimizers(model)
    base_rates = [o.param_groups[0]["lr"] for o in optimizers]
    saved, log = out_dir / "checkpoint.pt", out_dir / "training_log.jsonl"
    first, spent = 0, 0.0
    if saved.exists():
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        for optimizer, optimizer_state in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(optimizer_state)
        first = state["step"]
        kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= first]
        spent = json.loads(kept[-1])["seconds"]
        log.write_text("".join(line + "\n" for line in kept))
    started = time.monotonic() - spent
    for step in range(first, steps):
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        loss = loss_per_token(model, windows(stream, step)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done = step + 1
        if done % 50 == 0 or done == steps:
            row = {"step": done, "tokens": done * BATCH * CONTEXT, "loss": round(loss.item(), 4)}
            if done % CHECKPOINT_EVERY == 0 or done == steps:
                row["dev_ce"] = round(held_out_loss(model, dev, EVAL_WINDOWS).mean().item(), 4)
                state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": done}
                with files.atomic_path(saved) as partial:
                    torch.save(state, partial)
            row["seconds"] = round(time.monotonic() - started, 1)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def baselines(stream: np.ndarray, test: np.ndarray) -> dict[str, float]:
    """Return the held-out cross-entropy in nats of a unigram (add-one) and a bigram (discounting, 0.75) model."""
    train_ids, test_ids = stream.astype(np.int64), test.astype(np.int64)
    unigram = np.bincount(train_ids, minlength=VOCAB_SIZE) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount(train_ids[:-1] * VOCAB_SIZE + train_ids[1:], minlength=VOCAB_SIZE**2)
    counts = pairs.reshape(VOCAB_SIZE, VOCAB_SIZE).astype(np.float64)
    total = np.maximum(counts.sum(1, keepdims=True), 1.0)
    discount = 0.75
    backoff = discount * (counts > 0).sum(1, keepdims=True) / total
    bigram = np.maximum(counts - discount, 0) / total + np.where(backoff > 0, backoff, 1.0) * unigram
    return {
        "unigram": float(-np.log(unigram[test_ids]).mean()),
        "bigram": float(-np.log(bigram[test_ids[:-1], test_ids[1:]]).mean()),
    }


CARD = """# tiny-lm

The language model that sae-agent carries: small enough to ship, real enough to train sparse autoencoders on.
Written by `scripts/train_tiny_lm.py`; every figure below was measured by it.

| | |
| --- | --- |
| architecture | GPTNeoX, {n_layers} layers, d_model {d_model}, {n_heads} heads, {parameters:,} parameters, context {context} |
| tokenizer | byte-level BPE, {vocab:,} tokens, trained on a third of the training text |
| data | the prompts of the probing datasets in the `sae-probes` 0.4.2 wheel (MIT): news, reviews, questions, medical text, code, several languages; duplicates removed; split `lm` of `agent/lab/text.py` |
| held out whole | {held_out}, with every duplicate of their prompts |
| training | {steps:,} steps of {batch_tokens:,} tokens = {tokens:,} tokens, {epochs:.2f} passes over {stream:,} tokens; Muon and AdamW, bfloat16 autocast |
| weights | float16 safetensors |

Cross-entropy on the held-out split `test` ({test_tokens:,} tokens, in nats a token):

| model | all positions | 1-8 | 9-32 | 33-128 | 129-256 |
| --- | --- | --- | --- | --- | --- |
| tiny-lm | {ce:.3f} | {bins[0]:.3f} | {bins[1]:.3f} | {bins[2]:.3f} | {bins[3]:.3f} |
| bigram, same training text | {bigram:.3f} | | | | |
| unigram, same training text | {unigram:.3f} | | | | |

From position {clear} on, every position is at least 1.2 nats under the bigram; before it there is too little context.

It is a test object for interpretability tools. It knows little, repeats what such corpora say, and must not be
used to produce text for people.
"""


def write_card(model: GPTNeoXForCausalLM, stream: np.ndarray, test: np.ndarray, out_dir: Path, steps: int) -> None:
    by_position = held_out_loss(model, test, len(test))
    bins = [by_position[a:b].mean().item() for a, b in ((0, 8), (8, 32), (32, 128), (128, 256))]
    measured = {"ce": by_position.mean().item(), "ce_by_position": by_position.tolist(), **baselines(stream, test)}
    (out_dir / "held_out.json").write_text(json.dumps(measured) + "\n")
    far_above = [i for i, ce in enumerate(measured["ce_by_position"]) if ce > measured["bigram"] - 1.2]
    card = CARD.format(
        clear=max(far_above, default=-1) + 2,  # positions are counted from 1
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        context=CONTEXT,
        vocab=VOCAB_SIZE,
        parameters=sum(p.numel() for p in model.parameters()),
        held_out=", ".join(text.HELD_OUT),
        steps=steps,
        batch_tokens=BATCH * CONTEXT,
        tokens=steps * BATCH * CONTEXT,
        epochs=steps * BATCH * CONTEXT / len(stream),
        stream=len(stream),
        test_tokens=len(test),
        bins=bins,
        **measured,
    )
    (out_dir / "MODEL_CARD.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", type=Path, required=True, help="where weights, tokenizer, log and card go")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)

    documents = list(text.prompts("lm"))
    tokenizer = train_tokenizer(documents)
    tokenizer.save_pretrained(args.out_dir)
    stream = tokenize(tokenizer, documents)
    dev, test = (tokenize(tokenizer, list(text.prompts(split))) for split in ("dev", "test"))
    print(f"{len(stream):,} training tokens, {len(dev):,} dev, {len(test):,} test", flush=True)

    model = build_model()
    train(model, stream, dev, args.out_dir, args.steps)
    model.half().save_pretrained(args.out_dir)
    write_card(model.float(), stream, test, args.out_dir, args.steps)


if __name__ == "__main__":
    main()
