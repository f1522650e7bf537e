"""A hash of what code does: comments, docstrings and error messages change no figure and are left out. No torch."""

import ast
import hashlib
import warnings
from pathlib import Path

# Messages, progress, checks before the work, the client of a judge: no figure depends on them.
WITHOUT_FIGURES = {
    "chat.py",
    "chat_answers.py",
    "chat_connection.py",
    "chat_errors.py",
    "chat_reply.py",
    "code_hash.py",
    "errors.py",
    "evaluation/doctor.py",
    "evaluation/requirements.py",
    "exits.py",
    "lock_files.py",
    "locks.py",
    "progress.py",
    "visible.py",
}


def without_docstrings(source: str) -> ast.Module:
    """Parse source code and drop its docstrings. Raise SyntaxError or ValueError where it cannot be parsed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a LaTeX backslash in a docstring is no mistake
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = node.body[ast.get_docstring(node, clean=False) is not None :]
    return tree


def lab_hash(folder: Path = Path(__file__).parent) -> str:
    """Return 16 hex digits that change whenever the lab's code may give other figures.

    Left out are the files in WITHOUT_FIGURES, docstrings, comments, and the messages of exceptions.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if name not in WITHOUT_FIGURES:
            code = ast.dump(_EmptyMessages().visit(without_docstrings(path.read_text(encoding="utf-8"))))
            digest.update(f"{name} {hashlib.sha256(code.encode()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


class _EmptyMessages(ast.NodeTransformer):
    """A transformer that empties the messages of raised exceptions."""

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        if isinstance(node.exc, ast.Call):
            text = (ast.Constant, ast.JoinedStr)
            node.exc.args = [ast.Constant("") if isinstance(arg, text) else arg for arg in node.exc.args]
        return self.generic_visit(node)
