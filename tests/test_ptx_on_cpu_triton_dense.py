"""pointwise_conv2d and dilated_conv2d of Triton without a GPU: as tests/test_ptx_on_cpu_triton.py, with the judges of
the ops' own tests.

What multiplies matrices by wgmma (sm_90, tiles of 64 rows and more of 16-bit types) is not executed: such tiles are
executed as they are compiled for sm_80.
"""

import re
from unittest import mock

import dense
import dense_triton
import gpu_budget
import pytest
import torch
from bounds import assert_exact, assert_linear
from convolution import Geometry, lay
from dense import Fused, make_layer
from test_dilated_conv2d import REPRESENTATIVE, case_id, same

triton = pytest.importorskip("triton", reason="triton is not installed")
from ptx_on_cpu import triton_driver  # noqa: E402
from pytorch_ext.kernels import dense_conv2d as shared  # noqa: E402
from pytorch_ext.kernels import dilated_conv2d as kernels  # noqa: E402

pytestmark = pytest.mark.skipif(shared.INTERPRETED, reason="TRITON_INTERPRET is set: nothing is compiled")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAYOUTS = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
BOTH = Fused("silu", True, True, "after", True, input_activation="hardswish", input_gate=True)


@pytest.fixture(autouse=True)
def exact_products():
    """float32 as float32; what TF32 gives is tested by itself."""
    with torch.backends.cudnn.flags(torch.backends.cudnn.enabled, allow_tf32=False):
        yield


def check(layer, layout, driver, turn=0, pointwise=False) -> None:
    with driver.turn(kernels._forward, turn):
        (dense_triton.check_out if turn % 4 == 3 else dense_triton.check_forward)(layer, pointwise)
    with driver.turn(kernels._backward_input, turn + 1):
        dense_triton.check_backward(layer, layout)
    driver.report.check()


# --- every config -----------------------------------------------------------------------------------------------------
@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_config(dtype, layout):
    layer = make_layer((1, 34, 6, 11), 72, (2, 1), Geometry((1, 1), (1, 0, 0, 0)), 1, Fused("relu6"), dtype=dtype,
                       layout=layout)  # fmt: skip
    dy = lay(layer.y_shape, dtype, layout)
    want, magnitude = (
        dense.backward_input64(f(dy.double()), f(layer.w.double()), *layer.x.shape[2:], layer.geometry, 1)
        for f in (lambda t: t, torch.abs)
    )
    y_want, terms = dense.expected(layer), layer.w[:, 0].numel()
    with triton_driver.active(80) as driver:
        for _ in driver.each_config(kernels._forward):
            dense_triton.check_forward(layer, False, y_want)
        for _ in driver.each_config(kernels._backward_input):
            dx = kernels.dilated_conv2d_backward_input(dy, layer.w, *layer.x.shape[2:], *layer.geometry, 1)
            assert_linear(dx, want, magnitude, terms)
        driver.report.check()
        taken = {name: [launch.config for launch in driver.launches if name in launch.kernel]
                 for name in ("forward", "backward_input")}  # fmt: skip
    assert all(taken.values())
    if dtype != torch.float64:  # for which some tiles are too large
        by_threads = dtype == torch.float32
        of_its_own = [
            c for c in kernels.CONFIGS if c.kwargs["BLOCK_C"] == 16 or (c.kwargs["BLOCK_K"] == 16) == by_threads
        ]
        assert taken["forward"] == of_its_own


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_small_tiles_for_sm_90(dtype, layout):
    layer = make_layer((1, 40, 7, 6), 15, (3, 3), same(3), 1, BOTH._replace(input_activation="none", input_gate=False),
                       dtype=dtype, layout=layout)  # fmt: skip
    with triton_driver.active(90) as driver:
        with driver.turn(kernels._forward, 0) as turn:
            dense_triton.check_forward(layer, False)
        assert turn.config.kwargs["BLOCK_C"] < 64
        driver.report.check()


# --- values -----------------------------------------------------------------------------------------------------------
@LAYOUTS
@pytest.mark.parametrize("index", range(len(REPRESENTATIVE)), ids=lambda i: case_id(REPRESENTATIVE[i]))
def test_dilated_conv2d(index, layout):
    """Dtypes and configs take turns: all of them times all of these would take minutes."""
    shape, co, k, geometry, groups, fused = REPRESENTATIVE[index]
    if not shape[0]:
        pytest.skip("an empty batch launches nothing: tested below")
    turn = 2 * index + (layout == "channels_last")
    layer = make_layer(shape, co, k, geometry, groups, fused, dtype=DTYPES[(index + index // 4) % 4], layout=layout)
    with triton_driver.active(80) as driver:
        check(layer, layout, driver, turn)


POINTWISE = [  # shape, out channels, stride, groups, fused
    ((2, 24, 7, 7), 40, (1, 1), 1, BOTH),
    ((1, 16, 12, 8), 96, (1, 1), 1, Fused("relu6")),
    ((2, 40, 6, 5), 17, (2, 3), 1, Fused("hardswish", residual="before", input_gate=True)),
    ((2, 12, 4, 8), 18, (1, 1), 3, Fused("prelu", scale=True, residual="after", shuffle=3)),
    ((1, 36, 8, 8), 48, (1, 1), 2, Fused("gelu", gate=True, shuffle=4, input_activation="sigmoid")),
    ((3, 32, 1, 1), 8, (1, 1), 1, Fused("silu")),
    ((1, 8, 1, 1), 32, (1, 1), 1, Fused("sigmoid", bias=False, input_activation="silu")),
]


@LAYOUTS
@pytest.mark.parametrize("index", range(len(POINTWISE)))
def test_pointwise_conv2d(index, layout):
    shape, co, stride, groups, fused = POINTWISE[index]
    turn = 2 * index + (layout == "channels_last")
    layer = make_layer(shape, co, (1, 1), Geometry(stride), groups, fused, dtype=DTYPES[turn % 4], layout=layout)
    with triton_driver.active(80) as driver:
        check(layer, layout, driver, turn, pointwise=True)


@pytest.mark.parametrize("activation", dense.ACTIVATIONS)
def test_activations(activation):
    """Each behind the sums, the plain ones before them too. (Comparisons of float16, packed, are not executed.)"""
    for dtype in (torch.float32, torch.bfloat16):
        fused = Fused(activation, scale=True, residual="before", gate=True)
        if activation in dense.PLAIN:
            fused = fused._replace(input_activation=activation, input_gate=True)
        layer = make_layer((2, 18, 4, 5), 20, (1, 1), Geometry(), 1, fused, dtype=dtype, layout="channels_last")
        with triton_driver.active(80) as driver:
            with driver.turn(kernels._forward, 0):
                dense_triton.check_forward(layer, pointwise=True)
            driver.report.check()


@pytest.mark.parametrize(("layout", "weight_layout"), [
    ("sliced", "packed"), ("channels_last_sliced", "transposed"), ("transposed", "sliced"), ("reversed", "expanded"),
    ("expanded", "channels_last"),
])  # fmt: skip
def test_any_strides(layout, weight_layout):
    options = {"dtype": torch.bfloat16, "layout": layout, "weight_layout": weight_layout}
    fused = Fused("relu", residual="after", gate=True)
    for pointwise, k, geometry in ((False, (3, 3), Geometry((2, 1), (1, 1, 1, 1))), (True, (1, 1), Geometry())):
        layer = make_layer((2, 20, 8, 9), 24, k, geometry, 2, fused, **options)
        with triton_driver.active(80) as driver:
            check(layer, layout, driver, 1, pointwise)


@LAYOUTS
def test_indices_of_64_bits(layout):
    layer = make_layer((2, 20, 8, 9), 24, (3, 3), Geometry((2, 1), (1, 1, 1, 1)), 2, BOTH._replace(
        input_activation="none", input_gate=False), dtype=torch.float16, layout=layout)  # fmt: skip
    with triton_driver.active(80) as driver, mock.patch.object(kernels, "wide", return_value=True):
        check(layer, layout, driver, 1)
        assert {launch.constants["WIDE"] for launch in driver.launches} == {True}


def test_an_empty_batch_launches_nothing():
    layer = make_layer((0, 4, 5, 5), 4, (3, 3), same(3), 1, Fused(), dtype=torch.float32, layout="contiguous")
    with triton_driver.active(80) as driver:
        dense_triton.check_forward(layer, False)
        dense_triton.check_backward(layer, "contiguous")
        assert not driver.launches


# --- more than values -------------------------------------------------------------------------------------------------
def test_tf32_is_used_where_torch_allows_it():
    """Of 23 bits of each factor 10 are kept."""
    layer = make_layer((1, 64, 8, 8), 32, (1, 1), Geometry(), 1, Fused(bias=False), dtype=torch.float32,
                       layout="channels_last")  # fmt: skip
    want = dense.expected(layer)
    with triton_driver.active(80) as driver:
        with driver.turn(kernels._forward, 0):
            dense_triton.check_forward(layer, True, want)
        with (
            torch.backends.cudnn.flags(torch.backends.cudnn.enabled, allow_tf32=True),
            driver.turn(kernels._forward, 0),
        ):
            error = (dense_triton.call(layer, True).double() - want.y).abs()
        driver.report.check()
        assert [launch.constants["PRECISION"] for launch in driver.launches] == ["ieee", "tf32"]
    assert (error <= 2 * 2**-10 * 1.01 * want.magnitude).all()
    assert error.max() > 1e-4


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_the_weight_is_the_same_every_time(groups):
    """More than one program adds to each sum, and their order is turned."""
    x, dy = lay((2, 18, 30, 31), torch.float16, "channels_last"), lay((2, 20, 30, 31), torch.float16, "channels_last")
    geometry, found = same(3), []
    for backwards in (False, True):
        with triton_driver.active(80, backwards=backwards) as driver:
            found.append(kernels.dilated_conv2d_backward_weight(dy, x, 3, 3, *geometry, groups))
            driver.report.check()
            assert [launch.kernel for launch in driver.launches] == [
                "dense_backward_weight_kernel",
                "dense_backward_weight_finish_kernel",
            ]
    for a, b in zip(*found):
        assert_exact(a, b)


def test_it_tunes_itself():
    """As on a GPU: whoever calls the op knows nothing of configs."""
    layer = make_layer(
        (1, 20, 6, 9), 24, (1, 1), Geometry(), 1, Fused("relu"), dtype=torch.float16, layout="contiguous"
    )
    with triton_driver.active(80) as driver:
        first, again = dense_triton.call(layer, True), dense_triton.call(layer, True)
        assert_exact(again, first)
        driver.report.check()
        assert len(driver.launches) == len({launch.config for launch in driver.launches}) + 2


@pytest.mark.parametrize(
    ("channels", "co", "kernel", "layout", "moved"),
    [
        (24, 40, (3, 3), "channels_last", 8),
        (20, 36, (3, 3), "channels_last", 4),
        (7, 11, (1, 1), "channels_last", 1),
        (40, 24, (1, 1), "contiguous", 8),
    ],
)
def test_as_many_bytes_are_moved_at_once_as_the_sizes_allow(channels, co, kernel, layout, moved):
    """Though no size is a multiple of 16, which is all that Triton finds out by itself."""
    layer = make_layer((2, channels, 8, 11), co, kernel, same(kernel[0]), 1, Fused(bias=False), dtype=torch.float16,
                       layout=layout)  # fmt: skip
    texts = []

    def loader(ptx, name, source):
        texts.append(ptx)
        return triton_driver.load(ptx, name, source)

    with triton_driver.active(80, loader=loader) as driver:
        with driver.turn(kernels._forward, 1):
            dense_triton.check_forward(layer, False)
        driver.report.check()
    (ptx,) = texts
    sizes = {int(size, 16) for size in re.findall(r"cp\.async\.c[ag][^;]*, (0x\w+),", ptx)}
    sizes |= {size for _, size in gpu_budget.accesses_of(ptx)}
    assert sizes == {2 * moved}
