"""The modules are nn.Conv2d and nn.Conv1d in all but speed; their packed weight is never stale; swap and restore."""

import copy
import functools
import io
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact
from convolution import compiled
from torch import nn

import pytorch_ext
from pytorch_ext.nn import (
    DepthwiseConv1d,
    DepthwiseConv2d,
    DilatedConv1d,
    DilatedConv2d,
    PointwiseConv2d,
    restore,
    swap,
)

ACTIVATIONS = {"none": lambda z: z, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}


def images(*shape) -> torch.Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last) if len(shape) == 4 else torch.randn(*shape)


class Net(nn.Module):
    """One of everything that swap has to tell apart."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, (3, 5), (1, 2), (1, 2), groups=8)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 16, 1, groups=2)
        self.line = nn.Conv1d(16, 16, 3, padding="same", groups=16)
        self.short = nn.Conv1d(16, 8, 1, bias=False)
        self.shared = nn.ModuleList([self.depthwise])

    def forward(self, x):
        x = self.shared[0](F.relu(self.norm(self.depthwise(self.stem(x)))))
        return self.short(self.line(self.point(self.grouped(F.silu(self.wide(x)))).mean(2)))


# --- modules ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (5, 3), "padding": (2, 1), "dilation": (1, 2), "bias": False},
        {"kernel_size": 4, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": "valid", "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        {"kernel_size": 5, "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 3, "padding": (1, 3), "padding_mode": "replicate", "stride": 2},
    ],
    ids=str,
)
def test_equals_conv2d(options, activation, mode):
    torchs = nn.Conv2d(6, 12, groups=6, **options)
    ours = DepthwiseConv2d(6, 12, activation=activation, **options)
    ours.load_state_dict(torchs.state_dict())
    for module in (torchs, ours):
        module.train(mode == "train")
    x = images(2, 6, 9, 11)
    with torch.inference_mode(mode == "inference"):
        y, expected = ours(x), ACTIVATIONS[activation](torchs(x))
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(ours(x[0]), expected[0])
    if mode != "inference":
        y.sin().sum().backward()
        expected.sin().sum().backward()
        for a, b in zip(ours.parameters(), torchs.parameters()):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 4, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": (5,), "padding": (2,), "dilation": (2,), "stride": (1,)},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_equals_conv1d(options, mode):
    torchs = nn.Conv1d(6, 12, groups=6, **options)
    ours = DepthwiseConv1d(6, 12, activation="relu", **options)
    ours.load_state_dict(torchs.state_dict())
    for module in (torchs, ours):
        module.train(mode == "train")
    x = torch.randn(2, 6, 23)
    with torch.inference_mode(mode == "inference"):
        torch.testing.assert_close(ours(x), torchs(x).relu())
        torch.testing.assert_close(ours(x[0]), torchs(x[0]).relu())


def test_is_a_conv2d():
    torch.manual_seed(1)
    ours = DepthwiseConv2d(6, 12, 3, 2, 1, groups=6, activation="silu", dtype=torch.float64)
    torch.manual_seed(1)
    torchs = nn.Conv2d(6, 12, 3, 2, 1, groups=6, dtype=torch.float64)
    assert isinstance(ours, nn.Conv2d)
    assert isinstance(DepthwiseConv1d(6, 12, 3), nn.Conv1d)
    assert list(ours.state_dict()) == list(torchs.state_dict()) == ["weight", "bias"]
    assert_exact(ours.weight, torchs.weight)
    names = "in_channels out_channels kernel_size stride padding dilation groups padding_mode transposed output_padding"
    for name in names.split():
        assert getattr(ours, name) == getattr(torchs, name), name
    assert repr(ours) == "Depthwise" + repr(torchs)[:-1] + ", activation=silu)"
    assert repr(DepthwiseConv2d(6, 12, 3)) == "Depthwise" + repr(nn.Conv2d(6, 12, 3, groups=6))
    assert repr(DepthwiseConv1d(6, 12, 3)) == "Depthwise" + repr(nn.Conv1d(6, 12, 3, groups=6))


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_four_paddings(mode):
    """(top, bottom, left, right) and strided "same", which nn.Conv2d does not know, in both padding modes."""
    pads = {"zeros": {}, "reflect": {"mode": "reflect"}}[mode]
    x = images(2, 4, 9, 8)
    own = DepthwiseConv2d(4, 4, 3, 2, (0, 1, 2, 1), padding_mode=mode)
    same = DepthwiseConv2d(4, 4, 3, 2, "same", padding_mode=mode)
    for module, sides in ((own, (2, 1, 0, 1)), (same, (0, 1, 1, 1))):
        expected = F.conv2d(F.pad(x, sides, **pads), module.weight, module.bias, 2, groups=4)
        torch.testing.assert_close(module(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(module.eval()(x), expected.detach())
            torch.testing.assert_close(module(x[..., 1:]).shape[-2:], module.train()(x[..., 1:]).shape[-2:])
    assert "padding=(0, 1, 2, 1)" in repr(own)
    line = DepthwiseConv1d(4, 4, 3, 2, (2, 1), padding_mode=mode)
    lines = DepthwiseConv1d(4, 4, 3, 2, "same", padding_mode=mode)
    for module, sides in ((line, (2, 1)), (lines, (0, 1))):
        expected = F.conv1d(F.pad(x[:, :, 0], sides, **pads), module.weight, module.bias, 2, groups=4)
        torch.testing.assert_close(module(x[:, :, 0]), expected)
        with torch.inference_mode():
            torch.testing.assert_close(module.eval()(x[:, :, 0]), expected.detach())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DepthwiseConv2d(4, 6, 3), ["out_channels", "multiple of in_channels = 4", "6"]),
        (lambda: DepthwiseConv2d(0, 4, 3), ["out_channels", "in_channels = 0"]),
        (lambda: DepthwiseConv2d(4, 4, 3, groups=2), ["groups", "4", "2"]),
        (lambda: DepthwiseConv2d(4, 4, 0), ["kernel_size", "positive", "0"]),
        (lambda: DepthwiseConv2d(4, 4, (3, 3, 3)), ["kernel_size", "(3, 3, 3)", "pair"]),
        (lambda: DepthwiseConv2d(4, 4, 3, 0), ["stride", "positive", "0"]),
        (lambda: DepthwiseConv2d(4, 4, 3, dilation=-1), ["dilation", "positive", "-1"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding=-1), ["padding", "negative", "-1"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding=(0, 0, 0, -1)), ["padding", "negative", "-1"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding=(1, 2, 3)), ["padding", "(1, 2, 3)", "(top, bottom, left, right)"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding="full"), ["padding", "full", "same", "valid"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding_mode="mirror"), ["padding_mode", "mirror", "reflect"]),
        (lambda: DepthwiseConv2d(4, 4, 3, activation="elu"), ["activation", "elu", "hardswish"]),
        (lambda: DepthwiseConv1d(4, 6, 3), ["out_channels", "multiple of in_channels = 4", "6"]),
        (lambda: DepthwiseConv1d(4, 4, 3, 0), ["stride", "positive", "0"]),
        (lambda: DepthwiseConv1d(4, 4, 3, padding=-1), ["padding", "negative", "-1"]),
        (lambda: DepthwiseConv1d(4, 4, 3, padding=(1, 2, 3)), ["padding", "(1, 2, 3)"]),
        (lambda: DepthwiseConv1d(4, 4, 3, activation="elu"), ["activation", "elu", "hardswish"]),
    ],
)
def test_bad_construction(make, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        make()
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DepthwiseConv2d(4, 4, 1.5), ["kernel_size", "1.5", "pair of ints"]),
        (lambda: DepthwiseConv2d(4, 4, 3, padding=1.5), ["padding", "1.5", "ints"]),
        (lambda: DepthwiseConv1d(4, 4, (3, 3)), ["kernel_size", "(3, 3)", "an int"]),
        (lambda: DepthwiseConv1d(4, 4, 3, (1, 2)), ["stride", "(1, 2)", "an int"]),
        (lambda: DepthwiseConv1d(4, 4, 3, padding=1.5), ["padding", "1.5", "ints"]),
    ],
)
def test_construction_with_a_wrong_type(make, words):
    with pytest.raises(TypeError, match=words[0]) as caught:
        make()
    for word in words:
        assert word in str(caught.value), caught.value


def test_bad_input():
    module = DepthwiseConv2d(4, 4, 3).eval()
    for x, words in (
        (torch.zeros(2, 5, 6, 6), ["input", "4 channels", "[2, 5, 6, 6]"]),
        (torch.zeros(2, 4, 6, 6).double(), ["dtype", "float64", "float32"]),
        (torch.zeros(2, 4, 6, 6, device="meta"), ["device", "meta"]),
        (torch.zeros(2, 4, 2, 6), ["height", "2", "3", "empty"]),
    ):
        with torch.inference_mode(), pytest.raises(RuntimeError) as caught:
            module(x)
        for word in words:
            assert word in str(caught.value), caught.value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_channels_are_not_taken_for_a_multiplier(multiplier, training):
    """The op alone would: 4 channels with a weight of 8 are a multiplier of 2."""
    for module, size in (
        (DepthwiseConv2d(8, 8 * multiplier, 3), (5, 5)),
        (DepthwiseConv1d(8, 8 * multiplier, 3), (5,)),
    ):
        module.train(training)
        for channels in (1, 2, 4, 16):
            for shape in ((2, channels, *size), (channels, *size)):
                with torch.set_grad_enabled(training), pytest.raises(RuntimeError, match="input must have 8 channels"):
                    module(torch.zeros(shape))
        assert module(torch.zeros(2, 8, *size)).shape[:2] == (2, 8 * multiplier)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": np.int64(2)},
        {"stride": (2,)},
        {"padding": np.int64(1)},
        {"padding": (1,)},
        {"dilation": (np.int32(2),)},
    ],
    ids=str,
)
def test_sizes_that_torch_takes(options):
    torch.manual_seed(0)
    model, x = nn.Conv2d(8, 8, 3, groups=8, **options), images(2, 8, 9, 9)
    expected = model(x)
    swap(model)
    torch.testing.assert_close(model(x), expected)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(x), expected)


def test_traced_with_same_padding():
    model, x = nn.Conv2d(8, 8, 3, padding="same", groups=8).eval(), images(2, 8, 9, 9)
    expected = model(x)
    swap(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # the padding becomes a constant
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), expected)


# --- the packed weight ------------------------------------------------------------------------------------------------
def assert_fresh(module, x=None) -> None:
    """An inference call takes the short path and says what the long one says."""
    x = images(2, module.in_channels, 8, 9).to(module.weight.dtype) if x is None else x
    module.eval()
    with torch.inference_mode():
        packed = module._inference(x)
        assert packed is not None, "the short path was not taken"
        if isinstance(module, (DepthwiseConv1d, DepthwiseConv2d)):
            assert packed.arguments[0].stride(0) == 1
            assert_exact(packed.arguments[0].reshape(module.weight.shape), module.weight)
        assert_exact(module(x), module._conv_forward(x, module.weight, module.bias))


MODULES = {
    "DepthwiseConv2d": lambda: DepthwiseConv2d(9, 18, (3, 2), padding=1, activation="silu"),
    "DepthwiseConv1d": lambda: DepthwiseConv1d(9, 18, 3, padding=1, activation="silu"),
    "PointwiseConv2d": lambda: PointwiseConv2d(9, 18, groups=3, activation="silu"),
    "DilatedConv2d": lambda: DilatedConv2d(9, 18, (3, 2), padding=1, activation="silu"),
    "DilatedConv2d 3x3": lambda: DilatedConv2d(9, 18, 3, padding=2, dilation=2, activation="silu"),
    "DilatedConv1d": lambda: DilatedConv1d(9, 18, 3, padding=1, activation="silu"),
}


@pytest.fixture(params=MODULES)
def module(request):
    """A module whose packed weight exists."""
    module = MODULES[request.param]().eval()
    shape = (2, 9, 8) if isinstance(module, nn.Conv1d) else (2, 9, 8, 9)
    module.x = lambda dtype=torch.float32: images(*shape).to(dtype)
    with torch.inference_mode():
        module(module.x())
    assert module._packed is not None
    return module


def write_through_numpy(module):
    module.weight.detach().numpy()[:] = 3


def write_without_version(module):
    before = module.weight._version
    module.weight.data.mul_(2)
    assert module.weight._version == before


def write_one_element(module):
    module.weight.data.view(-1)[-1] = 7


def optimize(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9, foreach=True)
    for _ in range(2):
        optimizer.zero_grad()
        module(module.x()).sum().backward()
        optimizer.step()


def load(module):
    module.load_state_dict({name: torch.randn_like(value) for name, value in module.state_dict().items()})


def assign(module):
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def to_half_and_back(module):
    module.half().float()


def replace_data(module):
    module.weight.data = torch.randn_like(module.weight)


def transpose_data(module):
    """The same memory and object, read in another order."""
    shape = module.weight.shape
    if module.weight.dim() == 4 and shape[2:] == (3, 2):
        module.weight.data = module.weight.data.reshape(*shape[:2], 2, 3)
    else:
        module.weight.data = module.weight.data.flip(0).transpose(0, -1).contiguous().transpose(0, -1)


def replace_parameter(module):
    module.weight = nn.Parameter(torch.randn_like(module.weight))


def in_inference_mode(module):
    with torch.inference_mode():
        module.weight.mul_(2)


def sign_of_zero(module):
    module.weight.data.zero_()
    assert_fresh(module, module.x())
    module.weight.data.neg_()


CHANGES = [write_through_numpy, write_without_version, write_one_element, optimize, load, assign, to_half_and_back,
           replace_data, transpose_data, replace_parameter, in_inference_mode, sign_of_zero]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_packed_weight_is_never_stale(module, change):
    module.train()
    change(module)
    assert_fresh(module, module.x())
    change(module)  # and without a change of mode between
    assert_fresh(module, module.x())


@compiled
@pytest.mark.parametrize("channels", [1, 3, 14, 15, 31, 64, 228])
def test_every_write_to_the_weight_is_seen(channels):
    """One bit anywhere, all signs, two values that change places: a write that is missed is a wrong answer."""
    module = DepthwiseConv2d(channels, channels, 3, groups=channels).eval()
    x = torch.randn(1, channels, 5, 5)
    values = module.weight.detach().flatten()
    bits, count = values.view(torch.int32), values.numel()

    def flip(i, bit):
        bits[i] ^= torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)

    def swap(i, j):
        values[[i, j]] = values[[j, i]]

    some = torch.randint(count, (60, 2)).tolist()
    writes = [functools.partial(flip, i, bit) for bit in range(32) for i in {0, count - 1, some[bit][0]}]
    writes += [functools.partial(swap, i, j) for i, j in some if values[i] != values[j]]
    writes += [lambda: values.neg_(), lambda: values.copy_(values.roll(1)), lambda: values.copy_(values.flip(0))]
    writes += [lambda: values[:2].neg_(), lambda: values.zero_(), lambda: values[-1:].neg_()]
    with torch.inference_mode():
        seen = module._inference(x)
        for write in writes:
            assert module._inference(x) is seen
            write()
            found = module._inference(x)
            assert found is not seen
            seen = found


@compiled
def test_a_frozen_weight_is_not_looked_at():
    """Neither a write nor its cost is seen, until the promise is taken back; restore() forgets it."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 3)).eval()
    x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)  # where each weight is packed
    swap(model, frozen=True)
    with torch.inference_mode():
        before = model(x)
        for module in model:
            assert module.frozen
            module.weight.data.mul_(2)
        assert_exact(model(x), before)
        for module in model:
            module.frozen = False
        assert not torch.equal(model(x), before)
        for module in model:
            module.frozen = True
        other = {name: -3 * value for name, value in model.state_dict().items()}
        model(x)
        model.load_state_dict(other)  # where writes are expected, they are seen
        fresh = copy.deepcopy(model)(x)
        assert_exact(model(x), fresh)
        model.train()
        for module in model:
            module.weight.data.mul_(2)
        model.eval()
        assert_exact(model(x), copy.deepcopy(model)(x))
    restore(model)
    assert all("frozen" not in module.__dict__ for module in model)
    swap(model)
    assert not any(module.frozen for module in model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_packed_weight_follows_dtype(module, dtype):
    module.to(dtype)
    assert_fresh(module, module.x(dtype))
    assert module._packed.source[1] == dtype
    module.float()
    assert_fresh(module, module.x())


def test_packed_weight_is_reused(module):
    """Nor is it made again without need."""
    with torch.inference_mode():
        first = module._inference(module.x())
        assert module._inference(module.x()) is first
    with torch.no_grad():
        assert module._inference(module.x()) is first
    module.train().eval()
    with torch.no_grad():
        assert module._inference(module.x()) is first


def test_packed_weight_is_used(module, monkeypatch):
    monkeypatch.setattr(module, "_conv_forward", None)
    with torch.inference_mode():
        module(module.x())


def test_packed_weight_travels_nowhere(module):
    x = module.x()
    del module.x
    assert list(module.state_dict()) == ["weight", "bias"]
    assert not list(module.buffers())
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))]
    copies.append(torch.load(buffer, weights_only=False))
    with torch.inference_mode():
        expected = module(x)
    for other in copies:
        assert "_packed" not in other.__dict__
        assert type(other) is type(module)
        assert other.activation == "silu"
        with torch.inference_mode():
            assert_exact(other(x), expected)
    for other in copies:
        other.weight.data.add_(1)
        assert_fresh(other, x)


def test_channels_last_module():
    module = DepthwiseConv2d(9, 9, 3).to(memory_format=torch.channels_last)
    assert_fresh(module)
    module.weight.data.mul_(2)
    assert_fresh(module)


def test_inference_tensors():
    """They have no version counter."""
    with torch.inference_mode():
        module = DepthwiseConv2d(4, 4, 3).eval()
        assert module.weight.is_inference()
    assert_fresh(module)
    with torch.inference_mode():
        module.weight.mul_(2)
    assert_fresh(module)


def test_packed_in_inference_mode_serves_outside():
    module = DepthwiseConv2d(4, 4, 3).eval().requires_grad_(False)
    with torch.inference_mode():
        module(images(1, 4, 5, 5))
    packed = module._packed
    y = module(images(1, 4, 5, 5))
    assert module._packed is packed
    assert not y.requires_grad
    assert not y.is_inference()


def test_gradients_take_the_long_path():
    module = DepthwiseConv2d(4, 4, 3).eval()
    x = images(1, 4, 5, 5)
    assert module._inference(x) is None
    module(x).sum().backward()
    assert module.weight.grad is not None
    module.requires_grad_(False)
    assert module._inference(x) is not None
    assert module._inference(x.requires_grad_()) is None
    module(x).sum().backward()
    assert x.grad is not None
    module.bias.requires_grad_()
    assert module._inference(x.detach()) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", (2, 2)), ("stride", 2), ("stride", [2, 1]), ("padding", (2, 1)), ("padding", (0, 1, 2, 0)),
     ("padding", 0), ("padding", "same"), ("dilation", (2, 1)), ("dilation", 2), ("activation", "relu"),
     ("padding_mode", "circular")],
)  # fmt: skip
def test_attributes_may_change(name, value):
    module, x = DepthwiseConv2d(4, 4, 3, padding=1).eval(), images(2, 4, 9, 9)
    with torch.inference_mode():
        before = module(x)
        setattr(module, name, value)
        after = module(x)
        assert_exact(after, module._conv_forward(x, module.weight, module.bias))
        assert after.shape != before.shape or not torch.equal(after, before) or value == "same"
        if isinstance(value, list):  # changed where identity does not show it
            value[:] = [1, 3]
            assert_exact(module(x), module._conv_forward(x, module.weight, module.bias))


def test_bias_may_change():
    module, x = DepthwiseConv2d(4, 4, 3).eval(), images(2, 4, 9, 9)
    with torch.inference_mode():
        module(x)
        module.bias.data.add_(1)
        assert_fresh(module, x)
        module.bias = None
        assert_fresh(module, x)


def test_pruned_and_parametrised():
    """The long path serves weights and biases that are computed."""
    import torch.nn.utils.parametrizations as parametrizations
    from torch.nn.utils import prune

    x = images(2, 4, 6, 6)
    with torch.inference_mode():
        for name in ("weight", "bias"):
            with torch.inference_mode(False):
                module = DepthwiseConv2d(4, 4, 3).eval()
            module(x)
            prune.random_unstructured(module, name, 0.5)
            torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias, groups=4))
    module = DepthwiseConv2d(4, 4, 3).eval()
    with torch.inference_mode():
        module(x)
    parametrizations.weight_norm(module)
    module.parametrizations.weight.original0.data.mul_(3)
    with torch.inference_mode():
        torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias, groups=4))


def test_functional_call_and_func_transforms():
    module, x = DepthwiseConv2d(4, 4, 3, activation="relu").eval(), images(2, 4, 6, 6)
    other = {"weight": torch.randn(4, 1, 3, 3), "bias": torch.randn(4)}
    expected = F.conv2d(x, other["weight"], other["bias"], groups=4).relu()
    with torch.no_grad():
        module(x)
        torch.testing.assert_close(torch.func.functional_call(module, other, x), expected)
        assert_fresh(module, x)
        stacked = {name: torch.stack([value, 2 * value]) for name, value in other.items()}
        y = torch.func.vmap(lambda p: torch.func.functional_call(module, p, x))(stacked)
        torch.testing.assert_close(y, torch.stack([expected, 2 * expected]))
        torch.testing.assert_close(torch.func.vmap(module)(x[:, None]), module(x)[:, None])
    got = torch.func.grad(lambda p: torch.func.functional_call(module, p, x).sum())(other)
    want = torch.func.grad(lambda p: F.conv2d(x, p["weight"], p["bias"], groups=4).relu().sum())(other)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    module, x = DepthwiseConv2d(4, 4, 3).eval(), images(2, 4, 6, 6)
    with torch.inference_mode():
        module(x)
        with torch.autocast("cpu", dtype=dtype):
            y = module(x)
        assert_exact(y, module.to(dtype)(x.to(dtype)))


def test_compile_export_trace():
    """None of them sees the packed weight: all keep the parameter."""
    module, x = DepthwiseConv2d(4, 4, 3, padding=1, activation="relu6").eval(), images(2, 4, 6, 6)
    with torch.no_grad():
        expected = module(x)
        graphs = []
        compiled = torch.compile(module, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
        exported = torch.export.export(module, (x,)).module()
        scripted = torch.fx.symbolic_trace(nn.Sequential(module))
        traced = torch.jit.trace(module, x)
        for other in (compiled, exported, scripted, traced):
            assert_exact(other(x), expected)
            assert [name.split(".")[-1] for name in sorted(dict(other.named_parameters()))] == ["bias", "weight"]
        for parameter in [*exported.parameters(), *scripted.parameters(), *traced.parameters(), *module.parameters()]:
            parameter.data.mul_(-1)
        assert len(graphs) == 1
        expected = F.relu6(F.conv2d(x, module.weight, module.bias, padding=1, groups=4))
        for other in (exported, compiled, traced):
            torch.testing.assert_close(other(x), expected) if other is exported else None
    assert torch.compile(module, fullgraph=True, backend="aot_eager")(x).requires_grad


# --- swap and restore -------------------------------------------------------------------------------------------------
def test_swap_and_restore():
    net, x = Net().eval(), images(2, 3, 12, 14)
    parameters, state = list(net.parameters()), {k: v.clone() for k, v in net.state_dict().items()}
    dicts = {name: dict(module.__dict__) for name, module in net.named_modules()}
    kinds = {name: type(module) for name, module in net.named_modules()}
    with torch.no_grad():
        expected = net(x)
        report = swap(net)
        names = ["stem", "depthwise", "wide", "grouped", "point", "line", "short"]
        assert report.replaced == names
        assert not report.left
        assert str(report).splitlines()[0] == (
            "swapped 7 modules (2 DilatedConv2d, 2 DepthwiseConv2d, 1 PointwiseConv2d, 1 DepthwiseConv1d, "
            "1 DilatedConv1d), left 0"
        )
        assert "  point: PointwiseConv2d" in str(report)
        assert type(net.depthwise) is type(net.wide) is DepthwiseConv2d
        assert type(net.line) is DepthwiseConv1d
        assert net.shared[0] is net.depthwise
        assert type(net.stem) is type(net.grouped) is DilatedConv2d
        assert type(net.point) is PointwiseConv2d
        assert type(net.short) is DilatedConv1d
        torch.testing.assert_close(net(x), expected)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert list(net.state_dict()) == list(state)
    again = swap(net)
    assert not again.replaced
    assert "already" in again.left["wide"]
    undone = restore(net)
    assert undone.replaced == names
    assert not undone.left
    assert {name: type(module) for name, module in net.named_modules()} == kinds
    assert {name: dict(module.__dict__) for name, module in net.named_modules()} == dicts
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    for name, value in net.state_dict().items():
        assert_exact(value, state[name])
    assert not restore(net).replaced


def test_swapped_training_equals_torchs():
    nets = [Net()]
    nets.append(copy.deepcopy(nets[0]))
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    swap(nets[1])
    for step in range(4):
        x = images(4, 3, 12, 14)
        losses = []
        for net, optimizer in zip(nets, optimizers):
            optimizer.zero_grad()
            losses.append(net(x).square().mean())
            losses[-1].backward()
            optimizer.step()
        torch.testing.assert_close(*losses)
        if step == 2:
            restore(nets[1])
    for a, b in zip(nets[0].parameters(), nets[1].parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert nets[0].training
    assert nets[1].depthwise.training


def test_swap_keeps_hooks_and_attributes():
    module, seen = nn.Conv2d(4, 4, 3, groups=4), []
    module.register_forward_hook(lambda *_: seen.append("forward"))
    module.register_forward_pre_hook(lambda *_: seen.append("pre"))
    module.register_full_backward_hook(lambda *_: seen.append("backward"))
    module.register_state_dict_pre_hook(lambda *_: seen.append("state"))
    module.register_buffer("extra", torch.ones(1))
    module.note = "mine"
    net = nn.Sequential(module)
    swap(net)
    net(images(1, 4, 5, 5).requires_grad_()).sum().backward()
    net.state_dict()
    assert seen == ["pre", "forward", "backward", "state"]
    assert net[0].note == "mine"
    assert list(net.state_dict()) == ["0.weight", "0.bias", "0.extra"]


def test_swap_the_model_itself():
    for module, x, kind in (
        (nn.Conv2d(4, 8, 3, groups=4), images(1, 4, 5, 5), DepthwiseConv2d),
        (nn.Conv1d(4, 8, 3, groups=4), torch.randn(1, 4, 5), DepthwiseConv1d),
    ):
        original, expected = type(module), module(x)
        report = swap(module)
        assert report.replaced == [""]
        assert "(the model)" in str(report)
        assert type(module) is kind
        torch.testing.assert_close(module(x), expected)
        restore(module)
        assert type(module) is original


def test_swap_copies_and_pickles():
    net = Net()
    swap(net)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other.wide) is DepthwiseConv2d
        assert restore(other).replaced == ["stem", "depthwise", "wide", "grouped", "point", "line", "short"]
        assert type(other.wide) is nn.Conv2d
    assert type(net.wide) is DepthwiseConv2d


def test_swap_leaves_what_it_does_not_know():
    from torch.nn.utils import parametrizations, prune, spectral_norm
    from torch.nn.utils import weight_norm as old_weight_norm

    class Mine(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    def conv(**options):
        return nn.Conv2d(4, 4, 3, groups=4, **options)

    patched = conv()
    patched.forward = lambda x: x
    quantised = torch.ao.nn.quantized.Conv2d(4, 4, 3, groups=4)
    with pytest.warns(FutureWarning):
        normed = old_weight_norm(conv())
    left = {
        "mine": (Mine(4, 4, 3, groups=4), "Mine"),
        "parametrised": (parametrizations.weight_norm(conv()), "parametrised"),
        "normed": (normed, "computed"),
        "spectral": (spectral_norm(conv()), "computed"),
        "pruned": (prune.random_unstructured(conv(), "weight", 0.5), "computed"),
        "pruned_bias": (prune.random_unstructured(conv(), "bias", 0.5), "computed"),
        "lazy": (nn.LazyConv2d(4, 3, groups=4), "lazy"),
        "quantised": (quantised, "quantised"),
        "qat": (torch.ao.nn.qat.Conv2d(4, 4, 3, groups=4, qconfig=torch.ao.quantization.default_qconfig), "quantised"),
        "patched": (patched, "forward is replaced"),
        "complex": (conv(dtype=torch.complex64), "complex64"),
        "own": (DepthwiseConv2d(4, 4, 3, activation="relu"), "already"),
        "point": (PointwiseConv2d(4, 4), "already"),
    }
    silent = {
        "transposed": nn.ConvTranspose1d(4, 4, 3, groups=4),
        "volume": nn.Conv3d(4, 4, 3, groups=4),
        "norm": nn.GroupNorm(2, 4),
    }
    net = nn.ModuleDict({**{name: module for name, (module, _) in left.items()}, **silent, "good": conv()})
    kinds = {name: type(module) for name, module in net.items()}
    report = swap(net)
    assert report.replaced == ["good"]
    assert set(report.left) == set(left)
    for name, (_, reason) in left.items():
        assert reason in report.left[name], (name, report.left[name])
        assert f"{name}: left, it" in str(report)
    assert {name: type(module) for name, module in net.items() if name != "good"} == {
        name: kind for name, kind in kinds.items() if name != "good"
    }
    assert restore(net).replaced == ["good"]
    assert type(net["own"]) is DepthwiseConv2d


@pytest.mark.parametrize("wanted", ["depthwise", "pointwise", "dense"])
def test_swap_only_what_is_asked_for(wanted):
    kinds = {
        "depthwise": ["depthwise", "wide", "line"],
        "pointwise": ["point"],
        "dense": ["stem", "grouped", "short"],
    }
    net, x = Net().eval(), images(2, 3, 12, 14)
    with torch.no_grad():
        expected = net(x)
        report = swap(net, **{kind: kind == wanted for kind in kinds})
        torch.testing.assert_close(net(x), expected)
    assert report.replaced == kinds[wanted]
    for kind in kinds.keys() - {wanted}:
        for name in kinds[kind]:
            assert report.left[name] == f"it is {kind}, which was not asked for"


def test_kinds_at_the_borders():
    """One input channel: depthwise in form, dense in intent. 1x1 depthwise; padded 1x1; 1-D with one tap."""
    net = nn.ModuleDict(
        {
            "gray": nn.Conv2d(1, 8, 3),
            "gray point": nn.Conv2d(1, 8, 1),
            "scale": nn.Conv2d(4, 4, 1, groups=4),
            "padded": nn.Conv2d(4, 8, 1, padding=1),
            "reflected": nn.Conv2d(4, 8, 1, padding=1, padding_mode="reflect"),
            "strided": nn.Conv2d(4, 8, 1, 2, groups=2),
            "tap": nn.Conv1d(4, 8, 1),
            "row": nn.Conv2d(4, 8, (1, 3), padding="same"),
        }
    )
    xs = {name: torch.randn(2, m.in_channels, *[9, 8][: len(m.kernel_size)]) for name, m in net.items()}
    expected = {name: net[name](x) for name, x in xs.items()}
    report = swap(net)
    assert report.kinds == {
        "gray": "DilatedConv2d",
        "gray point": "PointwiseConv2d",
        "scale": "DepthwiseConv2d",
        "padded": "PointwiseConv2d",
        "reflected": "PointwiseConv2d",
        "strided": "PointwiseConv2d",
        "tap": "DilatedConv1d",
        "row": "DilatedConv2d",
    }
    for name, x in xs.items():
        torch.testing.assert_close(net[name](x), expected[name])
        with torch.inference_mode():
            torch.testing.assert_close(net.eval()[name](x), expected[name])
            torch.testing.assert_close(net[name](x[0]), expected[name][0])


def test_lazy_is_swapped_once_it_is_known():
    net = nn.Sequential(nn.LazyConv2d(4, 3, groups=4))
    assert "lazy" in swap(net).left["0"]
    net(images(1, 4, 5, 5))
    assert swap(net).replaced == ["0"]


def test_restore_keeps_activations_and_later_parametrisations():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4))
    swap(net)
    net[0].activation = "relu"
    torch.nn.utils.parametrizations.weight_norm(net[1])
    report = restore(net)
    assert not report.replaced
    assert "relu" in report.left["0"]
    assert "parametrised" in report.left["1"]
    net[0].activation = "none"
    torch.nn.utils.parametrize.remove_parametrizations(net[1], "weight")
    assert restore(net).replaced == ["0", "1"]
    assert [type(module) for module in net] == [nn.Conv2d, nn.Conv2d]
    assert "activation" not in net[0].__dict__


def test_swapped_padding_modes():
    for mode in ("reflect", "replicate", "circular"):
        net = nn.Sequential(nn.Conv2d(4, 4, 5, padding=(2, 1), padding_mode=mode, groups=4))
        x = images(1, 4, 7, 8)
        expected = net(x)
        assert swap(net).replaced == ["0"]
        torch.testing.assert_close(net(x), expected)


def test_exported_names():
    assert pytorch_ext.swap is swap
    assert pytorch_ext.restore is restore
    assert {"nn", "swap", "restore"} <= set(pytorch_ext.__all__)
