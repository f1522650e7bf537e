"""A small language model of the tests' own, and experiments on it."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedTokenizerFast

from agent import ideas
from agent.ideas import Fixed, Step
from agent.lab import activations, checkpoint, text
from agent.lab.activations import Manifest, Stream
from agent.lab.architectures import BaselineName
from agent.lab.checkpoint import Header
from agent.lab.evaluation import idea_files
from agent.lab.evaluation.evaluator import Evaluator, HeldOut
from agent.lab.evaluation.idea_analysis import Examination
from agent.lab.evaluation.sae_adapter import CheckpointSAE, bench_config
from agent.lab.results import Training

VOCABULARY, D_MODEL, CONTEXT = 512, 32, 64
HOOK = "blocks.1.hook_resid_post"
TOKENS, D_SAE, K, BATCH = 150_000, 128, 8, 512  # two shards; some 300 steps, in a second or two
READ = ("24_headline_isiran", "41_truthqa_tf", "87_glue_cola", "95_toxic_is", "5_hist_fig_ismale")
END = "<|endoftext|>"


def make_model(directory: Path, d_model: int = D_MODEL, config: Any = None) -> Path:
    """Train a GPTNeoX of two layers, or what `config` describes, a little, so that ablating its activations raises the
    loss. Its vocabulary has VOCABULARY tokens, its context at least CONTEXT."""
    prompts = [p for name in READ for p in text.read_prompts(text.data_dir() / f"{name}.csv.zst")[:400]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(prompts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, unk_token=END, model_max_length=CONTEXT
    )
    torch.manual_seed(0)
    config = config or GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=4 * d_model,
        max_position_embeddings=CONTEXT,
        use_parallel_residual=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.tensor([i for e in bpe.encode_batch(prompts) for i in [*e.ids, 0]])
    windows = ids[: len(ids) // (CONTEXT - 1) * (CONTEXT - 1)].view(-1, CONTEXT - 1)
    windows = torch.cat([torch.zeros(len(windows), 1, dtype=torch.long), windows], dim=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        batch = windows[torch.randint(len(windows), (16,))]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def experiment(
    directory: Path,
    model: Path | str,
    step: Step | None = None,
    idea: str = "hierarchical_sae",
    baseline: BaselineName = "batchtopk",
    **constants: Any,
) -> Path:
    """Write directory/experiment.py: a shipped baseline, or a step of an idea, at a test's size."""
    fixed = Fixed(model=str(model), hook_name=HOOK, tokens=TOKENS, d_sae=D_SAE, baseline=baseline)
    source = ideas.render_step(ideas.load(idea), step, fixed) if step else ideas.render_baseline(fixed)
    knob = {"K": K} if fixed.architecture.knob == "K" else {}
    for name, value in (knob | {"BATCH": BATCH} | constants).items():
        source, found = re.subn(rf"(?m)^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", source)
        assert found == 1, f"the experiment has no constant {name}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "experiment.py"
    path.write_text(source)
    return path


def load(path: Path) -> ModuleType:
    """An experiment as a module; its main is not run."""
    spec = importlib.util.spec_from_file_location(f"experiment_{abs(hash(path))}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_of_idea(idea: str, file: str) -> SimpleNamespace:
    """Return the names that a file of a shipped idea, such as analysis.py, defines when it is run."""
    return SimpleNamespace(**idea_files.run_file(ideas.load(idea).folder / file))


def of_idea(directory: Path, model: Path, idea: str, baseline: BaselineName = "batchtopk") -> dict[str, ModuleType]:
    """Load the baseline, the idea's template with every mechanism off, and the steps of its plan as modules."""
    plan = ideas.load(idea).plan
    off = plan[0].model_copy(update={"name": "off", "parameters": {}})
    steps = {"baseline": None, **{step.name: step for step in (off, *plan)}}
    return {name: load(experiment(directory / name, model, step, idea, baseline)) for name, step in steps.items()}


def stream(model: Path, size: int = TOKENS, batch: int = BATCH) -> Stream:
    """Stream the small model's harvest from its start."""
    folder, manifest = activations.ensure_harvest(str(model), HOOK, TOKENS)
    return activations.stored_stream(folder, manifest, size, batch, seed=0)


def train(module: ModuleType, data: Stream, steps: int | None = None, start: Any = None) -> Any:
    """Train the experiment's own SAE for some steps of its own loss, without the guard, from the weights of `start`."""
    torch.manual_seed(data.seed)
    sae = getattr(module, "TieredSAE", module.SAE)(data.d_in, module.D_SAE, data.mean).to(data.device)
    if start:
        sae.load_state_dict(start.state_dict())
    optimizer = torch.optim.Adam(sae.parameters(), lr=module.LEARNING_RATE)
    nothing_dead = torch.empty(0, dtype=torch.long, device=data.device)
    for step, x in enumerate(data):
        if step == steps:
            break
        optimizer.param_groups[0]["lr"] = module.learning_rate(step / data.steps)
        loss, _, _ = module.compute_loss(sae, x, nothing_dead)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        module.constrain(sae)
    return sae


def save(
    run_dir: Path, sae: Any, manifest: Manifest, *, changed: bool = True, encode: Any = None, **tensors: Any
) -> Path:
    """Make a run with the checkpoint of `sae` in it; `tensors` replace its own."""
    d_sae, d_in = sae.W_dec.shape
    training = Training(
        model=manifest.model,
        hook_name=HOOK,
        layer=1,
        d_in=d_in,
        d_sae=d_sae,
        steps=10,
        tokens=100,
        final_loss=1.0,
        seconds=1.0,
        learning_rate=1e-3,
        seed=0,
        settings={"K": K},
    )
    header = Header(
        model=manifest.model,
        hook_name=HOOK,
        layer=1,
        d_in=d_in,
        d_sae=d_sae,
        scale=manifest.scale,
        training=training,
        any_parameter_changed=changed,
    )
    run_dir.mkdir(parents=True)
    decoder = {"W_dec": sae.W_dec, "b_dec": sae.b_dec} | tensors
    checkpoint.save(run_dir / "checkpoint", encode or sae.encode, header=header, **decoder)
    return run_dir


def examination(folder: Path, rows: torch.Tensor, out: Path, evaluator: Evaluator | None = None) -> Examination:
    """The checkpoint in `folder` as an idea's analysis examines it, on activations `[tokens, d_in]`.

    Without an evaluator it is one of a world's, which has no loss.
    """
    loaded = checkpoint.load(folder)
    scored_by: Any = evaluator or SimpleNamespace(model_name="synth2k")
    cfg = bench_config("small", loaded.header.hook_name, loaded.header.d_in, loaded.header.d_sae, CONTEXT)
    ids = evaluator.held_out("dev").ids if evaluator else torch.empty(0)
    out.mkdir(parents=True, exist_ok=True)
    held_out = HeldOut(ids, rows, rows.mean(0), rows)
    return Examination(scored_by, CheckpointSAE(cfg, loaded, rows[:64]), held_out, out)


def start(*command: str | Path, stdin: int | None = None, **environment: str) -> "subprocess.Popen[str]":
    """Start a Python process as a user does."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*command: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a Python process to its end."""
    process = start(*command, **environment)
    stdout, stderr = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def one_line(stderr: str) -> str:
    """Assert that stderr is exactly one line, as after a user's mistake, and return it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert len(lines) == 1, stderr
    return lines[0]
