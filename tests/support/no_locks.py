"""A file system without locks, as processes see it: a library that makes flock fail."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = """
#include <errno.h>
int flock(int descriptor, int operation) { errno = ENOLCK; return -1; }
"""


def no_locks(directory: Path) -> str:
    """The value of LD_PRELOAD with which flock fails, as on NFS without lockd; skips the test without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    (directory / "flock.c").write_text(SOURCE)
    library = directory / "flock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, directory / "flock.c"], check=True)
    return str(library)
