"""Shuffles and upsampling as modules: each is torch's with the same results; `swap` and `restore` know it."""

import copy
import pickle

import pytest
import torch
from bounds import assert_exact
from torch import nn

import pytorch_ext
from pytorch_ext import restore, swap

MODULES = [
    nn.ChannelShuffle(3),
    nn.PixelShuffle(3),
    nn.PixelUnshuffle(2),
    nn.Upsample(size=(9, 11)),
    nn.Upsample(scale_factor=1.5, mode="nearest-exact"),
    nn.Upsample(scale_factor=(2, 3), mode="bilinear", align_corners=False),
    nn.Upsample(scale_factor=2.3, mode="bilinear", recompute_scale_factor=True),
    nn.UpsamplingNearest2d(scale_factor=2),
    nn.UpsamplingBilinear2d(size=(7, 9)),
    nn.UpsamplingBilinear2d(scale_factor=2),
    nn.ConvTranspose2d(9, 6, (3, 4), stride=2, padding=1, output_padding=(1, 0), groups=3),
    nn.ConvTranspose2d(9, 4, 2, stride=1, output_padding=1, dilation=2, bias=False),  # torch's own answers
]


def ours(module: nn.Module) -> nn.Module:
    module = copy.deepcopy(module)
    assert swap(module).replaced == [""]
    return module


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_is_torchs(module, layout):
    x = torch.randn(2, 9, 4, 6).contiguous(memory_format=layout)
    swapped = ours(module)
    assert isinstance(swapped, type(module))
    assert type(swapped) is getattr(pytorch_ext.nn, type(module).__name__)
    y, expected = swapped(x), module(x)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()
    assert str(swapped) == str(module)
    assert_exact(pickle.loads(pickle.dumps(swapped))(x), y)


def test_constructors_are_torchs():
    x = torch.randn(1, 4, 3, 5)
    for name, args in (("ChannelShuffle", (2,)), ("PixelShuffle", (2,)), ("Upsample", (None, 2.0, "bilinear"))):
        torch.testing.assert_close(getattr(pytorch_ext.nn, name)(*args)(x), getattr(nn, name)(*args)(x))


def test_what_ours_do_not_compute_is_torchs():
    module = ours(nn.Upsample(scale_factor=2))
    for x in (torch.randn(1, 2, 3), torch.randn(1, 2, 3, 4, 5), torch.randint(0, 9, (1, 2, 3, 4), dtype=torch.uint8)):
        assert_exact(module(x), nn.Upsample(scale_factor=2)(x))
    bilinear = ours(nn.Upsample(scale_factor=2, mode="bilinear"))
    x = torch.randint(0, 9, (1, 2, 3, 4), dtype=torch.uint8)
    assert_exact(bilinear(x), nn.Upsample(scale_factor=2, mode="bilinear")(x))


def test_swap_and_restore():
    class Twice(nn.PixelShuffle):
        pass

    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.PixelShuffle(2), Twice(2), nn.Upsample(scale_factor=2, mode="bicubic"), nn.ReLU(),
        nn.UpsamplingNearest2d(scale_factor=2),
    )  # fmt: skip
    kinds = [type(module) for module in model]
    report = swap(model)
    assert report.kinds == {"0": "DilatedConv2d", "1": "PixelShuffle", "5": "UpsamplingNearest2d"}
    assert "subclass" in report.left["2"] and "bicubic" in report.left["3"]
    assert "already" in swap(model).left["1"]
    assert restore(model).replaced == ["0", "1", "5"]
    assert [type(module) for module in model] == kinds
    assert "_swapped" not in model[1].__dict__
    assert swap(model, resample=False).left["1"] == "it resamples, which was not asked for"


def test_output_size_of_a_transposed_convolution():
    module, x = nn.ConvTranspose2d(3, 2, 3, stride=3), torch.randn(1, 3, 4, 5)
    torch.testing.assert_close(ours(module)(x, output_size=(14, 15)), module(x, output_size=(14, 15)))


def test_icnr_begins_as_nearest_upsampling():
    """SPEC 12.2: shuffle(conv(x)) = nearest(conv0(x))."""
    conv = nn.Conv2d(3, 18, 3, bias=False)
    assert pytorch_ext.nn.icnr_(conv.weight, 3) is conv.weight
    x, small = torch.randn(1, 3, 6, 7), nn.Conv2d(3, 2, 3, bias=False)
    small.weight.data = conv.weight.data[::9].clone()
    expected = pytorch_ext.upsample2d(small(x), scale_factor=3)
    torch.testing.assert_close(pytorch_ext.pixel_shuffle(conv(x), 3), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1
    with pytest.raises(ValueError, match="18 filters"):
        pytorch_ext.nn.icnr_(conv.weight, 2)


def test_compile_and_export():
    model = nn.Sequential(nn.PixelShuffle(2), nn.Upsample(scale_factor=2, mode="bilinear"), nn.ChannelShuffle(2))
    x = torch.randn(1, 8, 3, 4)
    expected = model(x)
    swap(model)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
