"""Preflight: the shipped experiments pass, and every known mistake is reported in one line."""

import time
from pathlib import Path

import pytest

from agent import ideas
from agent.ideas import Fixed
from agent.running import preflight
from agent.study.outcomes import RunFailed

FIXED = Fixed()
BASELINE = ideas.render_baseline(FIXED)
SHIPPED = {"the baseline": BASELINE} | {
    f"{name}, {step.name}": ideas.render_step(ideas.load(name), step, FIXED)
    for name in ideas.idea_names()
    for step in ideas.load(name).plan
}


def edited(old: str, new: str) -> str:
    assert BASELINE.count(old) == 1, f"the baseline has {old!r} {BASELINE.count(old)} times"
    return BASELINE.replace(old, new)


def evidence_of(source: str) -> str:
    """Return the evidence of the preflight that this source fails."""
    with pytest.raises(RunFailed) as failure:
        preflight.check(source, FIXED, {})
    verdict = failure.value.verdict
    assert verdict.name == "preflight"
    assert "\n" not in verdict.evidence
    return verdict.evidence


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_experiments_pass(name: str):
    others = {other: source for other, source in SHIPPED.items() if other != name}
    preflight.check(SHIPPED[name], FIXED, others)


CALL_OF_STREAM = "data = stream(MODEL, HOOK_NAME, text=TEXT, tokens=TOKENS, batch=BATCH, seed=SEED)"
MAIN = 'if __name__ == "__main__":\n    run(main)'
STEP = "        guard.step(\n"
MISTAKES = {
    "does not parse": ("    loss.backward()", "    loss.backward(", "line 117: loss.backward(: '(' was never closed"),
    "wrong indentation": ("    def decode(", "   def decode(", "unindent does not match"),
    "a null byte": ("K = 16", "K = 16\0", "null bytes"),
    "stream not imported": (
        "from agent.lab.activations import stream\n",
        "",
        "`from agent.lab.activations import stream` is",
    ),
    "run not imported": ("from agent.lab.run import run\n", "", "the line `from agent.lab.run import run` is missing"),
    "finish not imported": (
        ", constants, finish",
        ", constants",
        "import TrainingGuard, constants, finish` is missing: finish",
    ),
    "finish imported under another name": (
        "constants, finish",
        "constants, finish as done",
        "finish of agent.lab.train",
    ),
    "a finish of its own": (
        "def learning_rate(",
        "def finish(",
        "def finish(progress: float) -> float:: finish belongs to the lab",
    ),
    "no stream": (CALL_OF_STREAM, "data = []", f"the line `{CALL_OF_STREAM}` is missing"),
    "no guard": (
        "    guard = TrainingGuard(",
        "    other = dict(",
        "the line `guard = TrainingGuard(out_dir, sae, data",
    ),
    "constants not recorded": (
        "settings=constants(globals())",
        "settings={}",
        "settings=constants(globals()))` is missing",
    ),
    "no step of the guard": (STEP, "        print(\n", "the line `guard.step(` is missing"),
    "no loop": ("    for step, x in enumerate(data, guard.steps):", "    if step := 1:", "inside the training loop"),
    "no finish": ("    finish(\n", "    print(\n", "the line `finish(` is missing"),
    "no main": (MAIN, "", 'the line `if __name__ == "__main__": run(main)` is missing'),
    "another main": ("    run(main)", "    main()", "run(main)` is missing"),
    "another model": ('MODEL = "tiny-lm"', 'MODEL = "gpt2"', "MODEL is 'gpt2'; this study fixes it at tiny-lm"),
    "another width": ("D_SAE = 1024", "D_SAE = 512", "line 25: D_SAE is 512; this study fixes it at 1024"),
    "more tokens": (
        "TOKENS = 1_500_000",
        "TOKENS = 2 * 1_500_000",
        "TOKENS is 2 * 1500000; this study fixes it at 1500000",
    ),
    "no hook": ("HOOK_NAME = ", "HOOK = ", "HOOK_NAME is not assigned at the top of the module"),
    "tokens set again": (
        "    torch.manual_seed(SEED)",
        "    global TOKENS\n    TOKENS = 9",
        "TOKENS = 9: TOKENS is assigned",
    ),
    "no seed": ("SEED = 0", "seed = 0", "put the line `SEED = 0` back"),
    "os": (
        "import torch\n",
        "import os\n\nimport torch\n",
        "import os: an experiment must not import os; it may import",
    ),
    "inside a function": ("    torch.manual_seed(SEED)", "    import subprocess", "must not import subprocess"),
    "more of the lab": (
        "import stream\n",
        "import stream\nfrom agent.lab import cache\n",
        "must not import agent.lab;",
    ),
    "the shards": (
        "import stream\n",
        "import stream\nfrom agent.lab.activations import Stream\n",
        "must not import agent.lab.activations.Stream;",
    ),
    "a whole module of the lab": (
        "import stream\n",
        "import stream\nimport agent.lab.training\n",
        "must not import agent.lab.training;",
    ),
    "the driver": ("import stream\n", "import stream\nimport agent.ledger\n", "must not import agent.ledger;"),
    "a sibling": ("import stream\n", "import stream\nfrom . import other\n", "must not import .;"),
    "text that runs": ("    torch.manual_seed(SEED)", '    eval("1")', "an experiment must not call eval"),
    "weights of an earlier run": (
        "    torch.manual_seed(SEED)",
        '    torch.manual_seed(SEED)\n    state = torch.load("/tmp/weights.pt")',
        "an experiment must not call torch.load: activations come from stream",
    ),
    "weights for a later run": (
        "    torch.manual_seed(SEED)",
        '    torch.manual_seed(SEED)\n    out_dir.with_name("kept").write_bytes(b"")',
        "must not call .write_bytes: activations come from stream, tensors to keep go to finish(extra=)",
    ),
    "an opened file": ("    torch.manual_seed(SEED)", '    open("text")', "must not call open:"),
    "undefined name": (
        "mse + AUX_COEFFICIENT *",
        "mse + AUX_COEF *",
        "line 90: return mse + AUX_COEF * auxiliary, latents",
    ),
    "undefined in an f-string": ("    torch.manual_seed(SEED)", '    print(f"{sede}")', "Undefined name `sede`"),
    "return at the top": ("K = 16", "return 16", "`return` statement outside of a function"),
    "repeated argument": ("lr=LEARNING_RATE,", "lr=1e-3, lr=LEARNING_RATE,", "lr"),
    "literals compared by is": ("if len(dead) == 0:", "if len(dead) is 0:", "Use `==` to compare"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported(mistake: str):
    old, new, evidence = MISTAKES[mistake]
    assert evidence in evidence_of(edited(old, new))


def test_only_the_first_three_lint_errors_are_reported():
    evidence = evidence_of(edited("    return LEARNING_RATE *", "    return a * b * c * d * e *"))
    assert [f"`{name}`" in evidence for name in "abcde"] == [True, True, True, False, False]
    assert evidence.endswith("and 2 more")


def test_an_expression_nested_too_deeply_is_reported():
    assert "cannot be parsed" in evidence_of(BASELINE + "x = " + "-" * 100_000 + "1\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("            loss=loss,\n", "            loss=mse,\n"),
        ("        threshold=sae.threshold.expand(D_SAE),\n", '        groups={"all": (0, D_SAE)},\n'),
        ("    for step, x in enumerate(data, guard.steps):", "    step = -1\n    for x in data:\n        step += 1"),
        ("D_SAE = 1024", "D_SAE: int = 1_024"),
        (
            "import torch\n",
            "import math\nfrom dataclasses import dataclass\n\nimport torch\nimport torch.optim.lr_scheduler\n",
        ),
        ("        loss.backward()", "        sae.eval()\n        unused = 3\n        loss.backward()"),
        ("    sae.W_dec.copy_(", '    r"""No docstring."""\n    "\\|"\n    sae.W_dec.copy_('),
    ],
)
def test_a_valid_edit_of_the_training_passes(old: str, new: str):
    preflight.check(edited(old, new), FIXED, {"run 0": BASELINE})


def test_jaxtyping_shapes_are_not_undefined_names():
    shaped = edited(
        "def learning_rate(",
        'def shaped(x: Float[Tensor, "rows"]) -> Float[Tensor, "rows d_in"]: ...\ndef learning_rate(',
    )
    preflight.check(shaped.replace("import torch\n", "import torch\nfrom jaxtyping import Float\n", 1), FIXED, {})


def test_code_that_already_ran_has_no_effect():
    commented = edited("K = 16  #", "K = (16)  # as before:").replace(
        '"""Return the learning rate, which rises', '"""Return the learning rate, which goes up'
    )
    with pytest.raises(RunFailed) as failure:
        preflight.check(commented, FIXED, {"run 1": "def broken(", "run 2, attempt 1": BASELINE})
    verdict = failure.value.verdict
    assert verdict.name == "no_effect"
    assert verdict.evidence.startswith("the same code as run 2, attempt 1: ")
    preflight.check(edited("K = 16", "K = 17"), FIXED, {"run 2": BASELINE})


def test_the_required_lines_are_in_the_baseline():
    for line in (*preflight.LAB_IMPORTS, preflight.STREAM, preflight.GUARD, preflight.GUARD_STEP, preflight.FINISH):
        assert line in BASELINE
    assert "\n".join(preflight.MAIN.split(": ")) in BASELINE.replace(":\n    ", "\n")


def test_preflight_takes_less_than_0_3_seconds():
    start = time.monotonic()
    preflight.check(edited("K = 16", "K = 17"), FIXED, SHIPPED)
    assert time.monotonic() - start < 0.3


def test_the_linter_runs_no_code_of_the_path_and_gets_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stolen = tmp_path / "stolen"
    (tmp_path / "sitecustomize.py").write_text(f"import os; open({str(stolen)!r}, 'w').write(str(os.environ))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-driver")
    preflight.check(BASELINE, FIXED, {})
    assert not stolen.exists()
