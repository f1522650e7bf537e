"""What an experiment.py may use of the lab, read from the lab's source, which is not imported here: it needs torch."""

import ast
import inspect
import re
from functools import cache

from agent import ROOT

_LAB = ROOT / "agent" / "lab"
_USED = {  # module -> what an experiment uses of it
    "activations.py": ("stream",),
    "training.py": ("TrainingGuard", "TrainingGuard.resumes", "TrainingGuard.step", "finish", "constants"),
    "sparse.py": ("affine", "kth_largest", "keep", "SparseLatents"),
}


@cache
def signatures() -> list[tuple[str, str]]:
    """Return signature and docstring of all that an experiment may import from the lab."""
    found = []
    for module, names in _USED.items():
        definitions = _definitions(ast.parse((_LAB / module).read_text()))
        found += [
            (_signature(name, definitions), _docstring(definitions[name])) for name in names if name in definitions
        ]
    return found


@cache
def operators() -> str:
    """Return the names of the operators that the graph of an exported encoder may use, as torch calls them."""
    tree = ast.parse((_LAB / "checkpoint" / "graph.py").read_text())
    listed = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_ATEN"
    )
    names = {name.partition(".")[0].removeprefix("_").removesuffix("_ex") for name in ast.literal_eval(listed).split()}
    return ", ".join(sorted(names))


def _definitions(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.ClassDef]:
    """Return the functions and classes of a module, and the methods by `Class.method`."""
    top = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    methods = {
        f"{name}.{method.name}": method
        for name, node in top.items()
        if isinstance(node, ast.ClassDef)
        for method in node.body
        if isinstance(method, ast.FunctionDef)
    }
    return top | methods


def _signature(name: str, definitions: dict[str, ast.FunctionDef | ast.ClassDef]) -> str:
    node = definitions[name]
    function = definitions.get(f"{name}.__init__") if isinstance(node, ast.ClassDef) else node
    if not isinstance(function, ast.FunctionDef):
        return name
    arguments = re.sub(r"^self(?:, )?", "", ast.unparse(function.args))
    returns = f" -> {ast.unparse(function.returns)}" if function.returns and function.name != "__init__" else ""
    return f"{name.replace('TrainingGuard.', 'guard.')}({arguments}){returns}"


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    return inspect.cleandoc(ast.get_docstring(node) or "")
