"""The CUDA library end to end without a GPU: its boundary, its host code and the PTX that nvcc makes of its kernels run
on CPU tensors, against float64, and no kernel does what a GPU would punish: see tests/ptx_on_cpu."""

import itertools

import ptx_on_cpu
import pytest
import test_activation
import test_ptx_on_cpu_activation as activation
import test_ptx_on_cpu_dense
import test_ptx_on_cpu_moves
import torch
from bounds import assert_linear
from hypothesis import given, settings
from hypothesis import strategies as st
from ptx_on_cpu import cuda
from test_depthwise_conv2d import (
    ACTIVATIONS,
    BAD_RAW,
    DTYPES,
    Geometry,
    assert_names,
    cases,
    check_all,
    check_backward,
    check_forward,
    forward64,
    lay,
)

from pytorch_ext import _op, depthwise_conv2d, nn

pytestmark = pytest.mark.skipif(cuda.unavailable() is not None, reason=str(cuda.unavailable()))
HALVES_AND_FLOAT = [dtype for dtype in DTYPES if dtype != torch.float64]


@pytest.fixture
def session():
    with cuda.device(80) as session:
        yield session


# --- values -----------------------------------------------------------------------------------------------------------
def specialised(dtype, layout: str, channels: int, k: int, stride: int) -> dict:
    """Padding that differs on all sides, and an image that ends within tiles."""
    padding = (k // 2, k // 2 - 1, k - 2, 1)
    return {
        "shape": (2, channels, 13, 11),
        "co": channels,
        "k": (k, k),
        "geometry": Geometry((stride, stride), padding),
        "dtype": dtype,
        "layout": layout,
        "activation": list(ACTIVATIONS)[(k + stride) % 5],
        "weight_layout": "packed" if k == 5 else "contiguous",
        "bias": (k, stride) != (3, 1),
    }


# 24 channels are vectors of 16 bytes, 6 are pairs.
SPECIALISED = {
    f"{str(dtype)[6:]} {layout} {channels} {k}x{k} stride {stride}": specialised(dtype, layout, channels, k, stride)
    for dtype, (layout, channels), k, stride in itertools.product(
        HALVES_AND_FLOAT, [("contiguous", 3), ("channels_last", 24), ("channels_last", 6)], (3, 5, 7), (1, 2)
    )
}

SHAPES = {  # what the general kernels are for, and the edges of the others
    "odd channels": ((2, 5, 9, 8), 5, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    "dilated": ((1, 4, 12, 13), 4, (3, 3), Geometry((1, 1), (2, 2, 3, 3), (2, 3))),
    "dilated, strided": ((1, 4, 14, 13), 4, (3, 3), Geometry((2, 3), (2, 2, 3, 3), (3, 2))),
    "multiplier": ((2, 3, 9, 8), 6, (3, 3), Geometry((2, 2), (1, 1, 1, 1))),
    "not square": ((2, 4, 9, 8), 4, (2, 5), Geometry((3, 1), (0, 1, 2, 3))),
    "one tap": ((2, 6, 5, 6), 6, (1, 1), Geometry((2, 3))),
    "one pixel": ((3, 8, 1, 1), 8, (3, 3), Geometry((1, 1), (1, 1, 1, 1))),
    "kernel beyond the image": ((1, 2, 2, 3), 2, (7, 7), Geometry((2, 2), (4, 3, 3, 4))),
    "stride 2, odd padding": ((1, 8, 8, 9), 8, (5, 5), Geometry((2, 2), (3, 0, 1, 2))),
}
GENERAL = {
    f"{str(dtype)[6:]} {layout} {name}": {
        "shape": shape, "co": co, "k": k, "geometry": geometry, "dtype": dtype, "layout": layout,
        "activation": list(ACTIVATIONS)[len(name) % 5],
    }
    for dtype, layout, (name, (shape, co, k, geometry)) in itertools.product(
        DTYPES, ["contiguous", "channels_last"], SHAPES.items()
    )
}  # fmt: skip
CASES = SPECIALISED | GENERAL


@pytest.mark.parametrize("name", CASES)
def test_values(name, session):
    with session.as_cpu():
        check_all(**CASES[name])
    session.report.check()


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_on_sm_90(dtype, layout):
    with cuda.device(90) as session, session.as_cpu():
        for k, stride in ((3, 1), (5, 2)):
            check_all(**specialised(dtype, layout, 8, k, stride))
    session.report.check()


@pytest.mark.parametrize("layout", ["sliced", "channels_last_sliced", "transposed", "expanded", "expanded_channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_layouts(layout, dtype, session):
    with session.as_cpu():
        check_all((2, 8, 7, 9), 8, (3, 3), Geometry((2, 2), (1, 1, 1, 1)), dtype=dtype, layout=layout)
        check_all((2, 8, 7, 9), 8, (3, 3), Geometry((1, 1), (1, 1, 1, 1)), dtype=dtype, layout=layout,
                  weight_layout="sliced", dy_layout="channels_last")  # fmt: skip
    session.report.check()


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
def test_channels_that_are_not_aligned(dtype, offset, session):
    """Slices of a channels_last image of 48 channels: 16 bytes, pairs or single channels at once, as they lie."""

    def sliced(*shape):
        return torch.randn(*shape, 48).to(dtype)[..., offset : offset + 16].permute(0, 3, 1, 2)

    geometry = Geometry((2, 2), (1, 1, 1, 1))
    w, b = torch.randn(16, 1, 3, 3).to(dtype), torch.randn(16).to(dtype)
    with session.as_cpu():
        check_forward(sliced(2, 7, 9), w, b, geometry)
        check_backward(sliced(2, 4, 5), sliced(2, 7, 9), w, geometry)
    session.report.check()
    element = torch.finfo(dtype).bits // 8
    vector = 16 // element if offset * element % 16 == 0 else 2
    path = "nhwc" if offset % 2 == 0 else "general"
    assert all(path in launch.kernel for launch in session.launches if "finish" not in launch.kernel)
    assert path == "general" or any(f"Li3ELi2ELi{vector}E" in launch.kernel for launch in session.launches)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("k", "stride"), [(3, 1), (5, 2), (2, 1)])
def test_cropping(k, stride, layout, session):
    """Negative padding, which only the raw ops take."""
    geometry = Geometry((stride, stride), (-1, 2, 1, -2))
    x, w = lay((2, 4, 9, 10), torch.float32, layout), torch.randn(4, 1, k, k)
    y = session.op("depthwise_conv2d")(x, w, None, *geometry, "none")
    reference, magnitude = (forward64(*(t.double() for t in ts), None, geometry) for ts in ((x, w), (x.abs(), w.abs())))
    assert_linear(y, reference, magnitude, k * k)
    with session.as_cpu():
        check_backward(y, x, w, geometry)
    session.report.check()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", [((2, 4, 48, 64), 1, 1), ((3, 2, 30, 31), 1, 2), ((5, 1, 79, 66), 2, 1)], ids=str)
def test_dweight_in_several_splits(case, layout, session):
    """Sums that several blocks share, which a second kernel adds."""
    shape, stride, multiplier = case
    geometry, co = Geometry((stride, stride), (1, 1, 1, 1)), shape[1] * multiplier
    x, w = lay(shape, torch.float32, layout), torch.randn(co, 1, 3, 3)
    with session.as_cpu():
        check_backward(lay((shape[0], co, *geometry.output(*shape[2:], 3, 3)), x.dtype, layout), x, w, geometry)
    session.report.check()
    sums = [
        launch for launch in session.launches if "backward_weight_" in launch.kernel and "finish" not in launch.kernel
    ]
    assert len(sums) == 2
    assert all(launch.grid["nhwc" not in launch.kernel] > 1 for launch in sums)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "k", "stride"), [
    ((65537, 2, 1, 1), 3, 1), ((65537, 2, 1, 1), 3, 2), ((1, 65537, 1, 1), 3, 2),
])  # fmt: skip
def test_more_images_and_channels_than_a_grid_holds(shape, k, stride, layout, session):
    """Its y and z end at 65535: blocks go on, or another kernel is taken."""
    geometry = Geometry((stride, stride), (k // 2,) * 4)
    x, w = lay(shape, torch.float32, layout), torch.randn(shape[1], 1, k, k)
    y = session.op("depthwise_conv2d")(x, w, None, *geometry, "none")
    dx = session.op("depthwise_conv2d_backward_input")(x, w, 1, 1, shape[1], *geometry)
    session.report.check()
    centre = x * w[:, 0, k // 2, k // 2].view(1, -1, 1, 1)  # all that meets a pixel
    assert torch.equal(y, centre)
    assert torch.equal(dx, centre)
    assert max(max(launch.grid[1:]) for launch in session.launches) == (65535 if shape[0] == 65537 else 1)


@settings(max_examples=max(20, settings.default.max_examples // 5))
@given(cases(), st.integers(0, 2**31))
def test_drawn(case, seed):
    torch.manual_seed(seed)
    with cuda.device(80) as session, session.as_cpu():
        check_all(*case[0], **case[1])
    if case[0][0][0]:  # not an empty batch
        session.report.check()


# --- host code --------------------------------------------------------------------------------------------------------
class Recorder:
    """A kernel that does nothing."""

    def __init__(self, kernel):
        self.kernel = kernel

    def launch(self, grid, block, args, shared, memory):
        assert [len(arg) for arg in args] == [param.size for param in self.kernel.params], self.kernel.name
        assert all(0 < n <= most for n, most in zip(grid, (2**31 - 1, 65535, 65535)))
        assert block[0] * block[1] * block[2] <= (self.kernel.max_threads or 1024)
        return 0


def test_the_cases_reach_every_kernel(session, monkeypatch):
    """Those above, and those of test_ptx_on_cpu_<family>.py: so no kernel is without a test of its values."""
    kernels = session.kernels
    session.kernels = {name: Recorder(kernel) for name, kernel in kernels.items()}
    moves = [module.__name__ for module in test_ptx_on_cpu_moves.OWN.values()]
    for module in ("test_depthwise_conv2d", "dense", "test_activation", *moves):  # where the judges are
        for name in ("assert_linear", "assert_nonlinear", "assert_exact", "assert_same"):
            monkeypatch.setattr(f"{module}.{name}", lambda *_, **__: None, raising=False)
    with session.as_cpu():
        for case in CASES.values():
            check_all(**case)
        test_ptx_on_cpu_dense.run_every_case()
        test_ptx_on_cpu_moves.run_every_case()
        for case, layout, dtype in itertools.product(
            (activation.CASES | activation.LARGE).values(), ["contiguous", "channels_last"], DTYPES
        ):
            test_activation.check_all(*case, layout=layout, dtype=dtype)
        for dtype in DTYPES:  # not aligned
            x = torch.randn(16).to(dtype)[1:]
            test_activation.check(x, x, "elu", None)
    assert {launch.kernel for launch in session.launches} == kernels.keys()


def test_every_op_is_there(session):
    for name in _op.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pytorch_ext::{name}", cuda.KEY), name
        assert callable(session.op(name))


RAW = ([1, 1], [1, 1, 1, 1], [1, 1])


@pytest.mark.parametrize("name", sorted(BAD_RAW.keys() - {"meta", "no tensor"}))  # which never reach a library
def test_bad_input(name, session):
    op, args, words = BAD_RAW[name]
    with pytest.raises(RuntimeError) as caught:
        session.op(op._schema.name.split("::")[1])(*args)
    assert_names(caught.value, words)
    assert not session.launches


def test_empty_batches_launch_nothing(session):
    x, w = torch.zeros(0, 4, 5, 5), torch.zeros(4, 1, 3, 3)
    assert session.op("depthwise_conv2d")(x, w, None, *RAW, "none").shape == x.shape
    dx, dw, db = session.op("depthwise_conv2d_backward")(x, x, w, *RAW)
    assert dx.shape == x.shape
    assert not dw.any()
    assert not db.any()
    assert not session.launches


# --- the device itself ------------------------------------------------------------------------------------------------
def test_launches_and_report(session):
    x, w = torch.randn(2, 3, 9, 10), torch.randn(3, 1, 3, 3)
    with pytest.raises(RuntimeError, match="nothing was launched"):
        _ = session.report
    session.op("depthwise_conv2d")(x, w, None, *RAW, "none")
    ((kernel, grid, block, shared, _),) = session.launches
    assert "forward_nchw" in kernel
    assert (grid, block, shared) == ((1, 2, 1), (128, 1, 1), 0)
    blocks = session.report.counts["blocks"]
    assert blocks == 2
    session.op("depthwise_conv2d")(x, w, None, *RAW, "none")
    assert session.report.counts["blocks"] == 2 * blocks


def test_cpu_kernels_are_not_disturbed(session):
    x, w = torch.randn(1, 3, 9, 10), torch.randn(3, 1, 3, 3)
    before = depthwise_conv2d(x, w)
    with session.as_cpu():
        depthwise_conv2d(x, w)
    assert len(session.launches) == 1
    assert torch.equal(depthwise_conv2d(x, w), before)
    assert len(session.launches) == 1


def test_a_layer_learns_on_it(session):
    """Module, autograd and raw ops together: the gradients are the reference's."""
    layer, x = nn.DepthwiseConv2d(4, 4, 3, padding=1), torch.randn(2, 4, 7, 6, requires_grad=True)

    def gradients():
        layer.zero_grad()
        x.grad = None
        layer(x).square().sum().backward()
        return [x.grad, *(p.grad for p in layer.parameters())]

    with session.as_cpu():
        ours = gradients()
    session.report.check()
    assert any("backward_weight" in launch.kernel for launch in session.launches)
    with _op.use("reference"):
        torch.testing.assert_close(ours, gradients())


def test_tensors_that_overlap(session):
    """x and dy are parts of one tensor; a view that begins within x must not hide the rest of x."""
    both = torch.randn(3, 2, 6, 7)
    x, dy, w = both[:2], both[1:], torch.randn(2, 1, 3, 3)
    with session.as_cpu():
        check_backward(dy, x, w, Geometry((1, 1), (1, 1, 1, 1)))
    session.report.check()


def test_findings_arrive(session, monkeypatch):
    """Arguments that the executor is told to be shorter, or empty of values, than they are."""
    x, w = torch.randn(2, 3, 9, 10), torch.randn(3, 1, 3, 3)
    track = session.memory.track
    for kind, change in (
        ("out-of-bounds", lambda nbytes, known: (nbytes // 2, known)),
        ("uninitialised", lambda nbytes, known: (nbytes, False)),
    ):
        session._report = None

        def worse(address, nbytes, itemsize, name, initialised, change=change):
            nbytes, initialised = change(nbytes, initialised) if name == "x" else (nbytes, initialised)
            track(address, nbytes, itemsize, name=name, initialised=initialised)

        monkeypatch.setattr(session, "memory", Tracker(session.memory, worse))
        session.op("depthwise_conv2d")(x, w, None, *RAW, "none")
        assert {finding.kind for finding in session.report.findings} == {kind}
        with pytest.raises(AssertionError, match="forward_nchw"):
            session.report.check()
        monkeypatch.undo()


class Tracker:
    """Memory with another `track`."""

    def __init__(self, memory, track):
        self.memory, self.track = memory, track

    def __getattr__(self, name):
        return getattr(self.memory, name)


def test_a_kernel_that_is_not_in_the_ptx(session):
    session.kernels = {}
    with pytest.raises(RuntimeError, match=r"forward_nchw.* is not in the PTX .*depthwise_conv2d\.cu.* for sm_80"):
        session.op("depthwise_conv2d")(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), None, *RAW, "none")


@pytest.mark.parametrize("error", [ValueError("the text"), KeyboardInterrupt()])
def test_what_python_raises_is_not_lost(error, session):
    class Broken:
        def launch(self, *args, **kwargs):
            raise error

    session.kernels = dict.fromkeys(session.kernels, Broken())
    expected = RuntimeError if isinstance(error, ValueError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        session.op("depthwise_conv2d")(torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), None, *RAW, "none")
    if expected is RuntimeError:
        assert "ValueError: the text" in str(caught.value)
        assert caught.value.__cause__ is error


def test_memory_that_the_caller_brings():
    memory = ptx_on_cpu.Memory()
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3)
    with cuda.device(80, memory=memory) as session:
        session.op("depthwise_conv2d")(x, w, None, *RAW, "none")
        session.op("depthwise_conv2d")(x, w, None, *RAW, "none")
    session.report.check()


def test_a_device_ends_with_its_block(session):
    args = torch.randn(1, 2, 5, 5), torch.randn(2, 1, 3, 3), None, *RAW, "none"
    with cuda.device(80) as inner:
        inner.op("depthwise_conv2d")(*args)
        with pytest.raises(RuntimeError, match="outside of its"):
            session.op("depthwise_conv2d")(*args)
    session.op("depthwise_conv2d")(*args)
    assert len(inner.launches) == len(session.launches) == 1
    with pytest.raises(RuntimeError, match="outside of its"):
        inner.op("depthwise_conv2d")(*args)
    with pytest.raises(ValueError, match=r"op must be one of .*depthwise_conv2d"):
        session.op("conv2d")


def test_outside_of_a_device():
    with cuda.device(80):
        pass
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, cuda.KEY))
    op = torch.ops.pytorch_ext.depthwise_conv2d.default
    with pytest.raises(RuntimeError, match=r"inside of ptx_on_cpu\.cuda\.device\(\) only"):
        op.redispatch(keys, torch.zeros(1, 2, 3, 3), torch.zeros(2, 1, 3, 3), None, *RAW, "none")


def test_names_of_kernels():
    """Of the device and of the host, with unnamed namespaces and internal linkage: nvcc 13.0's."""
    for device, host in (
        ("_ZN1a4statEPf", "_ZN1aL4statEPf"),
        ("_ZN1a36_GLOBAL__N__b6805760_4_x_cu_c0e1b6c95plainENS0_1SEPf", "_ZN1a12_GLOBAL__N_15plainENS0_1SEPf"),
        (
            "_ZN1a36_GLOBAL__N__b6805760_4_x_cu_c0e1b6c95innerIfLi3EEEvPT_NS0_1SE",
            "_ZN1a36_GLOBAL__N__00000000_4_x_cu_00000000L5innerIfLi3EEEvPT_NS0_1SE",
        ),
    ):
        assert cuda.plain_name(device) == cuda.plain_name(host)
    assert cuda.plain_name("_Z1aILi3EEvv") != cuda.plain_name("_Z1aILi5EEvv")
