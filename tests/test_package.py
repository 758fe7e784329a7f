"""Importing, choosing an implementation, saying what is live: with and without compiled libraries and Triton."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pytorch_ext
from pytorch_ext import _load, _op

ROOT = Path(__file__).resolve().parent.parent
CALL = """
import torch, pytorch_ext
x, w = torch.randn(1, 4, 8, 8), torch.randn(4, 1, 3, 3)
torch.testing.assert_close(pytorch_ext.depthwise_conv2d(x, w), torch.nn.functional.conv2d(x, w, groups=4))
"""


def run(*arguments, cwd, **environment) -> subprocess.CompletedProcess:
    """Python in a process of its own, with nothing of this one's switches."""
    ours = {k: v for k, v in os.environ.items() if k not in ("ATEN_CPU_CAPABILITY", _load.DISABLE, "PYTHONPATH")}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env={**ours, **environment}, capture_output=True, text=True)


def value_of(expression: str, cwd, before: str = "", **environment):
    """What an expression is (as JSON) after importing the package there."""
    code = f"import json\n{before}\nfrom pytorch_ext import _load, _op\nprint(json.dumps({expression}))"
    result = run("-c", code, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder with a copy of the package that was never compiled."""
    shutil.copytree(
        _load.FOLDER, tmp_path / "pytorch_ext", ignore=shutil.ignore_patterns("*.so", "*.so.new", "__pycache__")
    )
    return tmp_path


# --- importing --------------------------------------------------------------------------------------------------------
def test_version_stands_once():
    assert importlib.metadata.version("lightkernels") == pytorch_ext.__version__


def test_package_is_typed():
    assert (_load.FOLDER / "py.typed").exists()


def test_imports_and_answers_without_compiled_libraries(bare):
    result = run("-c", CALL, cwd=bare)
    assert result.returncode == 0, result.stderr
    assert value_of("len(_load.libraries)", bare) == 0
    reason = value_of("_op.unavailable('cpp')", bare)
    assert reason.startswith("not built: none of _cpu_")
    assert str(bare) in reason


def test_imports_and_answers_with_libraries_disabled(tmp_path):
    result = run("-c", CALL, cwd=tmp_path, LIGHTKERNELS_DISABLE="cpu,cuda")
    assert result.returncode == 0, result.stderr
    reasons = value_of("_load.reasons", tmp_path, LIGHTKERNELS_DISABLE="cpu, cuda")
    assert reasons == {"cpu": "disabled by LIGHTKERNELS_DISABLE", "cuda": "disabled by LIGHTKERNELS_DISABLE"}


def test_a_misspelt_disable_is_refused(tmp_path):
    result = run("-c", "import pytorch_ext", cwd=tmp_path, LIGHTKERNELS_DISABLE="cpus")
    assert result.returncode != 0
    assert "LIGHTKERNELS_DISABLE may name cpu and cuda, got cpus" in result.stderr


def test_imports_and_answers_without_triton(tmp_path):
    block = "import sys; sys.modules['triton'] = None\n"
    result = run("-c", block + CALL, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert value_of("_op.unavailable('triton')", tmp_path, before=block) == "triton is not installed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("implementation", ["cuda", "triton"])
def test_nothing_is_forced_that_a_gpu_must_run(implementation, tmp_path):
    result = run("-c", f"import pytorch_ext\nwith pytorch_ext.use({implementation!r}): pass", cwd=tmp_path)
    assert result.returncode
    assert f"implementation {implementation!r} is not available" in result.stderr


def test_import_leaves_triton_alone(tmp_path):
    assert not value_of("'triton' in __import__('sys').modules", tmp_path)


@pytest.mark.parametrize("first", ["pytorch_ext", "torch.utils.flop_counter"])
@pytest.mark.parametrize("triton", ["", "sys.modules['triton'] = None; "], ids=["as it is", "no triton"])
def test_flop_counter_knows_our_ops_whichever_is_imported_first(first, triton, tmp_path):
    second = {"pytorch_ext", "torch.utils.flop_counter"} - {first}
    code = f"""
import sys; {triton}import {first}, {second.pop()}, pytorch_ext._op
ops = [getattr(torch.ops.pytorch_ext, name) for name in pytorch_ext._op.OPS]
assert ops and all(op in torch.utils.flop_counter.flop_registry for op in ops)
assert not any("flop" in type(finder).__name__.lower() for finder in sys.meta_path)
"""
    result = run("-c", "import torch\n" + code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", ["_cpu_base.so", "_cuda.so"])
def test_a_corrupt_library_is_an_import_error_that_names_it(bare, name):
    (bare / "pytorch_ext" / name).write_bytes(b"not a shared library")
    result = run("-c", "import pytorch_ext", cwd=bare)
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: pytorch_ext:")
    assert f"{name} exists but cannot be loaded" in last
    assert torch.__version__ in last
    device = "cuda" if "cuda" in name else "cpu"
    assert value_of("_load.reasons", bare, LIGHTKERNELS_DISABLE=device)[device] == "disabled by LIGHTKERNELS_DISABLE"


@pytest.mark.parametrize(("capability", "isa"), [("default", "base"), ("avx2", "avx2")])
def test_aten_cpu_capability_steers_the_library(tmp_path, capability, isa):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("one instruction set on this architecture")
    if isa not in _load.instruction_sets():
        pytest.skip(f"this CPU has no {isa}")
    if not (_load.FOLDER / f"_cpu_{isa}.so").exists():
        pytest.skip(f"_cpu_{isa}.so is not built")
    assert value_of("_load.libraries['cpu'].name", tmp_path, ATEN_CPU_CAPABILITY=capability) == f"_cpu_{isa}.so"
    result = run("-c", CALL, cwd=tmp_path, ATEN_CPU_CAPABILITY=capability)
    assert result.returncode == 0, result.stderr


# --- use --------------------------------------------------------------------------------------------------------------
def test_use_refuses_an_unknown_name():
    with (
        pytest.raises(ValueError, match=r"one of reference, cpp, cuda, triton, got 'cudnn'"),
        pytorch_ext.use("cudnn"),
    ):
        pass


@pytest.mark.parametrize("implementation", ["cpp", "cuda", "triton"])
def test_use_says_why_an_implementation_is_not_there(monkeypatch, implementation):
    monkeypatch.setattr(_op, "unavailable", lambda name: "the reason")
    with (
        pytest.raises(RuntimeError, match=f"'{implementation}' is not available: the reason"),
        pytorch_ext.use(implementation),
    ):
        pass


def test_use_nests_and_leaves_nothing_behind():
    op = "pytorch_ext::depthwise_conv2d"
    before = torch._C._dispatch_dump(op)
    with pytorch_ext.use("reference"):
        inside = torch._C._dispatch_dump(op)
        with pytorch_ext.use("reference"):
            pass
        assert torch._C._dispatch_dump(op) == inside
    assert torch._C._dispatch_dump(op) == before
    with pytest.raises(KeyError), pytorch_ext.use("reference"):
        raise KeyError
    assert torch._C._dispatch_dump(op) == before


# --- doctor -----------------------------------------------------------------------------------------------------------
def doctor(*arguments, cwd, **environment) -> str:
    result = run("-m", "pytorch_ext", "doctor", *arguments, cwd=cwd, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_doctor_in_text(tmp_path):
    text = doctor(cwd=tmp_path)
    for name in _op.OPS:
        assert name in text
    assert torch.__version__ in text


def test_doctor_in_json(tmp_path):
    report = json.loads(doctor("--json", cwd=tmp_path))
    assert set(report["ops"]) == set(_op.OPS)
    assert report["torch"] == torch.__version__
    for op in report["ops"].values():
        assert set(op["implementations"]) == set(_op.IMPLEMENTATIONS)
        for state in op["implementations"].values():
            assert state["live"] == (state["why_not"] is None)  # never a no without its reason
        assert op["implementations"]["cpp"]["live"] == ("cpu" in _load.libraries)
        assert op["answers"]["cpu"] == ("cpp" if "cpu" in _load.libraries else "reference")


def test_doctor_where_nothing_is_compiled(bare):
    report = json.loads(doctor("--json", cwd=bare))
    assert report["build"] == {"facts": None, "why": "pytorch_ext._build is not built"}
    for op in report["ops"].values():
        assert op["answers"]["cpu"] == "reference"
        assert op["implementations"]["cpp"]["why_not"].startswith("not built")
    assert "not built: none of" in doctor(cwd=bare)


# --- building ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("switch", "value", "message"),
    [
        ("LIGHTKERNELS_CUDA", "yes", "must be 0 or 1, got 'yes'"),
        ("LIGHTKERNELS_CPU", "2", "must be 0 or 1, got '2'"),
        ("LIGHTKERNELS_ISAS", "avx2,sse9", "got sse9"),
    ],
)
def test_setup_refuses_a_switch_it_does_not_know(switch, value, message):
    result = run(ROOT / "setup.py", "--version", cwd=ROOT, **{switch: value})
    assert result.returncode != 0
    assert switch in result.stderr
    assert message in result.stderr


# --- README -----------------------------------------------------------------------------------------------------------
def test_the_examples_of_the_readme_run(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    result = run("-c", "\n".join(blocks), cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_the_readme_documents_every_switch():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r'(?:switch|words)\("(\w+)"\)', (ROOT / "setup.py").read_text()):
        assert f"LIGHTKERNELS_{name}" in text
    assert _load.DISABLE in text
