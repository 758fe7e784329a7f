"""Installing in fresh virtual environments, each way that README.md names. Slow: `make test-install`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["setuptools>=77", "ninja", "pybind11"]
CALL = """
import torch, pytorch_ext
from pytorch_ext import _load
import pytorch_ext.kernels
x, w = torch.randn(2, 4, 9, 8), torch.randn(4, 1, 3, 3)
for x in (x, x.contiguous(memory_format=torch.channels_last)):
    torch.testing.assert_close(pytorch_ext.depthwise_conv2d(x, w), torch.nn.functional.conv2d(x, w, groups=4))
print(_load.FOLDER)
print(_load.libraries.get("cpu"))
"""


class Environment:
    """A virtual environment of its own with this process's torch version."""

    def __init__(self, folder: Path, *packages: str):
        self.folder = folder
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.pip("install", f"torch=={torch.__version__.split('+')[0]}", "numpy", *packages)

    def run(self, *arguments, check=True, cwd=None, **environment) -> str:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LIGHTKERNELS_", "PYTHON", "VIRTUAL_ENV"))}
        result = subprocess.run(
            [self.bin / "python", *map(str, arguments)],
            cwd=cwd or self.folder,
            env={**clean, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert (result.returncode == 0) == check, result.stdout
        return result.stdout

    def pip(self, *arguments, **options) -> str:
        return self.run("-m", "pip", "--disable-pip-version-check", *arguments, **options)

    def call(self) -> tuple[Path, str]:
        """Runs an op; where the package lies, and the CPU library that is loaded ("None" for none)."""
        folder, library = self.run("-c", CALL).splitlines()[-2:]
        assert "depthwise_conv2d" in self.run("-m", "pytorch_ext", "doctor")
        return Path(folder), library


@pytest.fixture
def tree(tmp_path) -> Path:
    """The repository as a clone would have it: nothing that git ignores."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


def test_sdist_to_wheel_to_an_environment_without_tools(tree, tmp_path):
    builder = Environment(tmp_path / "builder", *TOOLS)
    make = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    sdist = tmp_path / builder.run("-c", make, tmp_path, cwd=tree).splitlines()[-1]
    builder.pip("wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, sdist)
    (wheel,) = tmp_path.glob("*.whl")
    user = Environment(tmp_path / "user")
    user.pip("install", "--no-deps", wheel)
    folder, library = user.call()
    assert folder.is_relative_to(tmp_path / "user")
    assert library.startswith(str(folder))
    assert not (folder.parent / "kernels").exists()
    assert (folder / "kernels" / "__init__.py").exists()
    assert (folder / "py.typed").exists()
    assert (folder / "models" / "imagenet_classes.txt").exists()
    for binary in folder.glob("*.so"):
        assert str(tmp_path).encode() not in binary.read_bytes(), f"{binary.name} names the build machine's folders"


def test_pip_install(tree, tmp_path):
    environment = Environment(tmp_path / "environment", *TOOLS)
    environment.pip("install", "--no-build-isolation", "--no-deps", tree, LIGHTKERNELS_CUDA="0", MAX_JOBS="1")
    folder, library = environment.call()
    assert folder.is_relative_to(tmp_path / "environment")
    assert library != "None"


def test_pip_install_editable_and_again_without_libraries(tree, tmp_path):
    environment = Environment(tmp_path / "environment", *TOOLS)
    environment.pip("install", "--no-build-isolation", "--no-deps", "-e", tree, LIGHTKERNELS_CUDA="0")
    folder, library = environment.call()
    assert folder == tree / "pytorch_ext"
    assert library.startswith(str(folder))
    again = environment.run("setup.py", "build_ext", "--inplace", cwd=tree, LIGHTKERNELS_CUDA="0")
    assert "no work to do" in again
    environment.pip("install", "--no-build-isolation", "--no-deps", "-e", tree, LIGHTKERNELS_CPU="0")
    assert environment.call() == (folder, "None")  # the libraries of the first build are gone


def test_pure_python_needs_no_compiler_and_no_torch_to_build(tree, tmp_path):
    environment = Environment(tmp_path / "environment")
    path = str(environment.bin)
    environment.pip("install", "--no-deps", tree, LIGHTKERNELS_CPU="0", PATH=path)
    assert environment.call()[1] == "None"


def test_what_is_missing_is_named_with_the_switch_that_does_without_it(tree, tmp_path):
    environment = Environment(tmp_path / "environment", *TOOLS)
    isolated = environment.pip("install", "--no-deps", tree, check=False)
    assert "--no-build-isolation" in isolated
    path = str(environment.bin)
    without = environment.pip("install", "--no-build-isolation", "--no-deps", tree, check=False, PATH=path)
    assert "no C++ compiler" in without
    assert "LIGHTKERNELS_CPU=0" in without
    forced = {"PATH": f"{path}:/usr/bin:/bin", "CUDA_HOME": "", "LIGHTKERNELS_CUDA": "1"}
    no_nvcc = environment.pip("install", "--no-build-isolation", "--no-deps", tree, check=False, **forced)
    assert "LIGHTKERNELS_CUDA=1, but " in no_nvcc
