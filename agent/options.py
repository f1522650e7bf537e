"""The options of `agent run`, and those that other verbs share with it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agent.lab.architectures import BaselineName

Wish = Literal["required", "auto", "off"]
SANDBOX = """Confine experiments: required, auto (as well as this machine can) or off."""

# The study's settings
IdeaOption = Annotated[
    str, typer.Option("--idea", help="An idea: a name of `agent ideas`, or a folder of yours (./my_idea).")
]
Model = Annotated[
    str | None, typer.Option(help="tiny-lm, a synthetic world (synth2k), a directory (./...), or a hub model.")
]
Hook = Annotated[str | None, typer.Option(help="TransformerLens hook to train on, e.g. blocks.1.hook_resid_post.")]
Layer = Annotated[int | None, typer.Option(min=0, help="Train on the residual stream after this layer, from 0.")]
DSae = Annotated[int | None, typer.Option("--d-sae", metavar="INTEGER", help="Width of the SAEs: their latents.")]
Baseline = Annotated[
    BaselineName | None,
    typer.Option(help="The SAE that runs are compared with, by default the idea's own, mostly batchtopk."),
]
K = Annotated[float | None, typer.Option("--k", help="Latents of the baseline that are active per token.")]
L1Coefficient = Annotated[
    float | None, typer.Option("--l1-coefficient", help="In place of --k, for the baselines relu and gated.")
]
Tokens = Annotated[int | None, typer.Option(help="Training tokens of each run.")]
Batch = Annotated[int | None, typer.Option(help="Tokens of a training step.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate of every run.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of the runs; baselines have the ones after it too.")]
Context = Annotated[int | None, typer.Option(help="Tokens in a window of text, by default 128.")]
SmallestEffect = Annotated[
    float | None, typer.Option(help="Smallest difference worth having, in the primary metric; by default the idea's.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Fix a constant of experiment.py; may be given again."),
]
Text = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Text to train and evaluate on: a .txt, .jsonl or .parquet file, a folder of them, or a hub dataset.",
    ),
]
Evals = Annotated[
    str | None, typer.Option(help="Evaluations of each run: quick, standard, full, or names with commas between.")
]
EvaluationData = Annotated[
    Literal["local", "sae-bench"],
    typer.Option(help="What runs are scored on; sae-bench: its own datasets, where the hub has them."),
]
Dtype = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="The language model's, by default bfloat16 on a GPU and float32 on a CPU."),
]
Stream = Annotated[
    bool, typer.Option("--stream", help="Make activations as they are read, storing none; beyond 20M tokens always.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show every setting with the reason for its value, and start nothing.")
]

# Its comparisons
NoTune = Annotated[
    bool, typer.Option("--no-tune", help="Leave the baseline's learning rate at the model's default, untried.")
]
BaselineSeeds = Annotated[
    int | None, typer.Option(min=1, help="Seeds of the baseline, 5 by default; with 1 no run is judged.")
]
Ks = Annotated[
    str | None,
    typer.Option(metavar="K,K,...", help="Train a confirmed winner and the baseline at these K too, for a front."),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="SAE",
        help="An SAE trained elsewhere, shown beside the baseline: a directory, or a SAELens release/id; repeatable.",
    ),
]

# Its limits
MaxRuns = Annotated[int, typer.Option(min=1, help="Number of runs; the baseline is not counted.")]
MaxHours = Annotated[float | None, typer.Option(help="Hours of work; no run starts that would exceed them.")]
RunTimeout = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Seconds for a training, its first steps, an evaluation; by default 5 times run 0's, at least 300.",
    ),
]

# Who proposes
Proposer = Annotated[str | None, typer.Option(help="template (the idea's own plan) or llm.")]
LLM = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Language model at OPENAI_BASE_URL; needs OPENAI_API_KEY.")
]
LLMCommand = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND", help='A program that answers in place of a server, from its standard input: "claude -p".'
    ),
]
LLMAnswer = Annotated[
    int | None, typer.Option(min=256, help="Longest answer of the language model, tokens; 16,384 by default.")
]
LLMStream = Annotated[
    bool, typer.Option("--llm-stream", help="Ask for answers piece by piece, where a proxy waits only so long.")
]
LLMWindow = Annotated[int | None, typer.Option(min=1, help="Context window of the language model, tokens.")]
MaxLLMTokens = Annotated[int | None, typer.Option(min=1, help="Total token budget of the study, prompts plus answers.")]
MaxCost = Annotated[float | None, typer.Option(min=0, help="Total budget for the model, dollars.")]
PriceIn = Annotated[float | None, typer.Option(min=0, help="Dollars per million prompt tokens.")]
PriceOut = Annotated[float | None, typer.Option(min=0, help="Dollars per million answer tokens.")]
ReplayFile = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Replay the recorded answers of this transcript.jsonl; no network."),
]
Approve = Annotated[bool, typer.Option("--approve", help="Show each change and ask before it runs.")]

# Where it runs
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:N or mps (untried); by default the GPU if there is one.")
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Trainings at once; by default one a GPU, or as many as the cores have room for."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of each job, by default 1 on a CPU; figures compare at the same number alone."),
]
ExecutorName = Annotated[
    Literal["local", "slurm"], typer.Option("--executor", help="Where jobs run: here, or on a cluster.")
]
SlurmOptions = Annotated[
    str,
    typer.Option("--slurm", metavar="OPTIONS", help='Long options of sbatch: "partition=gpu gpus=1 time=2:00:00".'),
]
CancelJobs = Annotated[
    bool, typer.Option("--cancel-jobs", help="Ctrl-C ends the jobs on the cluster too; else they go on, and it asks.")
]
Sandbox = Annotated[Wish, typer.Option(help=SANDBOX)]
Track = Annotated[
    Literal["wandb"] | None,
    typer.Option("--track", help="Log runs that have ended with wandb, offline without a key."),
]
