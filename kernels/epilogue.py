"""Activations and their derivatives for every Triton kernel: _epilogue.py's formulas, on float32 or float64.

NaN and infinities give what torch gives. `alpha` is leaky_relu's or elu's number (a constexpr: a float that is passed
to a kernel is float32 there), `slope` prelu's slopes as they lie along z; what an activation lacks is not looked at.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def clip6(z):
    return tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))  # unlike minimum and maximum, keeps NaN


@triton.jit
def sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def logistic(z):
    """sigmoid(z) and its derivative, each with small results' digits."""
    e = tl.exp(-tl.abs(z))
    y = 1 / (1 + e)
    return tl.where(z < 0, e * y, y), e * y * y


@triton.jit
def tanh(z):
    """Near 0 by a polynomial (float32) or a rational (float64), where 1 - 2 / (1 + exp(2 z)) loses its digits: Cephes'.

    Moshier, "Methods and Programs for Mathematical Functions", 1989: tanhf.c and tanh.c.
    """
    square = z * z
    if z.dtype == tl.float64:
        p = (-9.64399179425052238628e-1 * square - 9.92877231001918586564e1) * square - 1.61468768441708447952e3
        q = (square + 1.12811678491632931402e2) * square + 2.23548839060100448583e3
        near = z + z * square * (p / (q * square + 4.84406305325125486048e3))
    else:
        p = ((-5.70498872745e-3 * square + 2.06390887954e-2) * square - 5.37397155531e-2) * square
        near = z + z * square * ((p + 1.33314422036e-1) * square - 3.33332819422e-1)
    size = tl.abs(z)
    far = 1 - 2 / (1 + tl.exp(2 * size))
    return tl.where(size < 0.625, near, tl.where(z < 0, -far, far))


@triton.jit
def expm1(z):
    """For z <= 0."""
    half = tanh(0.5 * z)
    return 2 * half / (1 - half)


@triton.jit
def activate(z, alpha, slope, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0.0, z)
    elif ACTIVATION == "relu6":
        z = clip6(z)
    elif ACTIVATION == "silu":
        z = z / (1 + tl.exp(-z))
    elif ACTIVATION == "hardswish":
        z = z * clip6(z + 3) / 6
    elif ACTIVATION == "hardsigmoid":
        z = clip6(z + 3) / 6
    elif ACTIVATION == "sigmoid":
        z = sigmoid(z)
    elif ACTIVATION == "tanh":
        z = tanh(z)
    elif ACTIVATION == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * 0.70710678118654752440))
    elif ACTIVATION == "gelu_tanh":
        z = z / (1 + tl.exp(-1.59576912160573071176 * (z + 0.044715 * z * z * z)))  # sigmoid(2 u) is (1 + tanh(u)) / 2
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * alpha)
    elif ACTIVATION == "elu":
        z = tl.where(z < 0, alpha * expm1(z), z)
    elif ACTIVATION == "prelu":
        z = tl.where(z > 0, z, z * slope)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return z


@triton.jit
def derivative(dy, z, alpha, slope, ACTIVATION: tl.constexpr):
    """dy * act'(z)."""
    if ACTIVATION == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACTIVATION == "relu6":
        dy = tl.where((z <= 0) | (z >= 6), 0.0, dy)
    elif ACTIVATION == "silu":
        gate = sigmoid(z)
        dy = dy * gate * (1 + z * (1 - gate))
    elif ACTIVATION == "hardswish":
        dy = tl.where(z <= -3, 0.0, tl.where(z < 3, dy * (z / 3 + 0.5), dy))
    elif ACTIVATION == "hardsigmoid":
        dy = tl.where((z > -3) & (z < 3), dy / 6, 0.0)
    elif ACTIVATION == "sigmoid":
        _, slope_of = logistic(z)
        dy = dy * slope_of
    elif ACTIVATION == "tanh":
        _, slope_of = logistic(2 * z)
        dy = dy * (4 * slope_of)
    elif ACTIVATION == "gelu":
        below = 0.5 * (1 + tl.erf(z * 0.70710678118654752440))
        dy = dy * (below + z * (0.39894228040143267794 * tl.exp(-0.5 * z * z)))
    elif ACTIVATION == "gelu_tanh":
        gate, slope_of = logistic(1.59576912160573071176 * (z + 0.044715 * z * z * z))
        dy = dy * (gate + z * slope_of * (1.59576912160573071176 * (1 + 0.134145 * z * z)))
    elif ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * alpha)
    elif ACTIVATION == "elu":
        dy = tl.where(z <= 0, dy * alpha * tl.exp(z), dy)
    elif ACTIVATION == "prelu":
        dy = tl.where(z > 0, dy, dy * slope)
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
    return dy
