"""The Python files in an idea's folder, run from their source. Imports no torch, as the driver reads them too."""

import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def measures_file(analysis: Path) -> Path:
    """Return the file with MEASURES: measures.py beside `analysis`, or in an older idea `analysis` itself."""
    path = analysis.with_name("measures.py")
    return path if path.exists() else analysis


def run_file(path: Path) -> dict[str, Any]:
    """Run an idea's file and return its globals. It can import the idea's measures.py as `measures`, at its top.

    Nothing stays in `sys.modules`, as each idea has a `measures`, and no bytecode is left in the idea's folder.
    """
    table = measures_file(path)
    if table == path:
        return runpy.run_path(str(path), run_name=path.stem)
    module = ModuleType("measures")
    vars(module).update(runpy.run_path(str(table), run_name="measures"))
    sys.modules["measures"] = module
    try:
        return runpy.run_path(str(path), run_name=path.stem)
    finally:
        del sys.modules["measures"]
