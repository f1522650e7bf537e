"""python -s -P start.py TARGET [ARGUMENT ...]: run a module, or a script (*.py), with the `agent` of this checkout.

The checkout is not on the Python path, so nothing that was planted beside `agent` is imported by its name; and `agent`
is read from its source, so no bytecode is run that was planted in it.
"""

import importlib.util
import runpy
import sys
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, TracebackType

PACKAGE = Path(__file__).resolve().parent.parent


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of the lab in a process of its own."""
    return [sys.executable, "-s", "-P", __file__, module, *arguments]


def _finder(folder: str) -> FileFinder:
    if not Path(folder).is_relative_to(PACKAGE):
        raise ImportError(folder)
    return FileFinder(folder, (_FromSource, [".py"]))


def _load_package() -> None:
    sys.path_hooks.insert(0, _finder)
    loader = _FromSource("agent", str(PACKAGE / "__init__.py"))
    spec = importlib.util.spec_from_loader("agent", loader, is_package=True)
    assert spec
    sys.modules["agent"] = package = importlib.util.module_from_spec(spec)
    loader.exec_module(package)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback from the target on, as if it had been started itself."""
    while trace and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    _load_package()
    sys.excepthook = _print_traceback
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
