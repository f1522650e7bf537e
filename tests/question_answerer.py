"""A small stand-in for gemma-2-2b-it that answers questions in WMDP's form, and such data in the published formats.

Of the choices of a question one says "yes" and the others "no".
"""

import itertools
import json
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedTokenizerFast

CHOICES = ["yes", "no", "no", "no"]
QUESTIONS = ["Which is it?", "Which of these?", "What is said?", "Which one holds?"]
SUBJECTS = ("high_school_us_history", "college_computer_science", "high_school_geography", "human_aging")
SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
WORDS = ("cell", "virus", "gene", "spore"), ("king", "river", "song", "train")  # to forget, to retain


def prompts_and_answers() -> tuple[list[str], list[str]]:
    """Return all prompts that SAE-Bench makes of the questions, in Gemma's form, and the letters that are right."""
    from sae_bench.evals.unlearning.utils.metrics import convert_wmdp_data_to_prompt
    from sae_bench.evals.unlearning.utils.var import PRE_QUESTION_FORMAT

    prompts, answers = [], []
    for subject in ("biology", *(name.replace("_", " ") for name in SUBJECTS)):
        for question, order in itertools.product(QUESTIONS, itertools.permutations(range(4))):
            before = PRE_QUESTION_FORMAT.format(subject=subject)
            prompts.append(
                convert_wmdp_data_to_prompt(
                    question, CHOICES, prompt_format="GEMMA_INST_FORMAT", pre_question=before, permute_choices=order
                )
            )
            answers.append("ABCD"[order.index(0)])
    return prompts, answers


def documents(kind: int) -> list[str]:
    """Return documents to forget (kind 0) or to retain (kind 1)."""
    pairs = list(itertools.product(WORDS[kind], repeat=2))
    return [" and ".join(f"a {one} with a {other}" for one, other in pairs[i:] + pairs[:i]) + "." for i in range(16)]


def make_tokenizer(prompts: list[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer in which each letter of an answer, also after a space, is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([*prompts, *([" A B C D"] * len(prompts)), *documents(0), *documents(1)], trainer)
    pad, end, begin, *_ = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=pad, eos_token=end, bos_token=begin, model_max_length=1024
    )


def make_model(directory: Path) -> Path:
    """Train the model until it answers all questions, in two hundred steps."""
    prompts, answers = prompts_and_answers()
    tokenizer = make_tokenizer(prompts)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        intermediate_size=128,
        max_position_embeddings=1024,
        query_pre_attn_scalar=16,
        sliding_window=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    encoded = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt")
    last, right = encoded["attention_mask"].sum(1) - 1, torch.tensor(tokenizer.convert_tokens_to_ids(answers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(250):
        rows = torch.randint(len(prompts), (48,))
        inputs = {name: values[rows] for name, values in encoded.items()}
        logits = model(**inputs).logits[torch.arange(48), last[rows]]
        torch.nn.functional.cross_entropy(logits, right[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_datasets(folder: Path) -> dict[str, Path]:
    """Write WMDP, MMLU and WikiText as the hub has them, and return their directories by name."""
    rows = {"question": QUESTIONS, "choices": [CHOICES] * len(QUESTIONS), "answer": [0] * len(QUESTIONS)}
    texts = {"text": [text for text in documents(1) for _ in range(60)]}
    contents = {
        "cais/wmdp": {"wmdp-bio": rows},
        "cais/mmlu": dict.fromkeys(SUBJECTS, rows),
        "Salesforce/wikitext": {"wikitext-2-raw-v1": texts},
    }
    for name, parts in contents.items():
        configs = []
        for part, columns in parts.items():
            path = folder / name / part / "test-00000-of-00001.parquet"
            path.parent.mkdir(parents=True)
            Dataset.from_dict(columns).to_parquet(path)
            configs.append({"config_name": part, "data_files": [{"split": "test", "path": f"{part}/test-*"}]})
        (folder / name / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    return {f"datasets/{name}": folder / name for name in contents}


def write_corpus(path: Path) -> None:
    """Write the corpus to forget, as it is given on request."""
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"title": "made", "text": text}) for text in documents(0) for _ in range(60)]
    path.write_text("\n".join(lines) + "\n")
