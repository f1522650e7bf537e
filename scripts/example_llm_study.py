"""The example of a study by a language model: `agent run --proposer llm` on the embedded model, with a server that
answers from the script below.

    python scripts/example_llm_study.py

Driver, client, training and evaluation are real; only the model's answers are scripted, with the mistakes that models
make: an edit that does not apply, an undefined name, a crash, a loss that is not finite, a prediction left out,
thinking that leaks, a score that nobody measured, a claim that the results contradict. The notes, the review page and
the whole conversation as text are copied to docs/example_llm_study.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.llm import transcript
from agent.llm.transcript import Exchange

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from scripted_server import ScriptedServer  # noqa: E402  # pyright: ignore[reportMissingImports]

MODEL = "a script of answers (written beforehand, by no language model)"  # its name in the notes

PLAN = """\
## Reasoning
The hypothesis is that an order from general to specific can be had at little cost in reconstruction. Nested prefixes
are the plainest way to get such an order, so they come first; a penalty on the size of the latents then tells whether
the prefixes or a mere shrinking of the code would do it.

## Plan
1. [from baseline] Nested prefixes of the dictionary: each of three prefixes has to rebuild the activation by itself,
   beside the whole dictionary, so that the first latents may become the most general ones.
2. [from baseline] A logarithmic penalty on the latents: it asks for small latents without an order among them, as a
   control.
"""

REVISED = """\
<think>
Run 1 is through. Shall I vary the prefixes?

## Plan
1. [from run 1] Four prefixes instead of three.

No: without the control nothing can be said of the order.
</think>
**Reasoning**
Run 1 stands in the table: its CE-loss score {{run_1 vs baseline ce_loss_score}}. The control is still to be made.

**Plan**
- From the baseline: **A logarithmic penalty on the latents** - it asks for small latents without an order among them,
  as a control.
"""

NESTED_FINDINGS = """\
## Findings
The prefixes cost nothing. The CE-loss score {{run_1 vs baseline ce_loss_score}}; the explained variance
{{run_1 vs baseline explained_variance_centered}}. The AUC {{run_1 vs baseline probing_auc_5}}.

With three aims at once the last latents see a smaller share of the loss, which may explain what is lost. Whether the
first latents have become the most general ones cannot be told from these figures.
"""

LOG_FINDINGS = """\
## Findings
The penalty leaves the score where the prefixes had it: the CE-loss score {{run_2 vs run_1 ce_loss_score}}, an AUC of
0.83 beside it. At this coefficient it is too weak to be a control for anything.
"""

COMPLETED = """\
## Reasoning
Both runs have a result: the CE-loss score of run 1 {{run_1 vs baseline ce_loss_score}}, that of run 2
{{run_2 vs baseline ce_loss_score}}. Another run of this kind should not tell more about the hypothesis.

## Plan
ALL_COMPLETED
"""

CONCLUSION = """\
## Conclusion
Nothing here speaks for an order from general to specific: the CE-loss score of run 1
{{run_1 vs baseline ce_loss_score}}, that of run 2 {{run_2 vs baseline ce_loss_score}}, and no measure of these runs
looks at what a prefix holds. The hypothesis is about a composition loss, which was not tried.

## Next
The composition loss itself on the prefixes of run 1, and the same without it as an ablation.
"""

NESTED_TEXT = """\
## Reasoning
A prefix that has to rebuild the activation alone should take the directions that explain most, and leave special ones
to the latents behind it. Some reconstruction should be lost, as the same latents now serve three aims; probing may
gain.

## Description
The loss gets a term for each of three nested prefixes of the dictionary (PREFIXES = 128, 384 and 1024 latents): the
mean squared error of what the prefix alone rebuilds, averaged over the prefixes and weighted with
NESTED_COEFFICIENT = 0.5.

## Predictions
l0: same
explained_variance_centered: down
ce_loss_score: down
loss_added: up
alive_fraction: same
probing_auc_5: up

## Edits
"""

LOG_TEXT = """\
## Reasoning
A penalty that grows with the logarithm asks for many small latents to vanish and leaves large ones almost alone. The
activation sets the sparsity, so L0 should stay; what is rebuilt should suffer a little.

## Description
The loss gets a penalty on the latents, LOG_COEFFICIENT = 0.003 times the mean of their logarithm, as a control for the
nested prefixes: it shrinks the code and orders nothing.

## Predictions
l0: same
explained_variance_centered: down
ce_loss_score: same
loss_added: same
alive_fraction: same
probing_auc_5: same

## Edits
"""


def block(search: str, replace: str) -> str:
    return f"<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n\n"


DEAD = "DEAD_EVERY = 50  # steps between updates of the set of dead latents"
MSE = "    mse = residual.pow(2).mean()\n    auxiliary"
RETURN = "    return mse + AUX_COEFFICIENT * auxiliary, latents, mse"
CONSTANTS = block(
    DEAD,
    f"{DEAD}\nPREFIXES = (128, 384, 1024)  # latents of each nested prefix\n"
    "NESTED_COEFFICIENT = 0.5  # weight of the error of the prefixes",
)
NESTED = (
    "    return mse + NESTED_COEFFICIENT * nested_loss(sae, x, latents) + AUX_COEFFICIENT * auxiliary, latents, mse"
)
TRANSPOSED = """\
def nested_loss(sae: SAE, x: Tensor, latents: Tensor) -> Tensor:
    \"\"\"Mean squared error of what each prefix of the latents rebuilds by itself.\"\"\"
    errors = [(x - (latents[:, :end] @ sae.W_dec[:, :end] + sae.b_dec)).pow(2).mean() for end in PREFIXES]
    return torch.stack(errors).mean()


"""
COMPUTE = "def compute_loss(sae: SAE, x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor, Tensor]:"
ERRORS = "    errors = [(x - (latents[:, :end] @ sae.W_dec[{}] + sae.b_dec)).pow(2).mean() for end in PREFIXES]"
LOG_CONSTANT = block(DEAD, f"{DEAD}\nLOG_COEFFICIENT = 0.003  # weight of the penalty on the latents")
LOG = "    return mse + LOG_COEFFICIENT * latents.log().mean() + AUX_COEFFICIENT * auxiliary, latents, mse"

SCRIPT = (
    PLAN,
    # Quotes a line that is not in the file.
    NESTED_TEXT + CONSTANTS + block("    return mse + AUX * auxiliary, latents", NESTED),
    # Applies, but uses an undefined function.
    NESTED_TEXT + CONSTANTS + block(RETURN, NESTED),
    # Defines it, but slices the wrong axis of the decoder.
    NESTED_TEXT + block(COMPUTE, TRANSPOSED + COMPUTE),
    # Fixes that.
    NESTED_TEXT + block(ERRORS.format(":, :end"), ERRORS.format(":end")),
    NESTED_FINDINGS,
    REVISED,
    # Predicts too little; then takes the logarithm of latents that are zero; then fixes that.
    LOG_TEXT.replace("alive_fraction: same\n", "") + LOG_CONSTANT + block(RETURN, LOG),
    LOG_TEXT + LOG_CONSTANT + block(RETURN, LOG),
    LOG_TEXT + block(LOG, LOG.replace("latents.log()", "latents.log1p()")),
    LOG_FINDINGS,
    COMPLETED,
    CONCLUSION,
)  # fmt: skip


def conversation(exchanges: Sequence[Exchange]) -> str:
    """Return questions and answers as text; a part of a question that stood in the one before is left out."""
    parts, before = [], set()
    for exchange in exchanges:
        asked = [f"[{message['role']}]\n{message['content']}" for message in exchange.messages]
        sections = [section for text in asked for section in re.split(r"(?m)^(?=#{1,2} )", text)]
        shown = [
            f"{section.splitlines()[0]} (as before)\n" if section in before and section.count("\n") > 2 else section
            for section in sections
        ]
        before = set(sections)
        parts.append(f"{f' Question {exchange.seq + 1}: {exchange.purpose} ':=^100}\n\n{''.join(shown).rstrip()}")
        parts.append(f"{f' Answer {exchange.seq + 1} ':-^100}\n\n{(exchange.answer or '').rstrip()}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    before = set((ROOT / "notes").glob("*"))
    with ScriptedServer(*SCRIPT) as server:
        command = [sys.executable, "-m", "agent", "run", "--idea", "hierarchical_sae", "--max-runs", "3"]
        options = ["--proposer", "llm", "--llm", MODEL, "--jobs", "1", *sys.argv[1:]]  # as the script answers in turn
        process = subprocess.run([*command, *options], cwd=ROOT, env=os.environ | server.environment)
    if process.returncode:
        sys.exit(process.returncode)
    (notes,) = set((ROOT / "notes").glob("*")) - before
    subprocess.run([sys.executable, "-m", "agent", "review", str(notes)], cwd=ROOT, check=True)
    example = ROOT / "docs" / "example_llm_study"
    for path in example.iterdir():
        if path.name != "README.md":
            path.unlink()
    shutil.copytree(notes, example, dirs_exist_ok=True)
    exchanges = transcript.read(ROOT / "runs" / notes.name / "transcript.jsonl")
    (example / "conversation.txt").write_text(conversation(exchanges))
    print(f"{len(server.requests)} of {len(SCRIPT)} scripted answers were used; notes copied to {example}")


if __name__ == "__main__":
    main()
