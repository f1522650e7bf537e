"""Preflight: reject an experiment.py that is known to fail, without running it and without torch.

This guards against mistakes. It is not a sandbox: code that wants to get around it can.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from ruff import find_ruff_bin

from agent import constants
from agent.ideas import Fixed, render_baseline
from agent.lab.code_hash import without_docstrings
from agent.lab.verdicts import Verdict
from agent.running import process
from agent.study.outcomes import RunFailed

LAB_IMPORTS = (
    "from agent.lab.activations import stream",
    "from agent.lab.run import run",
    "from agent.lab.training import TrainingGuard, constants, finish",
)
STREAM = "data = stream(MODEL, HOOK_NAME, text=TEXT, tokens=TOKENS, batch=BATCH, seed=SEED)"
GUARD = "guard = TrainingGuard(out_dir, sae, data, model=MODEL, hook_name=HOOK_NAME, settings=constants(globals()))"
GUARD_STEP = "guard.step("
FINISH = "finish("
MAIN = 'if __name__ == "__main__": run(main)'
REQUIRED_LINES = (*LAB_IMPORTS, STREAM, GUARD, GUARD_STEP, FINISH, MAIN)

LAB_MODULES = {"agent.lab.activations", "agent.lab.run", "agent.lab.sparse", "agent.lab.training"}
ALLOWED_LAB_NAMES = {
    *("agent.lab.activations.stream", "agent.lab.run.run"),
    *(f"agent.lab.sparse.{name}" for name in ("SparseLatents", "affine", "keep", "kth_largest")),
    *(f"agent.lab.training.{name}" for name in ("TrainingGuard", "constants", "finish")),
}
LIBRARIES = {"torch", "numpy", "einops", "jaxtyping"}
STANDARD_LIBRARY = {  # modules that only compute, and pathlib for the type of out_dir
    *("__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools", "heapq"),
    *("itertools", "math", "operator", "pathlib", "random", "statistics", "string", "time", "types", "typing"),
}
ALLOWED_IMPORTS = ", ".join(
    [*sorted(LIBRARIES), *sorted(ALLOWED_LAB_NAMES), "and of the standard library", *sorted(STANDARD_LIBRARY)]
)
FORBIDDEN_CALLS = {"exec", "eval", "compile", "__import__"}
# A run that goes on from weights that an earlier one has left has trained longer than the baseline.
FILE_CALLS = {
    *("open", "torch.load", "torch.save", "torch.hub.load", "torch.hub.download_url_to_file", "torch.from_file"),
    *(f"{numpy}.{name}" for numpy in ("np", "numpy") for name in ("load", "save", "savez", "fromfile", "memmap")),
}
FILE_METHODS = {"read_text", "read_bytes", "write_text", "write_bytes", "tofile"}

# What fails when it runs, or is certainly a mistake; no rules of style.
RULES = "E9,F5,F6,F7,F82,PLE,B002,B015,B016,B030,B032"
HARMLESS = "F504,F522,F523,F541,F722"  # unused arguments of a format; F722: jaxtyping's shapes in annotations
MAX_FINDINGS = 3
MAX_LINE = 120  # characters of a quoted line


class _Mistake(Exception):
    """The first mistake in an experiment.py; the message is the verdict's evidence."""


def check(source: str, fixed: Fixed, earlier: Mapping[str, str]) -> None:
    """Raise RunFailed with the first reason not to run `source`. `earlier` maps a run's label ("run 2") to its source.

    `preflight`, in this order: it does not parse, has lost a part that belongs to the lab, changes a fixed setting,
    imports what it may not, does not lint. `no_effect`: it is the same code as an earlier run.
    """
    try:
        program = _program(source)
        tree, lines = ast.parse(source), source.splitlines()
        _check_protected(tree, lines)
        _check_fixed(tree, lines, fixed)
        _check_imports(tree, lines)
        _check_lint(tree, source)
    except _Mistake as mistake:
        raise RunFailed(Verdict(name="preflight", evidence=str(mistake))) from None
    for name, other in earlier.items():
        if _same(program, other):
            evidence = f"the same code as {name}: comments, docstrings and formatting change nothing"
            raise RunFailed(Verdict(name="no_effect", evidence=evidence))


@cache
def _program(source: str) -> str:
    """Return the parsed code without docstrings and positions. Raise _Mistake if it does not parse."""
    try:
        return ast.dump(without_docstrings(source))
    except SyntaxError as error:
        raise _Mistake(_at(source.splitlines(), error.lineno or 1, error.msg)) from None
    except ValueError as error:  # a null byte
        raise _Mistake(f"cannot be parsed: {error}") from None
    except (RecursionError, MemoryError):
        raise _Mistake("cannot be parsed: an expression is nested too deeply") from None


def _same(program: str, other: str) -> bool:
    try:
        return program == _program(other)
    except _Mistake:
        return False


def _check_protected(tree: ast.Module, lines: list[str]) -> None:
    """Raise _Mistake if a line that connects the experiment to the lab is missing."""
    imported = {
        (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is None
    }
    for line in LAB_IMPORTS:
        required = ast.parse(line).body[0]
        assert isinstance(required, ast.ImportFrom)
        names = [alias.name for alias in required.names]
        for name in names:
            if (required.module, name) not in imported:
                raise _missing(line, f"{name} of {required.module} is not imported")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names:
                raise _Mistake(_at(lines, node.lineno, f"{node.name} belongs to the lab: use another name"))
    guards = _guards(tree)
    if not _calls(tree, "stream"):
        raise _missing(STREAM, "stream is not called")
    if not guards:
        raise _missing(GUARD, "no TrainingGuard is created with these settings")
    if not any(_steps(loop, guards) for loop in ast.walk(tree) if isinstance(loop, ast.For | ast.While)):
        raise _missing(GUARD_STEP, "it is not called inside the training loop")
    if not _calls(tree, "finish"):
        raise _missing(FINISH, "finish is not called, so no checkpoint is saved")
    if not any(isinstance(node, ast.If) and ast.unparse(node) == ast.unparse(ast.parse(MAIN)) for node in tree.body):
        raise _missing(MAIN, "main is never run")


def _missing(line: str, why: str) -> _Mistake:
    return _Mistake(f"the line `{line}` is missing: {why}; put it back")


def _calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


def _guards(tree: ast.Module) -> set[str]:
    """Return the names of variables that are a TrainingGuard with the constants as its settings."""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(map(_records_constants, _calls(node.value, "TrainingGuard")))
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _records_constants(call: ast.Call) -> bool:
    return any(word.arg == "settings" and ast.unparse(word.value) == "constants(globals())" for word in call.keywords)


def _steps(loop: ast.AST, guards: set[str]) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "step"
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in guards
        for node in ast.walk(loop)
    )


def fixed_constants(fixed: Fixed) -> dict[str, Any]:
    """Return the constants that an experiment.py of a study must not change, besides SEED, which the lab sets.

    TEXT is one of them where the user has given a text; elsewhere the stream refuses another.
    """
    text = {"TEXT": fixed.text} if fixed.text else {}
    lab = {"MODEL": fixed.model, "HOOK_NAME": fixed.hook_name, **text, "TOKENS": fixed.tokens, "D_SAE": fixed.d_sae}
    return lab | fixed.constants


def _check_fixed(tree: ast.Module, lines: list[str], fixed: Fixed) -> None:
    """Raise _Mistake if a constant that makes runs comparable differs from the study's."""
    for name, value in fixed_constants(fixed).items():
        assigned = _assigned(tree, name)
        is_fixed = f"this study fixes it at {value}"
        if assigned is None and name in fixed.constants and name not in constants.assigned(render_baseline(fixed)):
            continue  # a mechanism's, which this experiment may be without
        if assigned is None:
            raise _Mistake(f"{name} is not assigned at the top of the module; {is_fixed}")
        if not constants.same(constants.literal(assigned), value):
            raise _Mistake(f"line {assigned.lineno}: {name} is {ast.unparse(assigned)}; {is_fixed}")
        _, *again = _assignment_lines(tree, name)
        if again:
            raise _Mistake(_at(lines, again[0], f"{name} is assigned again; {is_fixed}"))
    if _assigned(tree, "SEED") is None:
        raise _Mistake(f"SEED is not assigned at the top of the module; put the line `SEED = {fixed.seed}` back")


def _assigned(tree: ast.Module, name: str) -> ast.expr | None:
    """Return the value that a module-level line assigns to a name, or None if none does."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(_is_name(target, name) for target in node.targets):
            return node.value
        if isinstance(node, ast.AnnAssign) and _is_name(node.target, name):
            return node.value
    return None


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _assignment_lines(tree: ast.Module, name: str) -> list[int]:
    """Return the lines that assign to a name, anywhere in the module."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return sorted(node.lineno for node in names if node.id == name)


def _check_imports(tree: ast.Module, lines: list[str]) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in _modules(node):
                if module not in ALLOWED_LAB_NAMES and module.partition(".")[0] not in LIBRARIES | STANDARD_LIBRARY:
                    why = f"an experiment must not import {module}; it may import {ALLOWED_IMPORTS}"
                    raise _Mistake(_at(lines, node.lineno, why))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            raise _Mistake(
                _at(lines, node.lineno, f"an experiment must not call {node.func.id}: write the code itself")
            )
        if isinstance(node, ast.Call) and (call := _file_call(node)):
            why = f"must not call {call}: activations come from stream, tensors to keep go to finish(extra=)"
            raise _Mistake(_at(lines, node.lineno, f"an experiment {why}"))


def _file_call(call: ast.Call) -> str | None:
    """Return the name by which a call reads or writes a file, or None if it does not."""
    name = ast.unparse(call.func)
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name if name in FILE_CALLS else f".{method}" if method in FILE_METHODS else None


def _modules(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the imported modules; for the lab, of which only some names may be imported, each name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = "." * node.level + (node.module or "")
    return [f"{module}.{alias.name}" for alias in node.names] if module in LAB_MODULES else [module]


def _check_lint(tree: ast.Module, source: str) -> None:
    # The program itself: a Python would run the sitecustomize.py of whatever folder is on its path.
    command = [find_ruff_bin(), "check", "--isolated", "--no-cache", "--output-format", "json"]
    target = f"py3{sys.version_info.minor}"
    options = ["--target-version", target, "--ignore-noqa", "--select", RULES, "--ignore", HARMLESS, "-"]
    env = process.child_environment({})
    result = subprocess.run([*command, *options], input=source, env=env, capture_output=True, encoding="utf-8")
    if not result.stdout:
        raise RuntimeError(f"ruff failed: {result.stderr}")
    shapes, lines = _shape_positions(tree), source.splitlines()
    mistakes = []
    for finding in json.loads(result.stdout):
        row, column = finding["location"]["row"], finding["location"]["column"]
        if (row, column) not in shapes:
            mistakes.append(_at(lines, row, finding["message"].splitlines()[0]))
    if mistakes:
        more = [f"and {len(mistakes) - MAX_FINDINGS} more"] if len(mistakes) > MAX_FINDINGS else []
        raise _Mistake("; ".join([*mistakes[:MAX_FINDINGS], *more]))


def _shape_positions(tree: ast.Module) -> set[tuple[int, int]]:
    """Return each (line, column) inside a string in an annotation, where ruff takes jaxtyping's "batch" for a type."""
    annotations = [getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns")]
    return {
        (node.lineno, column + 1)
        for annotation in annotations
        if annotation is not None
        for node in ast.walk(annotation)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for column in range(node.col_offset, node.end_col_offset or 0)
    }


def _at(lines: list[str], number: int, message: str) -> str:
    """Return a message in one line, with the line number and the line it is about."""
    line = " ".join(lines[number - 1].split()) if number <= len(lines) else "end of file"
    line = line if len(line) <= MAX_LINE else line[:MAX_LINE] + "..."
    return f"line {number}: {line}: {message}"
