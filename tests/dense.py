"""What the tests of pointwise_conv2d and dilated_conv2d share: the formula in float64, layers, and their judge."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from bounds import assert_exact, assert_linear, assert_nonlinear, eps_sum
from convolution import Geometry, assert_format, lay, pad
from torch import Tensor

OPS = torch.ops.pytorch_ext
BACKWARD_INPUT = OPS.dilated_conv2d_backward_input.default
BACKWARD_WEIGHT = OPS.dilated_conv2d_backward_weight.default


# --- activations ------------------------------------------------------------------------------------------------------
class Activation(NamedTuple):
    function: Any  # of z and its parameter
    lipschitz: Any  # a bound, of the parameter
    linear: bool = False  # piecewise: nothing but a product is rounded


def _one(parameter) -> float:
    return 1.0


def _slope(parameter) -> float:
    return max(1.0, float(parameter.abs().max()) if isinstance(parameter, Tensor) else abs(parameter))


ACTIVATIONS = {
    "none": Activation(lambda z, _: z, _one, True),
    "relu": Activation(lambda z, _: F.relu(z), _one, True),
    "relu6": Activation(lambda z, _: F.relu6(z), _one, True),
    "silu": Activation(lambda z, _: F.silu(z), lambda _: 1.1),
    "hardswish": Activation(lambda z, _: F.hardswish(z), lambda _: 1.5),
    "hardsigmoid": Activation(lambda z, _: F.hardsigmoid(z), lambda _: 1 / 6),
    "sigmoid": Activation(lambda z, _: torch.sigmoid(z), lambda _: 0.25),
    "tanh": Activation(lambda z, _: torch.tanh(z), _one),
    "gelu": Activation(lambda z, _: F.gelu(z), lambda _: 1.13),
    "gelu_tanh": Activation(lambda z, _: F.gelu(z, approximate="tanh"), lambda _: 1.13),
    "leaky_relu": Activation(lambda z, a: F.leaky_relu(z, a), _slope, True),
    "elu": Activation(lambda z, a: F.elu(z, a), _slope),
    "prelu": Activation(lambda z, s: torch.where(z > 0, z, z * s[:, None, None]), _slope, True),
}
PLAIN = [name for name in ACTIVATIONS if name not in ("leaky_relu", "elu", "prelu")]  # those without a parameter
KINKS = {"relu": [0], "relu6": [0, 6], "hardswish": [-3, 3], "hardsigmoid": [-3, 3], "leaky_relu": [0], "elu": [0],
         "prelu": [0]}  # fmt: skip


# --- the formula, in float64 ------------------------------------------------------------------------------------------
def conv64(x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> Tensor:
    """A product of matrices for each tap."""
    (n, _, ih, iw), (co, ci, kh, kw) = x.shape, w.shape
    oh, ow = geometry.output(ih, iw, kh, kw)
    y, w = x.new_zeros(n, groups, co // groups, oh * ow), w.unflatten(0, (groups, -1))
    for u, v, part in geometry.taps(pad(x, geometry.padding), kh, kw, oh, ow):
        y += w[..., u, v] @ part.unflatten(1, (groups, ci)).flatten(3)
    return y.view(n, co, oh, ow)


def backward_input64(dy: Tensor, w: Tensor, ih, iw, geometry: Geometry, groups: int) -> Tensor:
    (n, _, oh, ow), (_, ci, kh, kw) = dy.shape, w.shape
    top, bottom, left, right = geometry.padding
    dx, w = dy.new_zeros(n, groups * ci, ih + top + bottom, iw + left + right), w.unflatten(0, (groups, -1))
    dy = dy.unflatten(1, (groups, -1)).flatten(3)
    for u, v, part in geometry.taps(dx, kh, kw, oh, ow):
        part += (w[..., u, v].transpose(1, 2) @ dy).view(part.shape)
    return pad(dx, (-top, -bottom, -left, -right))


def backward_weight64(dy: Tensor, x: Tensor, kh, kw, geometry: Geometry, groups: int) -> tuple[Tensor, Tensor]:
    co, ci = dy.shape[1], x.shape[1] // groups
    dw, by_group = dy.new_zeros(co, ci, kh, kw), dy.unflatten(1, (groups, -1)).flatten(3)
    for u, v, part in geometry.taps(pad(x, geometry.padding), kh, kw, *dy.shape[2:]):
        dw[..., u, v] = (by_group @ part.unflatten(1, (groups, ci)).flatten(3).transpose(2, 3)).sum(0).flatten(0, 1)
    return dw, dy.sum((0, 2, 3))


def shuffled(y: Tensor, groups: int) -> Tensor:
    return y if groups == 1 else y.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


# --- layers -----------------------------------------------------------------------------------------------------------
class Fused(NamedTuple):
    """What is put before and behind a convolution."""

    activation: str = "none"
    bias: bool = True
    scale: bool = False
    residual: str | None = None  # "before" or "after" the activation
    gate: bool = False
    one_slope: bool = False  # prelu: one for all channels
    parameter: float | None = None  # leaky_relu, elu
    input_activation: str = "none"
    input_gate: bool = False
    shuffle: int = 1


EVERYTHING = Fused("silu", True, True, "after", True)
CLAMPED = Fused("relu6")


@dataclass
class Layer:
    """One call of an op: options are the public function's keywords, from `activation` on; bias is among them."""

    x: Tensor
    w: Tensor
    geometry: Geometry
    groups: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.x.shape[0], self.w.shape[0], *self.geometry.output(*self.x.shape[2:], *self.w.shape[2:])

    def epilogue(self) -> tuple:
        """As the raw op takes it: activation, alpha, slope, scale, residual, residual_first, gate."""
        o = self.options
        parameter, activation = o.get("activation_parameter"), o.get("activation", "none")
        slope = parameter if activation == "prelu" else None
        alpha = {"leaky_relu": 0.01, "elu": 1.0}.get(activation, 0.0) if parameter is None else parameter
        return (activation, 0.0 if slope is not None else alpha, slope, o.get("scale"), o.get("residual"),
                o.get("residual_first", False), o.get("gate"))  # fmt: skip


def make_layer(shape, co, k, geometry, groups, fused: Fused, *, dtype, layout, weight_layout="contiguous") -> Layer:
    """Random tensors; vectors have strides of their own where weights do, residuals the layout of x."""
    layer = Layer(lay(shape, dtype, layout), lay_weight((co, shape[1] // groups, *k), dtype, weight_layout), geometry,
                  groups)  # fmt: skip
    far = 1 if weight_layout == "contiguous" else 2

    def some(*sizes):
        return torch.randn(*sizes[:-1], far * sizes[-1]).to(dtype)[..., ::far]

    options: dict[str, Any] = {"activation": fused.activation}
    if fused.activation == "prelu":
        options["activation_parameter"] = some(1 if fused.one_slope else co)
    elif fused.parameter is not None:
        options["activation_parameter"] = fused.parameter
    if fused.bias:
        options["bias"] = some(co)
    if fused.scale:
        options["scale"] = some(co)
    if fused.residual:
        options["residual"] = lay(layer.y_shape, dtype, layout)
        options["residual_first"] = fused.residual == "before"
    if fused.gate:
        options["gate"] = some(shape[0], co)
    if fused.input_activation != "none":
        options["input_activation"] = fused.input_activation
    if fused.input_gate:
        options["input_gate"] = some(*shape[:2])
    if fused.shuffle != 1:
        options["shuffle"] = fused.shuffle
    layer.options = options
    return layer


def lay_weight(shape, dtype: torch.dtype, layout: str) -> Tensor:
    co, ci, kh, kw = shape
    if layout == "channels_last":
        return torch.randn(co, kh, kw, ci).to(dtype).permute(0, 3, 1, 2)
    if layout == "packed":
        return torch.randn(kh, kw, ci, co).to(dtype).permute(3, 2, 0, 1)
    if layout == "transposed":
        return torch.randn(ci, co, kh, kw).to(dtype).transpose(0, 1)
    if layout == "sliced":
        return torch.randn(2 * co, ci + 1, kh + 1, 2 * kw).to(dtype)[::2, 1:, 1:, ::2]
    if layout == "expanded":
        return torch.randn(co, 1, 1, 1).to(dtype).expand(co, ci, kh, kw)
    assert layout == "contiguous"
    return torch.randn(shape).to(dtype)


WEIGHT_LAYOUTS = ("contiguous", "channels_last", "packed", "transposed", "sliced", "expanded")


# --- the judge --------------------------------------------------------------------------------------------------------
def wide(t: Any) -> Any:
    return t.double() if isinstance(t, Tensor) else t


class Expected(NamedTuple):
    y: Tensor  # in float64
    magnitude: Tensor  # of what is summed, through everything behind it
    terms: int
    chain: Tensor  # sqrt(terms) * sqrt(sum of squares): of a chain of additions of random signs, what rounding adds to
    scale: float  # of the sums alone
    gain: Tensor  # what an error of a sum is multiplied by at most, until it is in y


def expected(layer: Layer) -> Expected:
    """The formula, and how large its parts are.

    Each operation behind the sums counts as a term, an activation that is not piecewise linear as four: what it gives
    is then part of the magnitude, so that it may be off by 4 units in the last place.
    """
    o = {name: wide(value) for name, value in layer.options.items()}
    x, w, terms = wide(layer.x), wide(layer.w), layer.w[0].numel() + 1
    rough = x.abs()
    if (name := o.get("input_activation", "none")) != "none":
        x = ACTIVATIONS[name].function(x, None)
        rough, terms = (x.abs(), terms) if ACTIVATIONS[name].linear else (torch.maximum(x.abs(), rough), terms + 4)
    if (gate := o.get("input_gate")) is not None:
        x, rough, terms = x * gate[..., None, None], rough * gate.abs()[..., None, None], terms + 1
    sums = conv64(x, w, layer.geometry, layer.groups)
    magnitude = conv64(rough, w.abs(), layer.geometry, layer.groups)
    typical = conv64(rough.square(), w.square(), layer.geometry, layer.groups).sqrt()
    chain = typical * layer.w[0].numel() ** 0.5
    scale = float(torch.maximum(sums.abs(), typical).max()) if sums.numel() and not sums.is_meta else 0.0
    gain = torch.ones_like(sums)
    if (vector := o.get("scale")) is not None:
        vector = vector[:, None, None]
        sums, magnitude, gain, terms = sums * vector, magnitude * vector.abs(), gain * vector.abs(), terms + 1
    if (bias := o.get("bias")) is not None:
        sums, magnitude, terms = sums + bias[:, None, None], magnitude + bias.abs()[:, None, None], terms + 1
    residual = o.get("residual")
    if residual is not None and o.get("residual_first"):
        sums, magnitude, terms = sums + residual, magnitude + residual.abs(), terms + 1
    activation = o.get("activation", "none")
    parameter = o.get("activation_parameter")
    parameter = {"leaky_relu": 0.01, "elu": 1.0}.get(activation) if parameter is None else parameter
    function, lipschitz, linear = ACTIVATIONS[activation]
    y, bound = function(sums, parameter), 1.0 if sums.is_meta else lipschitz(parameter)
    magnitude, gain, terms = magnitude * bound, gain * bound, terms + 1
    if not linear:
        magnitude, terms = magnitude + y.abs(), terms + 3
    if residual is not None and not o.get("residual_first"):
        y, magnitude, terms = y + residual, magnitude + residual.abs(), terms + 1
    if (gate := o.get("gate")) is not None:
        factor = gate[..., None, None]
        y, magnitude, gain, terms = y * factor, magnitude * factor.abs(), gain * factor.abs(), terms + 1
    groups = o.get("shuffle", 1)
    y, magnitude, chain, gain = (shuffled(t, groups) for t in (y, magnitude, chain, gain))
    return Expected(y, magnitude, terms, chain, scale, gain)


def judge(y: Tensor, layer: Layer, want: Expected, winograd: float = 0.0) -> None:
    """Bound 2; winograd is what the sums may be off besides, over their scale."""
    assert y.dtype == layer.x.dtype
    if not y.is_meta:  # tests/gpu_budget.py only asks which ops are called
        assert_linear(y, want.y, want.magnitude, want.terms, besides=winograd * want.scale * want.gain)


def torchs(layer: Layer, rounded: bool = False) -> Tensor:
    """What torch makes of it in the same dtype, 16-bit with one rounding, which is the best it can do; or rounded
    before and after the activation, as its modules are."""
    dtype = layer.x.dtype
    to = torch.float64 if dtype == torch.float64 else torch.float32
    o = {name: value.to(to) if isinstance(value, Tensor) else value for name, value in layer.options.items()}
    stride, padding, dilation = layer.geometry
    x = ACTIVATIONS[o.get("input_activation", "none")].function(layer.x.to(to), None)
    if o.get("input_gate") is not None:
        x = x * o["input_gate"][..., None, None]
    z = F.conv2d(pad(x, padding).contiguous(), layer.w.to(to).contiguous(), None, stride, 0, dilation, layer.groups)
    if o.get("scale") is not None:
        z = z * o["scale"][:, None, None]
    if o.get("bias") is not None:
        z = z + o["bias"][:, None, None]
    if o.get("residual") is not None and o.get("residual_first"):
        z = z + o["residual"]
    activation, parameter = o.get("activation", "none"), o.get("activation_parameter")
    parameter = {"leaky_relu": 0.01, "elu": 1.0}.get(activation) if parameter is None else parameter
    if rounded:
        z, parameter = z.to(dtype), parameter.to(dtype) if isinstance(parameter, Tensor) else parameter
    y = ACTIVATIONS[activation].function(z, parameter)
    if o.get("residual") is not None and not o.get("residual_first"):
        y = y + o["residual"]
    if o.get("gate") is not None:
        y = y * o["gate"][..., None, None]
    return shuffled(y, o.get("shuffle", 1)).to(dtype)


def judge_of_random_signs(y: Tensor, layer: Layer, want: Expected) -> None:
    """Far tighter than bound 2: no sum is rounded worse than one chain of float32 additions, whose partial sums walk at
    random. Rounding k times at sqrt(k) * sigma adds to 0.2 * eps * terms * sigma (a standard deviation): 6 of them are
    allowed, and bound 2 for what comes behind the sums."""
    if not y.is_meta:
        behind = want.terms - layer.w[0].numel()
        walk = 1.2 * eps_sum(y.dtype) * want.chain * want.gain
        assert_linear(y, want.y, want.y.abs() + want.gain * want.scale, behind, besides=walk)


def judge_against_torch(y: Tensor, layer: Layer, want: Expected) -> None:
    if not y.is_meta and y.dtype != torch.float64:  # for which there is no better reference
        assert_nonlinear(y, want.y, torchs(layer))


def check_out(call, layer: Layer, want: Expected, winograd: float = 0.0) -> None:
    """call(out=) into a slice of the channels of larger images, in both layouts; all around stays as it was."""
    n, co, oh, ow = layer.y_shape
    for last in (False, True):
        whole = torch.full((n, oh, ow, co + 5) if last else (n, co + 5, oh, ow), -77.0, dtype=layer.x.dtype)
        whole = whole.permute(0, 3, 1, 2) if last else whole
        before, y, after = whole.split([2, co, 3], 1)
        result = call(out=y)
        assert result is None or result is y
        judge(y, layer, want, winograd)
        for around in (before, after):
            if not y.is_meta:
                assert_exact(around, torch.full_like(around, -77.0))


def check_backward(dy: Tensor, x: Tensor, w: Tensor, geometry: Geometry, groups: int) -> None:
    (_, _, ih, iw), (_, _, kh, kw) = x.shape, w.shape
    dx = BACKWARD_INPUT(dy, w, ih, iw, *geometry, groups)
    dw, db = BACKWARD_WEIGHT(dy, x, kh, kw, *geometry, groups)
    assert_format(dx, dy)
    assert dw.is_contiguous()
    assert db.is_contiguous()
    assert dx.dtype == dw.dtype == db.dtype == x.dtype
    if dx.is_meta:
        return
    dy, x, w = dy.double(), x.double(), w.double()
    magnitude = backward_input64(dy.abs(), w.abs(), ih, iw, geometry, groups)
    assert_linear(dx, backward_input64(dy, w, ih, iw, geometry, groups), magnitude, w[:, 0].numel() // groups)
    sums = backward_weight64(dy, x, kh, kw, geometry, groups)
    magnitudes = backward_weight64(dy.abs(), x.abs(), kh, kw, geometry, groups)
    terms = dy.shape[0] * dy.shape[2] * dy.shape[3]
    assert_linear(dw, sums[0], magnitudes[0], terms)
    assert_linear(db, sums[1], magnitudes[1], terms)


# --- gradients --------------------------------------------------------------------------------------------------------
def leaves_of(layer: Layer, dtype=None) -> tuple[Layer, dict[str, Tensor]]:
    """The layer on copies that ask for gradients, and those by name."""
    made: dict[str, Tensor] = {}
    for name, value in {"x": layer.x, "w": layer.w, **layer.options}.items():
        if isinstance(value, Tensor):
            made[name] = value.detach().to(dtype or value.dtype).clone().requires_grad_()
    options = {name: made.get(name, value) for name, value in layer.options.items()}
    return Layer(made["x"], made["w"], layer.geometry, layer.groups, options), made


def away_from_kinks(layer: Layer, call) -> bool:
    """Whether finite differences straddle no corner of the activations."""
    plain = {name: value for name, value in layer.options.items() if name in ("bias", "scale")}
    if layer.options.get("residual_first"):
        plain |= {name: layer.options[name] for name in ("residual", "residual_first")}
    entering = {name: layer.options[name] for name in ("input_activation", "input_gate") if name in layer.options}
    z = call(Layer(layer.x, layer.w, layer.geometry, layer.groups, plain | entering))
    corners = [(z, at) for at in KINKS.get(layer.options.get("activation", "none"), [])]
    corners += [(layer.x, at) for at in KINKS.get(layer.options.get("input_activation", "none"), [])]
    return all(bool(((t - at).abs() > 1e-5).all()) for t, at in corners)


def check_gradients(layer: Layer, call) -> None:
    """gradcheck and gradgradcheck in every tensor."""
    layer, leaves = leaves_of(layer)
    assert away_from_kinks(layer, call)

    def f(*values):
        given = dict(zip(leaves, values))
        options = {name: given.get(name, value) for name, value in layer.options.items()}
        return call(Layer(given["x"], given["w"], layer.geometry, layer.groups, options))

    assert torch.autograd.gradcheck(f, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(f, tuple(leaves.values()), fast_mode=True)


def check_gradients_only_where_wanted(layer: Layer, call) -> None:
    """Each alone, and all but each, gives what all together give."""
    everything, leaves = leaves_of(layer)
    call(everything).sum().backward()
    for name, only in itertools.product(leaves, [True, False]):
        some, mine = leaves_of(layer)
        for other, t in mine.items():
            t.requires_grad_((other == name) == only)
        call(some).sum().backward()  # sum: its gradient is expanded, stride 0
        for other, t in mine.items():
            if t.requires_grad:
                torch.testing.assert_close(t.grad, leaves[other].grad, rtol=1e-12, atol=1e-12)
            else:
                assert t.grad is None


def check_narrow_gradients(layer: Layer, call) -> None:
    """Against float64 autograd through torch's convolution, as far as torch in the same dtype is (bound 3), of
    tensors with many elements: of few, the largest error that torch happens to make says nothing. Besides, 8 units in
    float32's last place of the largest: tanh's derivative 1 - y * y cancels, and y may be off by 4."""
    layer, leaves = leaves_of(layer)
    y = call(layer)
    dy = torch.randn_like(y)
    ours = torch.autograd.grad(y, list(leaves.values()), dy)
    theirs = torch.autograd.grad(torchs(layer, rounded=True), list(leaves.values()), dy)
    layer, leaves = leaves_of(layer, torch.float64)
    exact = torch.autograd.grad(torchs(layer), list(leaves.values()), dy.double())
    for a, b, c in zip(ours, exact, theirs):
        assert_nonlinear(a, b, c, ulps=8, besides=8 * eps_sum(a.dtype) * float(b.abs().max()))


def compiled_steps(function, *args):
    """Output and gradients of function."""
    leaves = [a.detach().clone().requires_grad_() for a in args]
    y = function(*leaves)
    return y, *torch.autograd.grad(y.sin().sum(), leaves)


def check_vmap(f, args, in_dims, batch) -> None:
    def one(i):
        return [a if d is None else a.select(d, i) for a, d in zip(args, in_dims)]

    y = torch.func.vmap(f, in_dims)(*args)
    assert_close = torch.testing.assert_close
    assert_close(y, torch.stack([f(*one(i)) for i in range(batch)]))
    g = torch.func.grad(lambda *a: f(*a).square().sum(), argnums=tuple(range(len(args))))
    for got, *wanted in zip(torch.func.vmap(g, in_dims)(*args), *(g(*one(i)) for i in range(batch))):
        assert_close(got, torch.stack(wanted))
