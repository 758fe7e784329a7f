"""PointwiseConv2d, DilatedConv2d and DilatedConv1d are nn.Conv2d and nn.Conv1d in all but speed.

That their packed weight is never stale, and swap and restore: tests/test_nn.py, of every module.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from bounds import assert_exact
from dense import ACTIVATIONS
from torch import nn

import pytorch_ext
from pytorch_ext import _load
from pytorch_ext.nn import DilatedConv1d, DilatedConv2d, PointwiseConv2d

PARAMETERS = {"leaky_relu": 0.2, "elu": 0.7, "prelu": torch.rand(12)}


def images(*shape, last=True) -> torch.Tensor:
    form = torch.channels_last if last and len(shape) == 4 else torch.contiguous_format
    return torch.randn(shape).contiguous(memory_format=form)


def check_equals(ours, torchs, x, mode, activation="none", parameter=None) -> None:
    ours.load_state_dict(torchs.state_dict(), strict=activation != "prelu")
    for module in (torchs, ours):
        module.train(mode == "train")
    function = ACTIVATIONS[activation].function
    parameter = {"leaky_relu": 0.01, "elu": 1.0}.get(activation) if parameter is None else parameter
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        for _ in range(2):  # the second time, what was packed is there
            y = ours(x)
            expected = torchs(x)
            # a slope lies along the channels; of 1-D images too
            expected = (
                function(expected.unsqueeze(2), parameter).squeeze(2) if x.dim() == 3 else function(expected, parameter)
            )
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(ours(x[0]), expected[0])
    if mode == "train":
        y.sin().sum().backward()
        expected.sin().sum().backward()
        for name, parameter in torchs.named_parameters():
            torch.testing.assert_close(dict(ours.named_parameters())[name].grad, parameter.grad, atol=1e-4, rtol=1e-4)


MODES = ["train", "eval", "inference"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, mode):
    given = PARAMETERS.get(activation)
    more = {"activation": activation, "activation_parameter": given}
    check_equals(PointwiseConv2d(6, 12, **more), nn.Conv2d(6, 12, 1), images(2, 6, 9, 11), mode, activation, given)
    check_equals(DilatedConv2d(6, 12, 3, **more), nn.Conv2d(6, 12, 3), images(2, 6, 9, 11), mode, activation, given)
    check_equals(DilatedConv1d(6, 12, 3, **more), nn.Conv1d(6, 12, 3), images(2, 6, 11), mode, activation, given)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "groups": 3},
        {"stride": (1, 3), "bias": False},
        {"padding": 1},
        {"padding": (0, 2), "dilation": 2, "stride": 2, "groups": 2},
        {"padding": "same"},
        {"padding": "valid", "stride": (2, 1)},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_pointwise_equals_conv2d(options, mode, last):
    torchs = nn.Conv2d(6, 12, 1, **options)
    check_equals(PointwiseConv2d(6, 12, 1, **options), torchs, images(2, 6, 9, 11, last=last), mode)


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": 6, "dilation": 6, "groups": 3},
        {"kernel_size": (5, 3), "padding": (2, 1), "dilation": (1, 2), "bias": False},
        {"kernel_size": 4, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": "valid", "stride": (2, 1)},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
        {"kernel_size": 5, "padding": "same", "padding_mode": "circular"},
        {"kernel_size": 3, "padding": (1, 3), "padding_mode": "replicate", "stride": 2},
    ],
    ids=str,
)
def test_dilated_equals_conv2d(options, mode, last):
    torchs = nn.Conv2d(6, 12, **options)
    check_equals(DilatedConv2d(6, 12, **options), torchs, images(2, 6, 9, 11, last=last), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 4, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": (5,), "padding": (2,), "dilation": (2,), "stride": (1,), "groups": 3},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
    ],
    ids=str,
)
def test_equals_conv1d(options, mode):
    check_equals(DilatedConv1d(6, 12, **options), nn.Conv1d(6, 12, **options), torch.randn(2, 6, 23), mode)


def test_paddings_that_torch_does_not_know():
    """(top, bottom, left, right) and strided "same"."""
    x = images(2, 4, 9, 8)
    own, same = DilatedConv2d(4, 6, 3, 2, (0, 1, 2, 1)), DilatedConv2d(4, 6, 3, 2, "same")
    point = PointwiseConv2d(4, 6, 1, 2, (0, 1, 2, 1))
    for module, sides in ((own, (2, 1, 0, 1)), (same, (0, 1, 1, 1)), (point, (2, 1, 0, 1))):
        expected = F.conv2d(F.pad(x, sides), module.weight, module.bias, 2)
        torch.testing.assert_close(module(x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(module.eval()(x), expected.detach())
            torch.testing.assert_close(module(x[..., 1:]).shape[-2:], module.train()(x[..., 1:]).shape[-2:])
    line = DilatedConv1d(4, 6, 3, 2, "same")
    expected = F.conv1d(F.pad(x[:, :, 0], (0, 1)), line.weight, line.bias, 2)
    torch.testing.assert_close(line(x[:, :, 0]), expected)
    with torch.inference_mode():
        torch.testing.assert_close(line.eval()(x[:, :, 0]), expected.detach())


def test_is_a_conv2d():
    for make, name, options in (
        (lambda: PointwiseConv2d(6, 12, 1, 2, groups=2, dtype=torch.float64), "Pointwise", {"kernel_size": 1}),
        (lambda: DilatedConv2d(6, 12, 3, 2, groups=2, dtype=torch.float64), "Dilated", {"kernel_size": 3}),
    ):
        torch.manual_seed(1)
        ours = make()
        torch.manual_seed(1)
        torchs = nn.Conv2d(6, 12, stride=2, groups=2, dtype=torch.float64, **options)
        assert isinstance(ours, nn.Conv2d)
        assert list(ours.state_dict()) == list(torchs.state_dict()) == ["weight", "bias"]
        assert_exact(ours.weight, torchs.weight)
        for attribute in [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]:
            assert getattr(ours, attribute) == getattr(torchs, attribute), attribute
        assert repr(ours) == name + repr(torchs)
    assert isinstance(DilatedConv1d(6, 12, 3), nn.Conv1d)
    assert repr(PointwiseConv2d(2, 4, activation="elu", activation_parameter=0.5)) == (
        "PointwiseConv2d(2, 4, kernel_size=(1, 1), stride=(1, 1), activation=elu, activation_parameter=0.5)"
    )
    assert repr(DilatedConv2d(2, 4, 3, algorithm="winograd4")) == (
        "DilatedConv2d(2, 4, kernel_size=(3, 3), stride=(1, 1), algorithm=winograd4)"
    )


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_shuffle(mode, padding):
    ours = PointwiseConv2d(6, 12, 1, 1, padding, groups=3, activation="relu", shuffle=4).train(mode == "train")
    x = images(2, 6, 5, 7)
    with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "train"):
        z = F.conv2d(x, ours.weight, ours.bias, padding=padding, groups=3).relu()
        expected = nn.ChannelShuffle(4)(z)
        torch.testing.assert_close(ours(x), expected)
        torch.testing.assert_close(ours(x[0]), expected[0])
    assert repr(ours).endswith(", activation=relu, shuffle=4)")


def test_slopes_of_prelu_are_learned():
    x = images(2, 4, 5, 5)
    for given, shape in ((None, [6]), (0.1, [6]), (torch.rand(6), [6]), (torch.rand(1), [1])):
        module = PointwiseConv2d(4, 6, activation="prelu", activation_parameter=given)
        slopes = module.activation_parameter
        assert isinstance(slopes, nn.Parameter)
        assert list(slopes.shape) == shape
        assert list(module.state_dict()) == ["weight", "bias", "activation_parameter"]
        expected = F.prelu(F.conv2d(x, module.weight, module.bias), slopes)
        torch.testing.assert_close(module(x), expected)
        (gradient,) = torch.autograd.grad(module(x).square().sum(), slopes)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), slopes)[0])
        with torch.inference_mode():
            torch.testing.assert_close(module.eval()(x), expected.detach())
            slopes.mul_(3)  # is seen at once
            torch.testing.assert_close(module(x), F.prelu(F.conv2d(x, module.weight, module.bias), slopes))
    assert module.double().activation_parameter.dtype == torch.float64
    assert torch.equal(PointwiseConv2d(4, 6, activation="prelu").activation_parameter, torch.full((6,), 0.25))


V, T = ValueError, TypeError


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PointwiseConv2d(4, 6, 3), V, ["kernel_size", "1", "3"]),
        (lambda: PointwiseConv2d(4, 6, (1, 2)), V, ["kernel_size", "(1, 2)"]),
        (lambda: PointwiseConv2d(4, 6, groups=3), V, ["in_channels", "groups"]),
        (lambda: PointwiseConv2d(4, 6, stride=0), V, ["stride", "positive", "0"]),
        (lambda: PointwiseConv2d(4, 6, padding=-1), V, ["padding", "negative", "-1"]),
        (lambda: PointwiseConv2d(4, 6, activation="mish"), V, ["activation", "mish", "hardswish"]),
        (lambda: PointwiseConv2d(4, 6, activation="relu", activation_parameter=1.0), V, ["relu has no parameter"]),
        (lambda: PointwiseConv2d(4, 6, activation="elu", activation_parameter="1"), T, ["activation_parameter", "'1'"]),
        (
            lambda: PointwiseConv2d(4, 6, activation="prelu", activation_parameter=torch.zeros(4)),
            V,
            ["activation_parameter", "[6] or [1]", "[4]"],
        ),
        (lambda: PointwiseConv2d(4, 6, shuffle=4), V, ["shuffle", "out_channels = 6", "4"]),
        (lambda: PointwiseConv2d(4, 6, shuffle=0), V, ["shuffle", "out_channels = 6", "0"]),
        (lambda: DilatedConv2d(4, 6, 3, groups=4), V, ["out_channels", "groups"]),
        (lambda: DilatedConv2d(4, 6, 0), V, ["kernel_size", "positive", "0"]),
        (lambda: DilatedConv2d(4, 6, (3, 3, 3)), V, ["kernel_size", "(3, 3, 3)", "pair"]),
        (lambda: DilatedConv2d(4, 6, 3, dilation=-1), V, ["dilation", "positive", "-1"]),
        (lambda: DilatedConv2d(4, 6, 3, padding=(1, 2, 3)), V, ["padding", "(1, 2, 3)", "(top, bottom, left, right)"]),
        (lambda: DilatedConv2d(4, 6, 3, padding="full"), V, ["padding", "full", "same", "valid"]),
        (lambda: DilatedConv2d(4, 6, 3, padding_mode="mirror"), V, ["padding_mode", "mirror", "reflect"]),
        (lambda: DilatedConv2d(4, 6, 3, algorithm="fft"), V, ["algorithm", "fft", "winograd4"]),
        (lambda: DilatedConv2d(4, 6, 1.5), T, ["kernel_size", "1.5", "pair of ints"]),
        (lambda: DilatedConv1d(4, 6, 3, padding=(1, 2, 3)), V, ["padding", "(1, 2, 3)"]),
        (lambda: DilatedConv1d(4, 6, (3, 3)), T, ["kernel_size", "(3, 3)", "an int"]),
        (lambda: DilatedConv1d(4, 6, 3, algorithm="direct"), T, ["algorithm"]),
    ],
)
def test_bad_construction(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), caught.value


@pytest.mark.parametrize("training", [True, False])
def test_bad_input(training):
    for module, size in (
        (PointwiseConv2d(4, 6), (6, 6)),
        (DilatedConv2d(4, 6, 3), (6, 6)),
        (DilatedConv1d(4, 6, 3), (6,)),
    ):
        module.train(training)
        for x, words in (
            (torch.zeros(2, 5, *size), ["input", "4 channels", f"[2, 5, {size[0]}"]),
            (torch.zeros(5, *size), ["input", "4 channels"]),
            (torch.zeros(2, 4, *size).double(), ["dtype", "float64", "float32"]),
            (torch.zeros(2, 4, *size, device="meta"), ["device", "meta"]),
        ):
            with torch.set_grad_enabled(training), pytest.raises(RuntimeError) as caught:
                module(x)
            for word in words:
                assert word in str(caught.value), caught.value


# --- the packed weight ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [lambda: PointwiseConv2d(9, 18), lambda: DilatedConv2d(9, 18, 3, padding=1)])
def test_packed_for_every_input(make):
    """Layouts, batches and sizes of inputs take turns; a module that lives in channels_last has its weight so too."""
    module = make().eval()
    for format in (torch.contiguous_format, torch.channels_last):
        module.to(memory_format=format)
        with torch.inference_mode():
            for turn in range(3):
                for shape in [
                    (1, 9, 8, 8),
                    (2, 9, 8, 8),
                    (1, 9, 5, 7),
                    (3, 9, 1, 4),
                    *[(1, 9, 4, 4 + i) for i in range(turn * 5)],
                ]:
                    for last in (True, False):
                        x = images(*shape, last=last)
                        y = module(x)
                        assert_exact(y, module._conv_forward(x, module.weight, module.bias))
                        assert module._packed is not None
                        assert 1 <= len(module._packed.kept) <= 8


def test_packed_weights_that_are_equal_are_kept_once():
    module = PointwiseConv2d(32, 48).eval()
    with torch.inference_mode():
        for size in range(4, 9):
            module(images(1, 32, size, size))
    assert len(module._packed.kept) == 5
    assert len({t.data_ptr() for t in module._packed.kept.values()}) == 1


@pytest.mark.skipif("cpu" not in _load.libraries, reason="without the compiled library nothing is packed")
@pytest.mark.parametrize(
    ("module", "x"),
    [
        (PointwiseConv2d(32, 48), images(1, 32, 14, 14)),
        (DilatedConv2d(32, 48, 3, padding=1), images(1, 32, 14, 14)),
        (DilatedConv1d(32, 48, 3, padding=1), torch.randn(1, 32, 14)),
    ],
    ids=["pointwise", "dilated", "1d"],
)
def test_packed_weight_is_passed_on(module, x, monkeypatch):
    """The long path is not entered, and the op is given what `pack` gave."""
    from torch.utils._python_dispatch import TorchDispatchMode

    module.eval()
    with torch.inference_mode():
        expected = module(x)
        (packed,) = module._packed.kept.values()
        calls = []

        class Log(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                calls.append((func, args))
                return func(*args, **(kwargs or {}))

        from pytorch_ext.nn import _convolution

        monkeypatch.setattr(module, "_conv_forward", None)
        monkeypatch.setattr(_convolution, "_dispatch_modes", lambda: 0)
        with Log():
            y = module(x)
    (call,) = [args for func, args in calls if func.namespace == "pytorch_ext"]
    assert call[-1] is packed
    assert_exact(y, expected)


def test_frozen_weight_is_not_compared():
    """As was promised, and only then: load_state_dict is not seen until the promise is taken back."""
    module, x = PointwiseConv2d(32, 48).eval(), images(1, 32, 7, 7)
    with torch.inference_mode():
        module(x)
        module.frozen = True
        packed = module._inference(x)
        module.weight.data.mul_(2)
        assert module._inference(x) is packed
        module.frozen = False
        assert_exact(module(x), module._conv_forward(x, module.weight, module.bias))
    module.frozen = True
    with torch.inference_mode():
        module.double()  # another dtype is another weight
        torch.testing.assert_close(module(x.double()), F.conv2d(x.double(), module.weight, module.bias))


def test_autocast_takes_the_long_path():
    for module in (PointwiseConv2d(4, 6).eval(), DilatedConv2d(4, 6, 3).eval()):
        x = images(2, 4, 6, 6)
        with torch.inference_mode():
            module(x)
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cpu", dtype=dtype):
                    y = module(x)
                assert_exact(y, copy.deepcopy(module).to(dtype)(x.to(dtype)))
            assert module(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value"),
    [("stride", (2, 2)), ("stride", 2), ("stride", [2, 1]), ("padding", (2, 1)), ("padding", (0, 1, 2, 0)),
     ("padding", 0), ("padding", "same"), ("dilation", (2, 1)), ("dilation", 2), ("activation", "gelu"),
     ("padding_mode", "circular"), ("algorithm", "winograd2")],
)  # fmt: skip
def test_attributes_may_change(name, value):
    for module in (DilatedConv2d(4, 6, 3, padding=1).eval(), PointwiseConv2d(4, 6, padding=1).eval()):
        x = images(2, 4, 9, 9)
        with torch.inference_mode():
            module(x)
            setattr(module, name, value)
            assert_exact(module(x), module._conv_forward(x, module.weight, module.bias))
            if isinstance(value, list):  # changed where identity does not show it
                value[:] = [1, 3]
                assert_exact(module(x), module._conv_forward(x, module.weight, module.bias))


def test_compile_export_trace():
    """None of them sees the packed weight: all keep the parameter."""
    for module in (PointwiseConv2d(4, 6, activation="relu6"), DilatedConv2d(4, 6, 3, padding=1, activation="elu")):
        x = images(2, 4, 6, 6)
        module.eval()
        with torch.no_grad():
            expected = module(x)
            compiled = torch.compile(module, fullgraph=True, backend="eager")
            exported = torch.export.export(module, (x,)).module()
            scripted = torch.fx.symbolic_trace(nn.Sequential(module))
            traced = torch.jit.trace(module, x)
            for other in (compiled, exported, scripted, traced):
                assert_exact(other(x), expected)
                assert [name.split(".")[-1] for name in sorted(dict(other.named_parameters()))] == ["bias", "weight"]
        assert torch.compile(module, fullgraph=True, backend="aot_eager")(x).requires_grad


def test_copies_and_pickles():
    module = DilatedConv2d(4, 6, 3, activation="prelu", algorithm="winograd4").eval()
    x = images(2, 4, 6, 6)
    with torch.inference_mode():
        expected = module(x)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert "_packed" not in other.__dict__
            assert other.algorithm == "winograd4"
            assert_exact(other(x), expected)


def test_restore_takes_back_what_was_added():
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 1))
    before = [dict(module.__dict__) for module in net]
    pytorch_ext.swap(net)
    net[0].algorithm, net[1].frozen = "direct", True
    with torch.inference_mode():
        net.eval()(images(1, 4, 6, 6))
    net.train()
    net[1].shuffle = 2
    report = pytorch_ext.restore(net)
    assert report.replaced == ["0"]
    assert "shuffles" in report.left["1"]
    net[1].shuffle = 1
    assert pytorch_ext.restore(net).replaced == ["1"]
    assert [dict(module.__dict__) for module in net] == before
