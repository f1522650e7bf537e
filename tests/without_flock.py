"""A file system without flock, as Lustre and NFS can be: the C library of a child process says so."""

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = "#include <errno.h>\nint flock(int file, int operation) { errno = REFUSAL; return -1; }\n"


def without_flock(folder: Path, refusal: int = errno.ENOLCK) -> dict[str, str]:
    """Return the environment of a child process whose flock is refused. The test is skipped without a C compiler."""
    if sys.platform != "linux":
        pytest.skip("a library is preloaded in another way")
    if not (compiler := shutil.which("cc")):
        pytest.skip("no C compiler")
    source, library = folder / "no_flock.c", folder / f"no_flock_{refusal}.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", f"-DREFUSAL={refusal}", "-o", library, source], check=True)
    return {"LD_PRELOAD": str(library)}
