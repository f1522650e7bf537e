"""How child processes start: nothing that was planted in the checkout is run."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from standin import Checkout, make_checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


def run(checkout: Checkout, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": os.environ["PATH"]} | environment
    return subprocess.run([sys.executable, *arguments], cwd=checkout.root, env=env, capture_output=True, text=True)


def start(checkout: Checkout, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run(checkout, "-s", "-P", str(checkout.root / "agent/lab/start.py"), *arguments)


def test_what_was_planted_in_the_checkout_is_not_run(checkout: Checkout):
    planted = checkout.root / "sitecustomize.py"
    planted.write_text("print('planted')")
    for name in ("json.py", "no_such_module.py"):
        (checkout.root / name).write_text("print('planted')")
    bytecode = checkout.root / f"agent/lab/__pycache__/errors.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(planted), str(bytecode), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    (checkout.root / "script.py").write_text(
        "import json, sys, agent.lab.errors\nprint(sys.argv, __name__)\nimport no_such_module"
    )
    plain = run(checkout, "-P", "-c", "import agent.lab.errors", PYTHONPATH=str(checkout.root))
    assert plain.stdout == "planted\nplanted\n"  # by sitecustomize, and from the bytecode
    started = start(checkout, "script.py", "--out_dir=run_0")
    assert started.stdout == "['script.py', '--out_dir=run_0'] __main__\n"
    assert started.stderr.splitlines() == [
        "Traceback (most recent call last):",
        '  File "script.py", line 3, in <module>',
        "    import no_such_module",
        "ModuleNotFoundError: No module named 'no_such_module'",
    ]


def test_a_module_runs_with_the_agent_of_its_own_checkout(checkout: Checkout):
    (checkout.root / "agent/lab/where.py").write_text(
        "import agent, sys\nprint(agent.__file__, __name__, sys.argv[1:])"
    )
    started = start(checkout, "agent.lab.where", "one", "two")
    assert started.stdout == f"{checkout.root / 'agent/__init__.py'} __main__ ['one', 'two']\n"
