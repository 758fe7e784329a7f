"""Where nvcc is, for the tests that compile CUDA."""

import os
import shutil


def path() -> str | None:
    """As setup.py looks for it."""
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=os.path.join(home, "bin"))) or shutil.which("nvcc")


MISSING = "nvcc was found neither in CUDA_HOME nor on PATH"
