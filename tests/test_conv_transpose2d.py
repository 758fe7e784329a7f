"""Transposed convolution: against torch in float64, against what SPEC 12.3 says that it is, and torch's subsystems."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact, assert_linear
from convolution import DTYPES, assert_format, assert_names, lay

from pytorch_ext import conv_transpose2d, pixel_shuffle, upsample2d

CASES = {  # x, weight, stride, padding, output_padding, groups, dilation
    "plain": ((2, 3, 5, 6), (3, 4, 3, 3), 1, 0, 0, 1, 1),
    "x2": ((2, 6, 5, 7), (6, 5, 4, 4), 2, 1, 0, 1, 1),
    "odd": ((1, 8, 5, 4), (8, 3, 3, 2), (2, 3), (1, 0), (1, 2), 2, 1),
    "U-Net": ((1, 20, 6, 6), (20, 10, 2, 2), 2, 0, 0, 1, 1),
    "FCN": ((1, 4, 3, 3), (4, 4, 16, 16), 8, 4, 0, 1, 1),
    "dilated": ((1, 3, 6, 5), (3, 2, 3, 3), (1, 2), (2, 1), (0, 1), 1, (2, 3)),
    "each channel": ((2, 6, 4, 4), (6, 1, 4, 4), 2, 1, 0, 6, 1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("name", CASES)
def test_is_torchs(name, layout, dtype):
    shape, weight_shape, *geometry = CASES[name]
    x, weight, groups = lay(shape, dtype, layout), torch.randn(weight_shape).to(dtype), geometry[3]
    y = conv_transpose2d(x, weight, None, *geometry)
    exact = F.conv_transpose2d(x.double(), weight.double(), None, *geometry)
    magnitude = F.conv_transpose2d(x.double().abs(), weight.double().abs(), None, *geometry)
    terms = shape[1] // groups * weight_shape[2] * weight_shape[3]
    assert_linear(y, exact, magnitude, terms)
    assert_format(y, x)
    bias = torch.randn(y.shape[1]).to(dtype)
    assert_exact(conv_transpose2d(x, weight, bias, *geometry), y + bias.view(-1, 1, 1))
    assert_linear(conv_transpose2d(x[0], weight, None, *geometry), exact[0], magnitude[0], terms)


def test_is_the_adjoint_of_a_convolution():
    x, y, weight = torch.randn(2, 4, 9, 11).double(), torch.randn(2, 6, 5, 6).double(), torch.randn(6, 4, 3, 3).double()
    left = (F.conv2d(x, weight, stride=2, padding=1) * y).sum()
    torch.testing.assert_close(left, (x * conv_transpose2d(y, weight, None, 2, 1)).sum())


def test_is_a_convolution_and_a_pixel_shuffle():
    """Stride r, kernel r * k: the r * r kernels of k by k that each phase of y sees."""
    r, k = 2, 3
    x, weight = torch.randn(1, 3, 7, 8).double(), torch.randn(3, 2, r * k, r * k).double()
    phases = [weight[:, :, i::r, j::r].flip(2, 3).transpose(0, 1) for i, j in itertools.product(range(r), range(r))]
    kernels = torch.stack(phases, 1).flatten(0, 1)  # [2 * r * r, 3, k, k]
    expected = pixel_shuffle(F.conv2d(x, kernels, padding=k - 1), r)
    torch.testing.assert_close(conv_transpose2d(x, weight, None, r), expected)


@pytest.mark.parametrize("s", [2, 8])
def test_bilinear_kernels_are_bilinear_upsampling(s):
    """In the interior; SPEC 12.3."""
    at = torch.arange(2 * s, dtype=torch.float64)
    row = 1 - (at - (s - 0.5)).abs() / s
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    y = conv_transpose2d(x, (row[:, None] * row)[None, None], None, s, s // 2)
    expected = upsample2d(x, scale_factor=s, mode="bilinear")
    inside = (slice(None), slice(None), slice(s, -s), slice(s, -s))
    torch.testing.assert_close(y[inside], expected[inside])


def test_gradients_and_transforms():
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((1, 4, 3, 2), (4, 2, 3, 3), (4,))
    )
    call = lambda x, weight, bias: conv_transpose2d(x, weight, bias, 2, 1, 1, 2)
    torch.autograd.gradcheck(call, (x, weight, bias))
    torch.autograd.gradgradcheck(call, (x, weight, bias), fast_mode=True)
    torch._dynamo.reset()
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias), call(x, weight, bias))
    many = torch.randn(3, 2, 4, 3, 2, dtype=torch.float64)
    got = torch.vmap(lambda x: call(x, weight, bias))(many)
    torch.testing.assert_close(got, torch.stack([call(t, weight, bias) for t in many]))


def test_autocast():
    x, weight = torch.randn(1, 4, 3, 3), torch.randn(4, 2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv_transpose2d(x, weight).dtype == torch.bfloat16 == F.conv_transpose2d(x, weight).dtype


X, W = torch.randn(1, 4, 3, 3), torch.randn(4, 2, 3, 3)
BAD = {
    "no tensor": (([1.0], W), TypeError, ["x", "list"]),
    "output padding": ((X, W, None, 2, 0, 2), ValueError, ["output_padding", "stride"]),
    "negative": ((X, W, None, 2, 0, -1), ValueError, ["output_padding"]),
    "channels": ((X, W[:3]), RuntimeError, ["4", "3"]),
    "bias": ((X, W, torch.ones(3)), RuntimeError, ["bias", "[2]", "[3]"]),
    "two dimensions": ((X[0, 0], W), ValueError, ["[3, 3]"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    args, error, words = BAD[name]
    with pytest.raises(error) as caught:
        conv_transpose2d(*args)
    assert_names(caught.value, words)
