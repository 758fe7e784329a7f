"""pointwise_conv2d and dilated_conv2d of the CUDA library without a GPU: as tests/test_ptx_on_cpu_cuda.py, with the
judges and the cases of the ops' own tests."""

import itertools

import pytest
import test_dilated_conv2d as dilated
import test_pointwise_conv2d as pointwise
import torch
from convolution import DTYPES, Geometry
from dense import Fused, expected, judge, make_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_on_cpu import cuda

pytestmark = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
OPS = {"dilated_conv2d": dilated, "pointwise_conv2d": pointwise}
CASES = [(op, case) for op, module in OPS.items() for case in module.REPRESENTATIVE if case[0][0]]  # no empty batch
STRIDES = [
    ((1, 8, 7, 8), 16, (1, 2), Geometry((3, 4), (0, 0, 1, 0)), 1),  # pixels that no tap meets
    ((1, 8, 12, 11), 16, (3, 3), Geometry((2, 3), (2, 1, 3, 2), (2, 3)), 1),
    ((1, 8, 12, 11), 8, (4, 3), Geometry((4, 6), (2, 1, 3, 2), (2, 4)), 1),  # strides and dilations share a factor
    ((1, 4, 3, 3), 4, (2, 2), Geometry((50, 70), (30, 30, 40, 40), (7, 3)), 1),
    ((1, 72, 4, 5), 136, (3, 3), Geometry((1, 1), (1, 1, 1, 1)), 1),  # large tiles of weight's gradient
    ((2, 72, 4, 6), 136, (1, 1), Geometry(), 1),
]
OTHER_LAYOUTS = ["sliced", "channels_last_sliced", "transposed", "expanded", "expanded_channels"]


@pytest.fixture
def session():
    with cuda.device(80) as session:
        yield session


def case_id(value) -> str:
    return str(value[0]) if isinstance(value, tuple) else str(value)


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("op", "case"), CASES, ids=case_id)
def test_values(op, case, layout, dtype, session):
    with session.as_cpu():
        OPS[op].check_all(*case, layout=layout, dtype=dtype)
    session.report.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layout", "weight_layout"), [
    *((layout, "contiguous") for layout in OTHER_LAYOUTS),
    *(("channels_last", layout) for layout in ("channels_last", "packed", "transposed", "sliced", "expanded")),
])  # fmt: skip
def test_other_layouts(layout, weight_layout, dtype, session):
    options = {"dtype": dtype, "layout": layout, "weight_layout": weight_layout}
    geometry = Geometry((1, 2), (1, 1, 1, 1))
    with session.as_cpu():
        dilated.check_all((2, 16, 6, 7), 24, (3, 3), geometry, 2, Fused("relu", residual="after"), **options)
        pointwise.check_all((2, 16, 5, 7), 24, (1, 1), 1, Fused("relu", gate=True), **options)
    session.report.check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", STRIDES, ids=case_id)
def test_strides(case, layout, dtype, session):
    with session.as_cpu():
        dilated.check_all(*case, layout=layout, dtype=dtype)
    session.report.check()


# Tiles of other sizes than small images take, by the road that leads to each.
PLAIN, TWO_TAPS = Geometry(), Geometry((1, 1), (0, 0, 1, 0))
EPILOGUE = Fused("hardswish", residual="after")
LARGE = {
    "chunks": ("pointwise_conv2d", "channels_last", ((1, 16, 168, 165), 128, (1, 1), 1, EPILOGUE)),
    "planes": ("pointwise_conv2d", "contiguous", ((1, 16, 168, 165), 128, (1, 1), 1, EPILOGUE)),
    "elements": ("pointwise_conv2d", "contiguous", ((1, 16, 167, 166), 128, (1, 1), 1, EPILOGUE)),
    "narrow": ("pointwise_conv2d", "channels_last", ((1, 8, 168, 165), 24, (1, 1), 1, EPILOGUE)),
    "taps, chunks": ("dilated_conv2d", "channels_last", ((1, 16, 168, 165), 128, (1, 2), TWO_TAPS, 1, EPILOGUE)),
    "taps, elements": ("dilated_conv2d", "contiguous", ((1, 16, 168, 165), 128, (1, 2), TWO_TAPS, 1, EPILOGUE)),
    "taps, narrow": ("dilated_conv2d", "channels_last", ((1, 8, 168, 165), 24, (1, 2), TWO_TAPS, 1, EPILOGUE)),
    "one tap, planes": ("dilated_conv2d", "contiguous", ((1, 16, 168, 165), 128, (1, 1), PLAIN, 1, EPILOGUE)),
}
LARGE_DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", LARGE_DTYPES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_images(name, dtype, session):
    """Every pixel of a layer of many blocks, and its gradients."""
    op, layout, case = LARGE[name]
    with session.as_cpu():
        OPS[op].check_all(*case, layout=layout, dtype=dtype)
    session.report.check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_images_with_something_before(layout, session):
    """For which large tiles have no registers."""
    layer = make_layer((1, 16, 168, 165), 128, (1, 1), PLAIN, 1, Fused(input_activation="silu", input_gate=True),
                       dtype=torch.float16, layout=layout)  # fmt: skip
    with session.as_cpu():
        judge(pointwise.call(layer), layer, expected(layer))
    session.report.check()
    assert ["Li64ELi64E" in launch.kernel for launch in session.launches] == [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_values_on_sm_90(dtype):
    with cuda.device(90) as session, session.as_cpu():
        dilated.check_all((2, 16, 7, 9), 24, (3, 3), Geometry((1, 1), (1, 1, 1, 1)), dtype=dtype,
                          layout="channels_last")  # fmt: skip
        pointwise.check_all((2, 16, 7, 9), 24, (1, 1), dtype=dtype)
    session.report.check()


@settings(max_examples=max(20, settings.default.max_examples // 5))
@given(dilated.cases(), st.integers(0, 2**31))
def test_drawn_dilated(case, seed):
    torch.manual_seed(seed)
    with cuda.device(80) as session, session.as_cpu():
        dilated.check_all(*case[0], **case[1])
    if session.launches:
        session.report.check()


@settings(max_examples=max(20, settings.default.max_examples // 5))
@given(pointwise.cases(), st.integers(0, 2**31))
def test_drawn_pointwise(case, seed):
    torch.manual_seed(seed)
    with cuda.device(80) as session, session.as_cpu():
        pointwise.check_all(*case[0], **case[1])
    if session.launches:
        session.report.check()


def run_every_case() -> None:
    """All that is above but for what is drawn: tests/test_ptx_on_cpu_cuda.py counts the kernels that this launches."""
    for layout in ("contiguous", "channels_last"):
        for dtype in DTYPES:
            for op, case in CASES:
                OPS[op].check_all(*case, layout=layout, dtype=dtype)
            for case in STRIDES:
                dilated.check_all(*case, layout=layout, dtype=dtype)
    for (op, layout, case), dtype in itertools.product(LARGE.values(), LARGE_DTYPES):
        OPS[op].check_all(*case, layout=layout, dtype=dtype)


# --- host code --------------------------------------------------------------------------------------------------------
def test_weight_is_packed_only_where_it_must(session):
    """Whole chunks of input channels, one behind another, are read as they lie."""
    for w, packed in (
        (torch.randn(24, 16, 1, 1), False),
        (torch.randn(24, 16, 3, 3), True),
        (torch.randn(24, 16, 3, 3).contiguous(memory_format=torch.channels_last), False),
        (torch.randn(24, 6, 1, 1), True),
        (torch.randn(24, 17, 1, 1)[:, 1:], True),
    ):
        x = torch.randn(1, w.shape[1], 5, 5)
        session.launches.clear()
        session.op("dilated_conv2d")(x, w, None, [1, 1], [1] * 4, [1, 1], 1, *dilated.PLAIN, "auto", None)
        assert any("pack_weight" in launch.kernel for launch in session.launches) == packed, w.shape


def test_nothing_is_kept_packed(session):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, cuda.KEY))
    x, w = torch.randn(1, 6, 5, 5), torch.randn(4, 6, 1, 1)
    assert pointwise.PACK.redispatch(keys, x, w, [1, 1], 1).numel() == 0
    assert dilated.PACK.redispatch(keys, x, w, [1, 1], [0] * 4, [1, 1], 1, "auto").numel() == 0
    assert not session.launches
