"""Activations of the CUDA library and of Triton without a GPU: as tests/test_ptx_on_cpu_cuda.py, with the judge and the
cases of the op's own tests."""

import pytest
import test_activation as own
import torch
from convolution import DTYPES, assert_names, lay
from ptx_on_cpu import cuda

from pytorch_ext import ACTIVATIONS

needs_cuda = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
CASES = {f"{case}": case for case in own.REPRESENTATIVE if case[0][0]}  # no empty batch
OTHER_LAYOUTS = ["sliced", "channels_last_sliced", "transposed", "reversed", "expanded"]
LARGE = {  # several blocks, several splits of dslope
    "each": ((2, 3, 70, 71), "prelu"),
    "one": ((2, 3, 70, 71), "prelu", "one"),
    "silu": ((2, 3, 70, 71), "silu"),
}


@pytest.fixture
def session():
    with cuda.device(80) as session:
        yield session


# --- CUDA -------------------------------------------------------------------------------------------------------------
@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_values(name, layout, dtype, session):
    with session.as_cpu():
        own.check_all(*(CASES | LARGE)[name], layout=layout, dtype=dtype)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("kind", ["gelu_tanh", "prelu"])
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_other_layouts(layout, kind, session):
    with session.as_cpu():
        own.check_all((2, 8, 5, 7), kind, layout=layout)
        own.check_all((2, 8, 5, 7), kind, layout=layout, dy_layout="contiguous")
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("kind", ["elu", "prelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_is_not_aligned(dtype, kind, session):
    """Views that begin within 16 bytes, of sizes that are no whole vectors."""
    with session.as_cpu():
        for count in (1, 15, 16, 17, 33):
            x, dy = torch.randn(count + 1).to(dtype)[1:], torch.randn(count).to(dtype)
            own.check(x, dy, kind, torch.rand(1).to(dtype) if kind == "prelu" else None)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("shape", [(70000, 3), (3, 70000), (1, 70000, 2)], ids=str)
def test_more_rows_and_channels_than_a_grid_holds(shape, session):
    with session.as_cpu():
        own.check(torch.randn(shape), torch.randn(shape), "prelu", torch.rand(shape[1]))
    session.report.check()


@needs_cuda
def test_values_on_sm_90():
    with cuda.device(90) as session, session.as_cpu():
        for kind in ACTIVATIONS:
            own.check_all((2, 8, 5, 7), kind)
    session.report.check()


@needs_cuda
def test_far_out(session):
    with session.as_cpu():
        for kind in ACTIVATIONS:
            own.test_values_far_out_and_not_finite(kind, torch.float32)
    session.report.check()


@needs_cuda
@pytest.mark.parametrize("name", own.BAD_RAW)
def test_bad_input(name, session):
    op, args, words = own.BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        session.op(op._schema.name.split("::")[1])(*args)
    assert_names(caught.value, words)
    assert not session.launches


@needs_cuda
def test_empty_tensors_launch_nothing(session):
    x, slope = torch.zeros(0, 3, 4), torch.ones(3)
    assert session.op("activation")(x, "silu", 0.0, None).shape == x.shape
    dx, dslope = session.op("activation_backward")(x, x, "prelu", 0.0, slope)
    assert dx.shape == x.shape
    assert torch.equal(dslope, torch.zeros(3))
    assert not session.launches


@needs_cuda
def test_vectors_of_16_bytes_where_memory_is_whole(session):
    x = lay((2, 8, 5, 4), torch.float16, "channels_last")
    session.op("activation")(x, "silu", 0.0, None)
    session.op("activation_backward")(x, x, "prelu", 0.0, torch.ones(8).half())
    each, rows, _ = (launch.kernel for launch in session.launches)
    assert "activate_eachI6__halfLi8E" in each
    assert "prelu_backward_rowsI6__halfLi8E" in rows


# --- Triton -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", [*CASES, *LARGE])
def test_triton_values(name, layout, dtype, monkeypatch):
    triton = pytest.importorskip("triton", reason="triton is not installed")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    from ptx_on_cpu import triton_driver
    from pytorch_ext.kernels import activation as kernels

    monkeypatch.setattr(own, "FORWARD", kernels.activation)
    monkeypatch.setattr(own, "BACKWARD", kernels.activation_backward)
    with triton_driver.active(arch=80) as driver:
        own.check_all(*(CASES | LARGE)[name], layout=layout, dtype=dtype)
    driver.report.check()
