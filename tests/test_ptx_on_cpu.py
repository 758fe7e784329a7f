"""The PTX executor's own tests: every instruction against an independent reference (whole numbers and exact fractions
in Python), planted bugs that must be found, and right kernels in which nothing may be found."""

import math
import operator
import random
import re
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import nvcc
import ptx_on_cpu
import pytest
import torch
from ptx_on_cpu import Malformed, Memory, Module, Unknown

# --- kernels out of a few lines of PTX --------------------------------------------------------------------------------
HEAD = ".version 8.7\n.target sm_90\n.address_size 64\n"
REGISTERS = """.reg .pred p, q, s; .reg .b16 h<10>; .reg .b32 r<20>, tid; .reg .b64 x<20>, at; .reg .f32 f<20>;
.reg .f64 g<9>;"""


def kernel(body: str, params: str = "x y", outside: str = "") -> ptx_on_cpu.Kernel:
    """A kernel `k` of these statements, each parameter a pointer that also lies in a register `_name`. `tid` is the
    number of the thread, `at` four times that."""
    names = params.split()
    declared = ",\n".join(f".param .u64 {name}" for name in names)
    loads = " ".join(f".reg .b64 _{name}; ld.param.u64 _{name}, [{name}];" for name in names)
    text = (
        f"{HEAD}{outside}\n.visible .entry k({declared}) {{\n{REGISTERS}\nmov.u32 tid, %tid.x; "
        f"mul.wide.u32 at, tid, 4; {loads}\n{body}\nret;\n}}\n"
    )
    return Module(text)["k"]


def aligned(shape, dtype=np.float32, fill=0) -> np.ndarray:
    """An array that begins at a multiple of 256 bytes, as what cudaMalloc gives does."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 256, np.uint8)
    result = room[-room.ctypes.data % 256 :][:size].view(dtype).reshape(shape)
    result[...] = fill
    return result


def run(body: str, *arrays, block=32, grid=1, backwards=False, outside="", **kwargs) -> ptx_on_cpu.Report:
    """Runs statements on arrays x, y, z; nothing may be found."""
    names = " ".join("xyzuv"[: len(arrays)])
    report = kernel(body, names, outside).launch(grid, block, list(arrays), backwards=backwards, **kwargs)
    report.check()
    return report


REGISTER = {np.uint8: "b16", np.uint16: "b16", np.uint32: "b32", np.uint64: "b64"}
LOAD = {np.uint8: "u8", np.uint16: "b16", np.uint32: "b32", np.uint64: "b64"}
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def lanes(code: str, *inputs, out=np.uint32) -> list:
    """`code` makes `d` (of type `out`, or bool: a predicate) of a, b, c, ... in each lane; results as Python numbers.

    Inputs are unsigned arrays of as many bits as the operands have; their registers are called a, b, c, ..."""
    count = len(inputs[0])
    inputs = [np.resize(np.asarray(i), -(-count // 256) * 256) for i in inputs]
    result = np.zeros(len(inputs[0]), np.uint32 if out is bool else out)
    lines = [f".reg .{'pred' if out is bool else REGISTER[out]} d; .reg .b32 n, m; .reg .b64 i;"]
    lines.append("mov.u32 n, %ctaid.x; mad.lo.u32 n, n, 256, tid;")
    for k, array in enumerate(inputs):
        name, type = "abcefg"[k], array.dtype.type
        lines.append(f".reg .{REGISTER[type]} {name}; .reg .b64 i{name}; ld.param.u64 i{name}, [{'xzuvwt'[k]}];")
        lines.append(f"mad.wide.u32 i, n, {array.itemsize}, i{name}; ld.global.{LOAD[type]} {name}, [i];")
    lines.append(f"\n{code}\n")
    lines.append("selp.u32 m, 1, 0, d;" if out is bool else "")
    lines.append(f"mad.wide.u32 i, n, {result.itemsize}, _y; st.global.u{8 * result.itemsize} [i], ")
    lines.append("m;" if out is bool else "d;")
    params = "y " + " ".join("xzuvwt"[: len(inputs)])
    report = kernel(" ".join(lines), params).launch(len(result) // 256, 256, [result, *inputs])
    report.check()
    return result[:count].tolist()


def assert_same(code: str, got: list, want: list, *inputs) -> None:
    for number, (one, other) in enumerate(zip(got, want)):
        if one != other:
            operands = ", ".join(hex(int(i[number])) for i in inputs)
            raise AssertionError(f"`{code}` of {operands} gives {one:#x}, not {other:#x}")


# --- whole numbers ----------------------------------------------------------------------------------------------------
def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def whole(bits: int, count: int = 512, seed: int = 0) -> np.ndarray:
    """Numbers at the ends of the range, in the middle, and everywhere."""
    random_ = random.Random(f"{bits} {seed}")
    top = (1 << bits) - 1
    edges = [0, 1, 2, 3, 7, top >> 1, (top >> 1) + 1, (top >> 1) + 2, top, top - 1, top // 3, top // 3 * 2, 31, 32, 33]
    edges += [bits - 1, bits, bits + 1]
    values = [
        random_.choice(edges) if random_.random() < 0.6 else random_.getrandbits(random_.randint(1, bits))
        for _ in range(count)
    ]
    return np.array(values, UNSIGNED[bits])


def check_whole(code: str, reference, *bits: int, out: int = 32) -> None:
    """`reference` takes Python numbers without a sign; of its result as many bits count as `out` says."""
    inputs = [whole(b, seed=k) for k, b in enumerate(bits)]
    got = lanes(code, *inputs, out=bool if out == 1 else UNSIGNED[out])
    want = [int(reference(*map(int, values))) & ((1 << out) - 1) for values in zip(*inputs)]
    assert_same(code, got, want, *inputs)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


WIDTHS = pytest.mark.parametrize("type", ["u16", "s16", "u32", "s32", "u64", "s64"])


@WIDTHS
def test_integer_arithmetic(type):
    bits = int(type[1:])

    def n(value: int) -> int:
        return signed(value, bits) if type[0] == "s" else value

    def two(code: str, f) -> None:
        check_whole(f"{code}.{type} d, a, b;", lambda a, b: f(n(a), n(b)), bits, bits, out=bits)

    def three(code: str, f) -> None:
        check_whole(f"{code}.{type} d, a, b, c;", lambda a, b, c: f(n(a), n(b), n(c)), bits, bits, bits, out=bits)

    two("add", operator.add)
    two("sub", operator.sub)
    two("mul.lo", operator.mul)
    two("mul.hi", lambda a, b: a * b >> bits)
    three("mad.lo", lambda a, b, c: a * b + c)
    three("mad.hi", lambda a, b, c: (a * b >> bits) + c)
    three("sad", lambda a, b, c: abs(a - b) + c)
    two("min", min)
    two("max", max)
    # Division by zero has no result that PTX defines: GPUs give all bits, and the dividend as what remains.
    two("div", lambda a, b: truncated(a, b) if b else -1)
    two("rem", lambda a, b: a - b * truncated(a, b) if b else a)
    if type[0] == "s":
        check_whole(f"neg.{type} d, a;", lambda a: -a, bits, out=bits)
        check_whole(f"abs.{type} d, a;", lambda a: abs(n(a)), bits, out=bits)
    if bits < 64:
        check_whole(f"mul.wide.{type} d, a, b;", lambda a, b: n(a) * n(b), bits, bits, out=2 * bits)
        check_whole(f"mad.wide.{type} d, a, b, c;", lambda a, b, c: n(a) * n(b) + c, bits, bits, 2 * bits, out=2 * bits)


def test_saturating_integers():
    def clamped(value: int) -> int:
        return max(-(2**31), min(2**31 - 1, value))

    check_whole("add.sat.s32 d, a, b;", lambda a, b: clamped(signed(a, 32) + signed(b, 32)), 32, 32)
    check_whole("sub.sat.s32 d, a, b;", lambda a, b: clamped(signed(a, 32) - signed(b, 32)), 32, 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_carries(bits):
    """96- and 192-bit sums, differences and products in pieces: a carry passes from one piece to the next."""
    mask = (1 << bits) - 1
    types = {"out": bits}
    for op, f in {"add": operator.add, "sub": operator.sub}.items():
        for piece in range(3):
            code = (
                f".reg .b{bits} d0, d1, d2; {op}.cc.u{bits} d0, a, e; {op}c.cc.u{bits} d1, b, f; "
                f"{op}c.u{bits} d2, c, g; mov.b{bits} d, d{piece};"
            )

            def reference(a, b, c, e, f_, g, op=f, piece=piece):
                return op(c << 2 * bits | b << bits | a, g << 2 * bits | f_ << bits | e) >> piece * bits

            check_whole(code, reference, *[bits] * 6, **types)
    for piece in range(2):
        code = (
            f".reg .b{bits} d0, d1; mad.lo.cc.u{bits} d0, a, b, c; madc.hi.u{bits} d1, a, b, e; "
            f"mov.b{bits} d, d{piece};"
        )

        def product(a, b, c, e, piece=piece):
            return (a * b + (e << bits | c)) >> piece * bits

        check_whole(code, product, *[bits] * 4, **types)
    # A comparison or another addition between them leaves the carry alone.
    code = (
        f".reg .b{bits} t; add.cc.u{bits} t, a, b; add.u{bits} t, c, c; setp.eq.u{bits} p, t, a; addc.u{bits} d, c, 0;"
    )
    check_whole(code, lambda a, b, c: c + (a + b > mask), bits, bits, bits, out=bits)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits_of_every_width(bits):
    def s(value: int) -> int:
        return signed(value, bits)

    check_whole(f"and.b{bits} d, a, b;", operator.and_, bits, bits, out=bits)
    check_whole(f"or.b{bits} d, a, b;", operator.or_, bits, bits, out=bits)
    check_whole(f"xor.b{bits} d, a, b;", operator.xor, bits, bits, out=bits)
    check_whole(f"not.b{bits} d, a;", operator.invert, bits, out=bits)
    check_whole(f"shl.b{bits} d, a, b;", lambda a, n: a << min(n, 64), bits, 32, out=bits)
    for type in "bu":
        check_whole(f"shr.{type}{bits} d, a, b;", lambda a, n: a >> min(n, 64), bits, 32, out=bits)
    check_whole(f"shr.s{bits} d, a, b;", lambda a, n: s(a) >> min(n, 64), bits, 32, out=bits)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_and_fields(bits):
    def s(value: int) -> int:
        return signed(value, bits)

    def top(value: int) -> int:
        return value.bit_length() - 1

    def without_sign(value: int) -> int:
        return ~s(value) if s(value) < 0 else value

    check_whole(f"popc.b{bits} d, a;", lambda a: f"{a:b}".count("1"), bits)
    check_whole(f"clz.b{bits} d, a;", lambda a: bits - a.bit_length(), bits)
    check_whole(f"brev.b{bits} d, a;", lambda a: int(f"{a:0{bits}b}"[::-1], 2), bits, out=bits)
    check_whole(f"bfind.u{bits} d, a;", lambda a: top(a), bits)
    check_whole(f"bfind.s{bits} d, a;", lambda a: top(without_sign(a)), bits)
    check_whole(f"bfind.shiftamt.u{bits} d, a;", lambda a: bits - 1 - top(a) if a else -1, bits)
    check_whole(
        f"bfind.shiftamt.s{bits} d, a;", lambda a: bits - 1 - top(without_sign(a)) if without_sign(a) else -1, bits
    )

    def field(a: int, position: int, length: int, negative: bool) -> int:
        position, length = position & 255, length & 255
        last = min(position + length - 1, bits - 1)
        sign = negative and length and a >> last & 1
        return sum((a >> position + k & 1 if k < length and position + k < bits else sign) << k for k in range(bits))

    check_whole(f"bfe.u{bits} d, a, b, c;", lambda a, p, n: field(a, p, n, False), bits, 32, 32, out=bits)
    check_whole(f"bfe.s{bits} d, a, b, c;", lambda a, p, n: field(a, p, n, True), bits, 32, 32, out=bits)

    def inserted(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        for k in range(length):
            if position + k < bits:
                b = b & ~(1 << position + k) | (a >> k & 1) << position + k
        return b

    check_whole(f"bfi.b{bits} d, a, b, c, e;", inserted, bits, bits, 32, 32, out=bits)


def test_funnel_shifts():
    for direction, wrap in [(d, w) for d in "lr" for w in ("wrap", "clamp")]:

        def reference(low, high, n, direction=direction, wrap=wrap):
            n = n % 32 if wrap == "wrap" else min(n, 32)
            both = high << 32 | low
            return both << n >> 32 if direction == "l" else both >> n

        check_whole(f"shf.{direction}.{wrap}.b32 d, a, b, c;", reference, 32, 32, 32)


def test_lop3():
    for table in (0x00, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1B, 0xFF, 0x40):

        def reference(a, b, c, table=table):
            return sum((table >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | c >> k & 1) & 1) << k for k in range(32))

        check_whole(f"lop3.b32 d, a, b, c, {table:#x};", reference, 32, 32, 32)


# Which of the eight bytes each of the four, highest first, is made of: as PTX tabulates it, for selectors 0 to 3.
PERMUTATIONS = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}


def test_prmt():
    def bytes_of(a: int, b: int) -> list[int]:
        return [(b << 32 | a) >> 8 * k & 255 for k in range(8)]

    def default(a, b, c):
        result = 0
        for k in range(4):
            select = c >> 4 * k & 15
            byte = bytes_of(a, b)[select & 7]
            result |= ((255 if byte & 128 else 0) if select & 8 else byte) << 8 * k
        return result

    check_whole("prmt.b32 d, a, b, c;", default, 32, 32, 32)
    check_whole("prmt.b32 d, a, b, 0x7Fe3;", lambda a, b: default(a, b, 0x7FE3), 32, 32)
    for mode, rows in PERMUTATIONS.items():

        def reference(a, b, c, rows=rows):
            return sum(bytes_of(a, b)[int(digit)] << 8 * k for k, digit in enumerate(reversed(rows[c & 3])))

        check_whole(f"prmt.b32.{mode} d, a, b, c;", reference, 32, 32, 32)


def test_moves_pack_and_unpack():
    check_whole("mov.b64 d, {a, b};", lambda a, b: b << 32 | a, 32, 32, out=64)
    check_whole("mov.b32 d, {a, b};", lambda a, b: b << 16 | a, 16, 16)
    check_whole("mov.b64 d, {a, b, c, e};", lambda a, b, c, e: e << 48 | c << 32 | b << 16 | a, *[16] * 4, out=64)
    for k, name in enumerate(("r0", "r1")):
        check_whole(f"mov.b64 {{r0, r1}}, a; mov.b32 d, {name};", lambda a, k=k: a >> 32 * k, 64)
        check_whole(f"mov.b32 {{h0, h1}}, a; mov.b16 d, h{k};", lambda a, k=k: a >> 16 * k, 32, out=16)
    check_whole("mov.b32 {_, d}, a;", lambda a: a >> 16, 32, out=16)
    # The register that is taken apart may be one of those written.
    check_whole("mov.b64 {r0, r1}, a; mov.b64 a, {r1, r0}; mov.b64 {_, d}, a;", lambda a: a, 64)
    check_whole("mov.b16 h0, 0x3C00; mov.b32 d, {h0, a};", lambda a: a << 16 | 0x3C00, 16)
    check_whole("mov.u32 d, -5;", lambda a: -5, 32)
    check_whole("mov.u32 d, 0b1011U;", lambda a: 11, 32)
    check_whole("mov.u32 d, 017;", lambda a: 15, 32)
    check_whole("mov.f32 d, 0fBF800000;", lambda a: 0xBF800000, 32)
    check_whole("mov.f32 d, 1.5;", lambda a: 0x3FC00000, 32)
    check_whole("mov.f64 d, 0d4000000000000000;", lambda a: 0x4000000000000000, 64, out=64)
    check_whole("mov.u32 d, WARP_SZ;", lambda a: 32, 32)


RELATIONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
UNSIGNED_RELATIONS = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


@WIDTHS
def test_setp_of_integers(type):
    bits = int(type[1:])
    relations = RELATIONS if type[0] == "s" else {**RELATIONS, **UNSIGNED_RELATIONS}
    for name, f in relations.items():

        def reference(a, b, f=f):
            return f(*(signed(v, bits) if type[0] == "s" else v for v in (a, b)))

        check_whole(f"setp.{name}.{type} d, a, b;", reference, bits, bits, out=1)
        result = "set" if bits > 16 else None
        if result:
            check_whole(f"set.{name}.u32.{type} d, a, b;", lambda a, b: -reference(a, b), bits, bits)
            check_whole(f"set.{name}.f32.{type} d, a, b;", lambda a, b: reference(a, b) * 0x3F800000, bits, bits)
    if type[0] == "u":
        check_whole(f"setp.eq.b{bits} d, a, b;", operator.eq, bits, bits, out=1)
        check_whole(f"setp.ne.b{bits} d, a, b;", operator.ne, bits, bits, out=1)


def test_setp_combines_and_gives_its_opposite():
    both = "setp.lt.u32 s, c, 32; "
    for how, f in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        for sign in ("", "!"):

            def with_(c, sign=sign):
                return (c < 32) != (sign == "!")

            code = f"{both} setp.lt.{how}.s32 p|q, a, b, {sign}s; "
            check_whole(
                code + "selp.u32 d, 1, 0, p;",
                lambda a, b, c, f=f: f(signed(a, 32) < signed(b, 32), with_(c)),
                32,
                32,
                32,
            )
            check_whole(
                code + "selp.u32 d, 1, 0, q;",
                lambda a, b, c, f=f: f(signed(a, 32) >= signed(b, 32), with_(c)),
                32,
                32,
                32,
            )
    for how, f in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        code = f"setp.lt.u32 p, a, 9; setp.lt.u32 q, b, 9; {how}.pred d, p, q;"
        check_whole(code, lambda a, b, f=f: f(a < 9, b < 9), 32, 32, out=1)
    check_whole("setp.lt.u32 p, a, 9; not.pred d, p;", lambda a: a >= 9, 32, out=1)
    check_whole("setp.lt.u32 p, a, 9; mov.pred d, p;", lambda a: a < 9, 32, out=1)
    check_whole("mov.pred d, 1;", lambda a: 1, 32, out=1)


def test_selection_and_predication():
    for bits in (16, 32, 64):
        check_whole(
            f"setp.lt.u32 p, c, 32; selp.b{bits} d, a, b, p;",
            lambda a, b, c: a if c < 32 else b, bits, bits, 32, out=bits,
        )  # fmt: skip
    for bits in (32, 64):
        check_whole(
            f"slct.b{bits}.s32 d, a, b, c;", lambda a, b, c: a if signed(c, 32) >= 0 else b, bits, bits, 32, out=bits
        )
    code = "mov.u32 d, 7; setp.lt.u32 p, a, 9; @p mov.u32 d, b; @!p add.u32 d, d, b;"
    check_whole(code, lambda a, b: b if a < 9 else 7 + b, 32, 32)
    # What the guard is made of may be what the instruction writes.
    check_whole("setp.lt.u32 p, a, 9; mov.u32 d, 1; @p setp.ge.u32 p, a, 5; @p mov.u32 d, 2;",
                lambda a: 2 if 5 <= a < 9 else 1, 32)  # fmt: skip


# --- floating point, exactly ------------------------------------------------------------------------------------------
FORMATS = {"f16": (10, 5), "bf16": (7, 8), "f32": (23, 8), "f64": (52, 11)}  # bits of fraction and of exponent


class Number(NamedTuple):
    """sign is 1 or -1; size a fraction, or "inf" or "nan"."""

    sign: int
    size: Fraction | str

    @property
    def value(self):
        """Comparable: a fraction, an infinite float, or a NaN."""
        if isinstance(self.size, str):
            return self.sign * float(self.size)
        return self.sign * self.size


def parsed(bits: int, format: str) -> Number:
    fraction, exponent = FORMATS[format]
    sign = -1 if bits >> fraction + exponent else 1
    top, low = bits >> fraction & (1 << exponent) - 1, bits & (1 << fraction) - 1
    bias = (1 << exponent - 1) - 1
    if top == (1 << exponent) - 1:
        return Number(sign, "nan" if low else "inf")
    whole_ = low + (1 << fraction) if top else low
    return Number(sign, whole_ * Fraction(2) ** (max(top, 1) - bias - fraction))


def to_whole(x: Fraction, sign: int, mode: str) -> int:
    """The size x >= 0 of a number with that sign to a whole number."""
    down = math.floor(x)
    rest = x - down
    if mode in ("rn", "rna"):
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and (mode == "rna" or down % 2 == 1))
    else:
        up = rest > 0 and {"rz": False, "rm": sign < 0, "rp": sign > 0}[mode]
    return down + up


def formed(number: Number, format: str, mode: str = "rn") -> int:
    """A number's bits, rounded once. NaN is -1."""
    fraction, exponent = FORMATS[format]
    sign, size = number
    if size == "nan":
        return -1
    top = ((1 << exponent) - 1) << fraction
    minus = 1 << fraction + exponent if sign < 0 else 0
    if size == "inf":
        return minus | top
    bias = (1 << exponent - 1) - 1
    power = max(math.floor(math.log2(size)) if 1e-300 < size < 1e300 else exponent_of(size), 1 - bias) if size else 0
    if size:
        while power > 1 - bias and size < Fraction(2) ** power:
            power -= 1
        while size >= Fraction(2) ** (power + 1):
            power += 1
    else:
        power = 1 - bias
    bits = to_whole(size / Fraction(2) ** (power - fraction), sign, mode) + ((power + bias - 1) << fraction)
    if bits >= top:
        overflows = mode in ("rn", "rna") or (mode == "rm" and sign < 0) or (mode == "rp" and sign > 0)
        bits = top if overflows else top - 1
    return minus | bits


def exponent_of(size: Fraction) -> int:
    return size.numerator.bit_length() - size.denominator.bit_length()


NAN = Number(1, "nan")


def sum_of(a: Number, b: Number, mode: str = "rn") -> Number:
    if "nan" in (a.size, b.size) or (a.size == b.size == "inf" and a.sign != b.sign):
        return NAN
    if "inf" in (a.size, b.size):
        return a if a.size == "inf" else b
    value = a.value + b.value
    if value == 0:
        minus = (a.sign < 0 and b.sign < 0) or (a.sign != b.sign and mode == "rm")
        return Number(-1 if minus else 1, Fraction(0))
    return Number(1 if value > 0 else -1, abs(value))


def product_of(a: Number, b: Number) -> Number:
    sign = a.sign * b.sign
    if "nan" in (a.size, b.size):
        return NAN
    if "inf" in (a.size, b.size):
        return NAN if 0 in (a.size, b.size) else Number(sign, "inf")
    return Number(sign, a.size * b.size)


def quotient_of(a: Number, b: Number) -> Number:
    sign = a.sign * b.sign
    if "nan" in (a.size, b.size) or a.size == b.size == "inf" or (a.size == 0 and b.size == 0):
        return NAN
    if a.size == "inf" or b.size == 0:
        return Number(sign, "inf")
    if b.size == "inf":
        return Number(sign, Fraction(0))
    return Number(sign, a.size / b.size)


def negated(a: Number) -> Number:
    return Number(-a.sign, a.size)


def flushed(number: Number, format: str) -> Number:
    exponent = FORMATS[format][1]
    if not isinstance(number.size, str) and number.size < Fraction(2) ** (2 - (1 << exponent - 1)):
        return Number(number.sign, Fraction(0))
    return number


def clamped(number: Number) -> Number:
    """What .sat makes: [0, 1], NaN is 0."""
    if number.size == "nan" or number.value <= 0:
        return Number(1, Fraction(0))
    return Number(1, Fraction(1)) if number.value >= 1 else number


def floats(format: str, count: int = 512, seed: int = 0) -> np.ndarray:
    """Bits of numbers of the format: special ones, neighbours of one, subnormals, and any."""
    fraction, exponent = FORMATS[format]
    random_ = random.Random(f"{format} {seed}")
    one = ((1 << exponent - 1) - 1) << fraction
    top = ((1 << exponent) - 1) << fraction
    edges = [
        0,
        1,
        2,
        (1 << fraction) - 1,
        1 << fraction,
        (1 << fraction) + 1,
        one - 1,
        one,
        one + 1,
        one + (1 << fraction),
    ]
    edges += [top - 1, top, top + 1, top | 1 << fraction - 1, one + (1 << fraction - 1), one - (1 << fraction)]
    result = []
    for _ in range(count):
        kind = random_.random()
        if kind < 0.35:
            bits = random_.choice(edges)
        elif kind < 0.75:  # close to each other, so that sums cancel
            bits = one + random_.randint(-8 << fraction, 8 << fraction) if exponent > 5 else random_.randint(0, top)
        else:
            bits = random_.getrandbits(fraction + exponent)
        result.append(bits | random_.getrandbits(1) << fraction + exponent)
    return np.array(result, UNSIGNED[1 + fraction + exponent])


def bits_of(format: str) -> int:
    return 1 + sum(FORMATS[format])


def without_nans(values: list, format: str) -> list:
    return [-1 if parsed(v, format).size == "nan" else v for v in values]


def check_floats(
    code: str, reference, format: str, operands: int, mode="rn", flush=False, saturate=False, out=""
) -> None:
    """The result must be the reference's, rounded once (of NaNs, that it is one)."""
    inputs = [floats(format, seed=k) for k in range(operands)]
    out = out or format
    got = without_nans(lanes(code, *inputs, out=UNSIGNED[bits_of(out)]), out)
    want = []
    for values in zip(*inputs):
        numbers = [parsed(int(v), format) for v in values]
        if flush:
            numbers = [flushed(number, format) for number in numbers]
        result = reference(*numbers)
        bits = formed(result, out, mode)
        if flush and bits >= 0:
            bits = formed(flushed(parsed(bits, out), out), out)
        if saturate:
            bits = formed(clamped(parsed(bits, out) if bits >= 0 else NAN), out)
        want.append(bits)
    assert_same(code, got, want, *inputs)


@pytest.mark.parametrize("format", ["f16", "bf16", "f32", "f64"])
def test_sums_and_products_are_rounded_once(format):
    rounding = ".rn" if format == "bf16" else ""
    check_floats(f"add{rounding}.{format} d, a, b;", sum_of, format, 2)
    check_floats(f"sub{rounding}.{format} d, a, b;", lambda a, b: sum_of(a, negated(b)), format, 2)
    check_floats(f"mul{rounding}.{format} d, a, b;", product_of, format, 2)
    check_floats(f"fma.rn.{format} d, a, b, c;", lambda a, b, c: sum_of(product_of(a, b), c), format, 3)
    check_floats(f"neg.{format} d, a;", negated, format, 1)
    check_floats(f"abs.{format} d, a;", lambda a: Number(1, a.size), format, 1)


def lesser(a: Number, b: Number) -> Number:
    if "nan" in (a.size, b.size):
        return b if a.size == "nan" else a
    return min(a, b, key=lambda n: (n.value, n.sign))


def greater(a: Number, b: Number) -> Number:
    return negated(lesser(negated(a), negated(b)))


@pytest.mark.parametrize("format", ["f16", "bf16", "f32", "f64"])
def test_min_and_max(format):
    def strict(f):
        return lambda a, b: NAN if "nan" in (a.size, b.size) else f(a, b)

    for name, f in {"min": lesser, "max": greater}.items():
        check_floats(f"{name}.{format} d, a, b;", f, format, 2)
        if format != "f64":
            check_floats(f"{name}.NaN.{format} d, a, b;", strict(f), format, 2)
        if format == "f32":
            check_floats(f"{name}.ftz.f32 d, a, b;", f, format, 2, flush=True)


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
def test_roundings_to_a_side(mode):
    for flush in ("", ".ftz"):
        keys = {"mode": mode, "flush": bool(flush)}
        check_floats(f"add.{mode}{flush}.f32 d, a, b;", lambda a, b: sum_of(a, b, mode), "f32", 2, **keys)
        check_floats(f"sub.{mode}{flush}.f32 d, a, b;", lambda a, b: sum_of(a, negated(b), mode), "f32", 2, **keys)
        check_floats(f"mul.{mode}{flush}.f32 d, a, b;", product_of, "f32", 2, **keys)
        check_floats(
            f"fma.{mode}{flush}.f32 d, a, b, c;", lambda a, b, c: sum_of(product_of(a, b), c, mode), "f32", 3, **keys
        )
        check_floats(f"div.{mode}{flush}.f32 d, a, b;", quotient_of, "f32", 2, **keys)
        check_floats(f"rcp.{mode}{flush}.f32 d, a;", lambda a: quotient_of(Number(1, Fraction(1)), a), "f32", 1, **keys)


def test_flushing_and_saturating():
    for flush in ("", ".ftz"):
        for saturate in ("", ".sat"):
            keys = {"flush": bool(flush), "saturate": bool(saturate)}
            end = f"{flush}{saturate}.f32"
            check_floats(f"add{end} d, a, b;", sum_of, "f32", 2, **keys)
            check_floats(f"sub{end} d, a, b;", lambda a, b: sum_of(a, negated(b)), "f32", 2, **keys)
            check_floats(f"mul{end} d, a, b;", product_of, "f32", 2, **keys)
            check_floats(f"fma.rn{end} d, a, b, c;", lambda a, b, c: sum_of(product_of(a, b), c), "f32", 3, **keys)
    check_floats("neg.ftz.f32 d, a;", negated, "f32", 1, flush=True)
    check_floats("abs.ftz.f32 d, a;", lambda a: Number(1, a.size), "f32", 1, flush=True)
    # The subnormals that .f16 flushes are its own, not those of float32.
    check_floats("add.ftz.f16 d, a, b;", sum_of, "f16", 2, flush=True)
    check_floats("mul.ftz.f16 d, a, b;", product_of, "f16", 2, flush=True)
    check_floats("fma.rn.ftz.f16 d, a, b, c;", lambda a, b, c: sum_of(product_of(a, b), c), "f16", 3, flush=True)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_packed_halves(half):
    """Both halves at once are what each alone is."""
    inputs = [floats(half, 1024, seed=k) for k in range(3)]
    pairs = [i.view(np.uint32) for i in inputs]
    rounding = ".rn" if half == "bf16" else ""
    for code, count in {f"add{rounding}": 2, f"sub{rounding}": 2, f"mul{rounding}": 2, "min": 2, "max": 2, "min.NaN": 2,
                        "fma.rn": 3, "neg": 1, "abs": 1}.items():  # fmt: skip
        operands = ", ".join("abc"[:count])
        one = lanes(f"{code}.{half} d, {operands};", *inputs[:count], out=np.uint16)
        two = lanes(f"{code}.{half}x2 d, {operands};", *pairs[:count], out=np.uint32)
        two = np.array(two, np.uint32).view(np.uint16).tolist()
        assert_same(code, without_nans(two, half), without_nans(one, half), *inputs[:count])


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_fma_relu(half):
    def relu(a, b, c):
        result = sum_of(product_of(a, b), c)
        return result if result.size == "nan" or result.value > 0 else Number(1, Fraction(0))

    check_floats(f"fma.rn.relu.{half} d, a, b, c;", relu, half, 3)


@pytest.mark.parametrize("format", ["f32", "f64"])
def test_quotients_and_roots(format):
    one = Number(1, Fraction(1))
    check_floats(f"div.rn.{format} d, a, b;", quotient_of, format, 2)
    check_floats(f"rcp.rn.{format} d, a;", lambda a: quotient_of(one, a), format, 1)

    def root(x: Number) -> Number:
        if x.size in ("nan", 0) or (x.size == "inf" and x.sign > 0):
            return x
        if x.sign < 0:
            return NAN
        scaled = x.size * Fraction(4) ** 2400  # so many digits that no tie can be missed
        size = math.isqrt(int(scaled))
        return Number(1, Fraction(2 * size + (size * size != scaled), 2 << 2400))

    for mode in ("rn", "rz", "rm", "rp") if format == "f32" else ("rn",):
        check_floats(f"sqrt.{mode}.{format} d, a;", root, format, 1, mode)


# What PTX says of the error: units in the last place, or an absolute bound where that is larger. Between `low` and
# `high` only, where the bound holds only there.
APPROXIMATE = {
    "div.approx.f32": (2, 0, lambda a, b: a / b), "div.full.f32": (2, 0, lambda a, b: a / b),
    "rcp.approx.f32": (1, 0, lambda a: 1 / a), "sqrt.approx.f32": (1, 0, np.sqrt),
    "rsqrt.approx.f32": (2, 0, lambda a: 1 / np.sqrt(a)),
    "ex2.approx.f32": (2, 0, np.exp2), "lg2.approx.f32": (2, 2.0**-22, np.log2),
    "sin.approx.f32": (0, 2.0**-20.5, np.sin), "cos.approx.f32": (0, 2.0**-20.5, np.cos),
    "tanh.approx.f32": (2.0**13, 0, np.tanh),
}  # fmt: skip


@pytest.mark.parametrize("code", APPROXIMATE)
@pytest.mark.parametrize("flush", ["", ".ftz"])
def test_approximations_are_within_their_documented_error(code, flush):
    ulps, absolute, reference = APPROXIMATE[code]
    count = 2 if code.startswith("div") else 1
    inputs = [floats("f32", 1024, seed=k) for k in range(count)]
    if "sin" in code or "cos" in code:
        inputs = [np.random.default_rng(0).uniform(-math.pi, math.pi, 1024).astype(np.float32).view(np.uint32)]
    if flush and code == "tanh.approx.f32":
        return
    if flush and code == "div.full.f32":
        flush = ".ftz"
    code = code.replace(".f32", f"{flush}.f32")
    got = (
        np.array(lanes(f"{code} d, {', '.join('ab'[:count])};", *inputs), np.uint32).view(np.float32).astype(np.float64)
    )
    numbers = [i.view(np.float32) for i in inputs]
    if flush:
        numbers = [np.where(np.abs(n) < np.finfo(np.float32).tiny, np.copysign(0, n), n) for n in numbers]
    with np.errstate(all="ignore"):
        want = reference(*(n.astype(np.longdouble) for n in numbers))
        rounded = want.astype(np.float32).astype(np.float64)
        if flush:
            rounded = np.where(np.abs(rounded) < np.finfo(np.float32).tiny, np.copysign(0, rounded), rounded)
        bound = ulps * np.spacing(np.abs(rounded).astype(np.float32)).astype(np.float64) + absolute
    ok = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    with np.errstate(invalid="ignore"):
        ok |= np.abs(got - want.astype(np.float64)) <= bound
    if "sin" not in code and "cos" not in code:  # the sign of zero and of infinity too
        ok &= (np.signbit(got) == np.signbit(rounded)) | np.isnan(rounded)
    assert ok.all(), [(n[~ok][0], got[~ok][0], rounded[~ok][0]) for n in numbers]


def test_rough_reciprocals_of_doubles():
    """rcp.approx.ftz.f64: 20 bits of mantissa, of an operand of which 20 are looked at; the rest is zeros."""
    a = floats("f64", 1024, seed=0)
    got = np.array(lanes("rcp.approx.ftz.f64 d, a;", a, out=np.uint64), np.uint64)
    numbers, tiny = a.view(np.float64), np.finfo(np.float64).tiny
    numbers = np.where(np.abs(numbers) < tiny, np.copysign(0, numbers), numbers)
    with np.errstate(all="ignore"):
        want = 1 / numbers
        want = np.where(np.abs(want) < tiny, np.copysign(0, want), want)
        ok = np.abs(got.view(np.float64) - want) <= 2.0**-18 * np.abs(want)
    ok &= got & 0xFFFFFFFF == 0
    ok |= (got.view(np.float64) == want) | (np.isnan(got.view(np.float64)) & np.isnan(want))
    assert ok.all(), [(n, g, w) for n, g, w in zip(numbers[~ok], got.view(np.float64)[~ok], want[~ok])]


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_approximations_of_halves(half):
    inputs = floats(half, 1024)
    numbers = np.array([float(parsed(int(i), half).value) for i in inputs])
    greatest = 65504 if half == "f16" else float(np.finfo(np.float32).max)
    for code, f in {"ex2.approx": np.exp2, "tanh.approx": np.tanh}.items():
        flush = ".ftz" if (half, code) == ("bf16", "ex2.approx") else ""
        got = lanes(f"{code}{flush}.{half} d, a;", inputs, out=np.uint16)
        with np.errstate(all="ignore"):
            want = f(numbers)
        for bits, x, y in zip(got, numbers, want):
            result = float(parsed(bits, half).value)
            assert (math.isnan(result) and math.isnan(y)) or result == y or (
                abs(result - y) <= max(abs(y), 2.0**-14) * 2.0 ** (-10.987 if half == "f16" else -7)
                or (result == math.inf and y > greatest)
            ), (code, x, result, y)  # fmt: skip


FLOAT_RELATIONS = {
    **RELATIONS,
    "ne": lambda a, b: a < b or a > b,
    **{f"{name}u": lambda a, b, f=f: f(a, b) or a != a or b != b for name, f in RELATIONS.items()},
    "num": lambda a, b: a == a and b == b,
    "nan": lambda a, b: a != a or b != b,
}


@pytest.mark.parametrize("format", ["f16", "bf16", "f32", "f64"])
def test_setp_of_floats(format):
    inputs = [floats(format, seed=k) for k in range(2)]
    inputs[1][::3] = inputs[0][::3]
    for flush in ("", ".ftz") if format in ("f16", "f32") else ("",):
        numbers = [[parsed(v, format) for v in i.tolist()] for i in inputs]
        if flush:
            numbers = [[flushed(n, format) for n in i] for i in numbers]
        for name, f in FLOAT_RELATIONS.items():
            code = f"setp.{name}{flush}.{format} d, a, b;"
            got = lanes(code, *inputs, out=bool)
            assert_same(code, got, [int(f(a.value, b.value)) for a, b in zip(*numbers)], *inputs)


@pytest.mark.parametrize("format", ["f16", "bf16"])
def test_setp_of_pairs(format):
    """Of the low halves, and of the high: as Triton compares float16."""
    a, b = ([floats(format, seed=2 * k + half).astype(np.uint32) for half in range(2)] for k in range(2))
    b[0][::3], b[1][::4] = a[0][::3], a[1][::4]
    pairs = [low | high << 16 for low, high in (a, b)]
    for name, f in FLOAT_RELATIONS.items():
        for half, predicate in enumerate("pq"):
            numbers = [[parsed(v, format) for v in i[half].tolist()] for i in (a, b)]
            truth = [bool(f(x.value, y.value)) for x, y in zip(*numbers)]
            code = f"setp.{name}.{format}x2 p|q, a, b; mov.pred d, {predicate};"
            assert_same(code, lanes(code, *pairs, out=bool), list(map(int, truth)), *pairs)
            third = np.arange(len(truth), dtype=np.uint32)
            code = f"setp.lt.u32 s, c, 99; setp.{name}.or.{format}x2 p|q, a, b, !s; mov.pred d, {predicate};"
            want = [int(t or c >= 99) for t, c in zip(truth, third)]
            assert_same(code, lanes(code, *pairs, third, out=bool), want, *pairs, third)


@pytest.mark.parametrize("format", ["f32", "f64"])
def test_testp_and_copysign(format):
    exponent = FORMATS[format][1]
    least = Fraction(2) ** (2 - (1 << exponent - 1))
    inputs = floats(format)
    numbers = [parsed(v, format) for v in inputs.tolist()]
    kinds = {
        "finite": lambda s: not isinstance(s, str), "infinite": lambda s: s == "inf", "number": lambda s: s != "nan",
        "notanumber": lambda s: s == "nan", "normal": lambda s: not isinstance(s, str) and s >= least,
        "subnormal": lambda s: not isinstance(s, str) and 0 < s < least,
    }  # fmt: skip
    for kind, f in kinds.items():
        code = f"testp.{kind}.{format} d, a;"
        assert_same(code, lanes(code, inputs, out=bool), [int(f(n.size)) for n in numbers], inputs)
    check_floats(f"copysign.{format} d, a, b;", lambda a, b: Number(a.sign, b.size), format, 2)
    if format == "f32":
        selected = lanes("slct.b32.f32 d, a, b, c;", *[floats("f32", seed=k) for k in range(3)])
        for got, a, b, c in zip(selected, *[floats("f32", seed=k).tolist() for k in range(3)]):
            assert got == (a if parsed(c, "f32").value >= 0 else b), (a, b, c)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_halves_into_a_float(half):
    narrow, wide = floats(half), floats("f32", seed=1)
    for code, f in {"add": sum_of, "sub": lambda a, b: sum_of(a, negated(b))}.items():
        got = without_nans(lanes(f"{code}.f32.{half} d, a, b;", narrow, wide), "f32")
        want = [formed(f(parsed(a, half), parsed(b, "f32")), "f32") for a, b in zip(narrow.tolist(), wide.tolist())]
        assert_same(code, got, want, narrow, wide)


# --- cvt --------------------------------------------------------------------------------------------------------------
INTEGERS = [f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64)]


def limits(type: str) -> tuple[int, int]:
    bits = int(type[1:])
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if type[0] == "s" else (0, (1 << bits) - 1)


def register_bits(type: str) -> int:
    return max(16, int(re.search(r"\d+", type)[0]))


@pytest.mark.parametrize("to", INTEGERS)
def test_cvt_between_integers(to):
    for source in INTEGERS:
        for saturate in ("", ".sat"):
            bits, size = int(source[1:]), register_bits(to)
            inputs = whole(bits)
            code = f"cvt{saturate}.{to}.{source} d, a;"
            low, high = limits(to)
            want = []
            for value in inputs.tolist():
                value = signed(value, bits) if source[0] == "s" else value
                value = max(low, min(high, value)) if saturate else value
                value = signed(value, int(to[1:])) if to[0] == "s" else value & ((1 << int(to[1:])) - 1)
                want.append(value & ((1 << size) - 1))
            assert_same(code, lanes(code, inputs, out=UNSIGNED[size]), want, inputs)
    # Registers may be wider than the types: only the source's own bits count, and all of the result's are set.
    if int(to[1:]) <= 16:
        code = f"cvt.{to}.u32 d, a;"
        inputs = whole(64)
        narrow = [v & 0xFFFFFFFF & ((1 << int(to[1:])) - 1) for v in inputs.tolist()]
        want = [signed(v, int(to[1:])) & 0xFFFFFFFF if to[0] == "s" else v for v in narrow]
        assert_same(code, lanes(code, inputs, out=np.uint32), want, inputs)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("to", INTEGERS)
def test_cvt_to_integers(to, source):
    low, high = limits(to)
    size = register_bits(to)
    inputs = floats(source, 384)
    near = [formed(Number(1 if v >= 0 else -1, abs(Fraction(v))), source)
            for k in range(-9, 10) for v in (k / 2, k / 2 + 0.001, low + k / 2, high + k / 2, high * 1.01)]  # fmt: skip
    inputs = np.concatenate([inputs, np.array(near, inputs.dtype)])
    for mode in ("rni", "rzi", "rmi", "rpi"):
        for flush in ("", ".ftz") if source == "f32" and mode == "rpi" else ("",):
            code = f"cvt.{mode}{flush}.{to}.{source} d, a;"
            want = []
            for bits in inputs.tolist():
                number = parsed(bits, source)
                if flush:
                    number = flushed(number, source)
                if number.size == "nan":  # as PTX 9 says it
                    value = 1 << int(to[1:]) - 1 if source == "f64" or to[1:] == "64" else 0
                    value = signed(value, int(to[1:])) if to[0] == "s" else value
                elif number.size == "inf":
                    value = high if number.sign > 0 else low
                else:
                    value = number.sign * to_whole(number.size, number.sign, mode[:-1])
                    value = max(low, min(high, value))
                want.append(value & ((1 << size) - 1))
            assert_same(code, lanes(code, inputs, out=UNSIGNED[size]), want, inputs)


@pytest.mark.parametrize("to", FORMATS)
def test_cvt_from_integers(to):
    for source in INTEGERS:
        bits = int(source[1:])
        inputs = whole(bits)
        if bits == 64:  # next to what lies halfway between two results
            fraction = FORMATS[to][0]
            ties = [(1 << 63) + (1 << 62 - fraction) + d for d in (-1, 0, 1)] + [(3 << 61) + (1 << 61 - fraction) + 1]
            inputs = np.concatenate([inputs, np.array([t & ((1 << 64) - 1) for t in ties], np.uint64)])
        for mode in ("rn", "rz", "rm", "rp"):
            code = f"cvt.{mode}.{to}.{source} d, a;"
            values = [signed(v, bits) if source[0] == "s" else v for v in inputs.tolist()]
            want = [formed(Number(1 if v >= 0 else -1, Fraction(abs(v))), to, mode) for v in values]
            assert_same(code, lanes(code, inputs, out=UNSIGNED[bits_of(to)]), want, inputs)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_cvt_between_floats(to, source):
    out = UNSIGNED[bits_of(to)]
    inputs = floats(source)
    if FORMATS[source][0] > FORMATS[to][0]:  # next to ties of the narrower
        fraction = FORMATS[source][0] - FORMATS[to][0]
        near = np.array(
            [(int(v) >> fraction << fraction) + (1 << fraction - 1) + k for v in inputs[:90] for k in (-1, 0, 1)]
        )
        inputs = np.concatenate([inputs, near.astype(inputs.dtype)])
    numbers = [parsed(v, source) for v in inputs.tolist()]
    narrower = (FORMATS[to] != FORMATS[source] and FORMATS[to][0] < FORMATS[source][0]) or {to, source} == {
        "f16",
        "bf16",
    }
    for mode in ("rn", "rz", "rm", "rp") if narrower else ("",):
        for saturate in ("", ".sat"):
            code = f"cvt{mode and '.' + mode}{saturate}.{to}.{source} d, a;"
            want = [formed(clamped(n) if saturate else n, to, mode or "rn") for n in numbers]
            assert_same(code, without_nans(lanes(code, inputs, out=out), to), want, inputs)
    if to == source:
        for mode in ("rni", "rzi", "rmi", "rpi"):
            code = f"cvt.{mode}.{to}.{source} d, a;"
            want = []
            for n in numbers:
                size = n.size if isinstance(n.size, str) else Fraction(to_whole(n.size, n.sign, mode[:-1]))
                want.append(formed(Number(n.sign, size), to))
            assert_same(code, without_nans(lanes(code, inputs, out=out), to), want, inputs)
    if "f32" in (to, source) and {to, source} <= {"f16", "f32", "f64"} and to != source:
        mode = ".rn" if narrower else ""
        code = f"cvt{mode}.ftz.{to}.{source} d, a;"
        want = [formed(flushed(n, "f32") if source == "f32" else n, to) for n in numbers]
        if to == "f32":
            want = [formed(flushed(parsed(w, "f32"), "f32"), "f32") if w >= 0 else w for w in want]
        assert_same(code, without_nans(lanes(code, inputs, out=out), to), want, inputs)


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_cvt_of_pairs(half):
    high, low = floats("f32"), floats("f32", seed=1)
    for mode in ("rn", "rz"):
        for relu in ("", ".relu"):
            code = f"cvt.{mode}{relu}.{half}x2.f32 d, a, b;"

            def one(bits, mode=mode, relu=relu):
                number = parsed(bits, "f32")
                if relu and number.size != "nan" and number.value <= 0:
                    number = Number(1, Fraction(0))
                return formed(number, half, mode)

            got = np.array(lanes(code, high, low), np.uint32).view(np.uint16).reshape(-1, 2).T
            assert_same(code, without_nans(got[0].tolist(), half), [one(v) for v in low.tolist()], low)
            assert_same(code, without_nans(got[1].tolist(), half), [one(v) for v in high.tolist()], high)


def test_cvt_to_tf32():
    """10 bits of fraction, the rest 0: a float16's fraction with a float32's exponent."""
    inputs = floats("f32")
    finite = np.array([v for v in inputs.tolist() if parsed(v, "f32").size not in ("nan", "inf")], np.uint32)
    FORMATS["tf32"] = (10, 8)
    try:
        for mode in ("rna", "rn"):
            want = [formed(parsed(v, "f32"), "tf32", mode) << 13 for v in finite.tolist()]
            assert_same(mode, lanes(f"cvt.{mode}.tf32.f32 d, a;", finite), want, finite)
    finally:
        del FORMATS["tf32"]


# --- memory -----------------------------------------------------------------------------------------------------------
MEMORY_TYPES = ["u8", "s8", "b8", "u16", "s16", "b16", "u32", "s32", "b32", "f32", "u64", "s64", "b64", "f64"]


def registers_for(type: str) -> tuple[str, int]:
    """The narrowest registers that hold a type: their names' letter, their bits."""
    bits = int(type[1:])
    return {"f32": ("f", 32), "f64": ("g", 64)}.get(type, ({8: "h", 16: "h", 32: "r", 64: "x"}[bits], max(16, bits)))


SHARED_64 = "\n.shared .align 16 .b8 room[4096]; .local .align 16 .b8 own[64];"


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic global", "generic shared", "generic local"])
@pytest.mark.parametrize("vector", [1, 2, 4])
def test_loads_and_stores(space, vector):
    """Through every space, in every width: what is stored is what is loaded."""
    for type in MEMORY_TYPES:
        size = int(type[1:]) // 8
        if size * vector > 16:
            continue
        letter, _ = registers_for(type)
        names = [f"{letter}{k + 1}" for k in range(vector)]
        values = names[0] if vector == 1 else "{" + ", ".join(names) + "}"
        kind = ("." + f"v{vector}.{type}") if vector > 1 else f".{type}"
        step = size * vector
        name, generic = space.split()[-1], space.startswith("generic")
        code = [
            SHARED_64,
            f"mul.lo.u32 r10, tid, {step}; cvt.u64.u32 x10, r10; add.u64 x11, _x, x10; add.u64 x12, _y, x10;",
        ]
        code.append(f"ld.global{kind} {values}, [x11];")
        for n in names:  # what the load left there is not what comes back
            code.append(f"mov.b{registers_for(type)[1]} {letter}0, {n};" if vector == 1 else "")
        if name == "global":
            place = "_z"
        else:
            code.append(f"mov.u64 x13, {'room' if name == 'shared' else 'own'};")
            place = "x13"
            if generic:
                code.append(f"cvta.{name}.u64 x13, x13;")
        # Local memory has one place for each thread; the displacement is worth a test.
        code.append(
            f"add.u64 x14, {place}, x10; add.u64 x14, x14, -16;" if name != "local" else f"add.u64 x14, {place}, 16;"
        )
        displacement = "+16" if name != "local" else "+-16"
        where = "" if generic else f".{name}"
        code.append(f"st{where}{kind} [x14{displacement}], {values};")
        code += [f"mov.b{registers_for(type)[1]} {n}, 0;" for n in names]
        code.append(f"ld{where}{kind} {values}, [x14{displacement}]; st.global{kind} [x12], {values};")
        data = np.frombuffer(np.random.default_rng(size).bytes(32 * step), np.uint8).copy()
        x, y, z = aligned(32 * step, np.uint8), aligned(32 * step, np.uint8), aligned(32 * step, np.uint8)
        x[:] = data
        run("\n".join(code), x, y, z)
        assert (y == data).all(), (type, vector)
        if name == "global":
            assert (z == data).all()


def test_loads_extend_into_wider_registers():
    for type in ("u8", "s8", "u16", "s16", "u32", "s32"):
        bits = int(type[1:])
        for register in (32, 64):
            if register <= bits:
                continue
            x, y = aligned(32 * 8, np.uint8), aligned(32, UNSIGNED[register])
            x[:] = np.random.default_rng(0).integers(0, 256, x.size)
            letter = {32: "r", 64: "x"}[register]
            run(f"mul.lo.u32 r10, tid, {bits // 8}; cvt.u64.u32 x10, r10; add.u64 x10, x10, _x; "
            f"ld.global.{type} {letter}1, [x10];"
                f"mad.wide.u32 x11, tid, {register // 8}, _y; "
                f"st.global.b{register} [x11], {letter}1;", x, y)  # fmt: skip
            numbers = x[: 32 * bits // 8].view(UNSIGNED[bits]).tolist()
            want = [signed(v, bits) if type[0] == "s" else v for v in numbers]
            assert y.tolist() == [w & ((1 << register) - 1) for w in want]
    # A store of a wide register's lowest bits.
    x, y = aligned(32, np.uint32), aligned(32, np.uint8)
    x[:] = np.arange(32) * 0x01010107
    run(
        "add.u64 x1, at, _x; ld.global.u32 r1, [x1]; cvt.u64.u32 x2, tid; add.u64 x2, x2, _y; st.global.u8 [x2], r1;",
        x,
        y,
    )
    assert (y == x.astype(np.uint8)).all()


def test_parameters_of_every_width_and_structs():
    text = f"""{HEAD}
.visible .entry k(.param .u8 a, .param .u16 b, .param .u32 c, .param .u64 d, .param .f32 e, .param .f64 f,
    .param .align 16 .b8 whole[48], .param .u64 y, .param .align 4 .b8 bytes[4]) {{
    {REGISTERS}
    ld.param.u64 x1, [y];
    ld.param.u8 r1, [a]; st.global.u32 [x1], r1;
    ld.param.s8 r1, [a]; st.global.u32 [x1+4], r1;
    ld.param.u16 h1, [b]; cvt.u32.u16 r1, h1; st.global.u32 [x1+8], r1;
    ld.param.u32 r1, [c]; st.global.u32 [x1+12], r1;
    ld.param.u64 x2, [d]; st.global.u64 [x1+16], x2;
    ld.param.f32 f1, [e]; st.global.f32 [x1+24], f1;
    ld.param.f64 g1, [f]; st.global.f64 [x1+32], g1;
    ld.param.v4.u32 {{r1, r2, r3, r4}}, [whole+16]; st.global.v4.u32 [x1+48], {{r1, r2, r3, r4}};
    ld.param.v2.f32 {{f1, f2}}, [whole+32]; st.global.v2.f32 [x1+64], {{f1, f2}};
    mov.b64 x3, whole; ld.param.u32 r5, [x3+8]; st.global.u32 [x1+72], r5;
    ld.param.v4.b8 {{h1, h2, h3, h4}}, [bytes]; cvt.u32.u16 r1, h3; st.global.u32 [x1+76], r1;
    mov.b64 x4, whole; cvta.param.u64 x4, x4; ld.u32 r6, [x4+44]; st.global.u32 [x1+80], r6;
    ret;
}}"""
    y = aligned(96, np.uint8)
    struct_ = bytes(range(48))
    module = Module(text)
    assert [(p.name, p.offset, p.size) for p in module["k"].params] == [
        ("a", 0, 1), ("b", 2, 2), ("c", 4, 4), ("d", 8, 8), ("e", 16, 4), ("f", 24, 8), ("whole", 32, 48), ("y", 80, 8),
        ("bytes", 88, 4)]  # fmt: skip
    report = module["k"].launch(1, 1, [-3, 65533, -7, -9, 1.5, 2.5, struct_, y, b"\x01\x02\x03\x04"])
    report.check()
    assert struct.unpack_from("<IiIi q f", y) == (253, -3, 65533, -7, -9, 1.5)
    assert struct.unpack_from("<d", y, 32) == (2.5,)
    assert bytes(y[48:64]) == struct_[16:32]
    assert bytes(y[64:72]) == struct_[32:40]
    assert bytes(y[72:76]) == struct_[8:12]
    assert struct.unpack_from("<I", y, 76) == (3,)
    assert bytes(y[80:84]) == struct_[44:48]


def test_variables_of_the_module():
    outside = """.const .align 4 .f32 table[4] = {0f3F800000, 0f40000000, 0f40400000, 0f40800000};
.global .align 8 .u64 sum = 5; .visible .global .u8 letters[4] = {65, 66}; .global .align 4 .b8 empty[16];"""
    y = aligned(8, np.float32)
    code = """mov.u64 x1, table; ld.const.f32 f1, [x1+8]; ld.const.f32 f2, [table+4]; add.f32 f1, f1, f2;
st.global.f32 [_y], f1; ld.global.u8 r1, [letters+1]; cvt.rn.f32.u32 f3, r1; st.global.f32 [_y+4], f3;
ld.global.u8 r1, [letters+3]; cvt.rn.f32.u32 f3, r1; st.global.f32 [_y+8], f3;
cvta.const.u64 x1, x1; ld.f32 f4, [x1]; st.global.f32 [_y+12], f4;
ld.global.u64 x2, [sum]; add.u64 x2, x2, 1; st.global.u64 [sum], x2; cvt.rn.f32.u64 f5, x2; st.global.f32 [_y+16], f5;
ld.global.u32 r2, [empty+4]; cvt.rn.f32.u32 f6, r2; st.global.f32 [_y+20], f6;"""
    one = kernel(code, "y", outside)
    for launch in range(2):  # what is global keeps its value from one launch to the next
        one.launch(1, 1, [y]).check()
        assert y.tolist() == [5, 66, 0, 1, 6 + launch, 0, 0, 0]


def test_isspacep_and_cvta():
    y = aligned(12, np.uint32)
    spaces = ["global", "shared", "local"]
    code = [SHARED_64, "mov.u64 x1, room; cvta.shared.u64 x1, x1; mov.u64 x2, own; cvta.local.u64 x2, x2;"]
    for row, pointer in enumerate(["_y", "x1", "x2"]):
        for column, space in enumerate(spaces):
            code.append(
                f"isspacep.{space} p, {pointer}; selp.u32 r1, 1, 0, p; st.global.u32 [_y+{4 * (3 * row + column)}], r1;"
            )
    code.append(
        "mov.u64 x3, room; cvta.to.shared.u64 x4, x1; setp.eq.u64 p, x3, x4; selp.u32 r1, 1, 0, p; "
        "st.global.u32 [_y+36], r1;"
    )
    code.append(
        "cvta.to.shared.u64 x4, x1; cvt.u32.u64 r2, x4; mov.u32 r3, room; setp.eq.u32 p, r2, r3; selp.u32 r1, 1, 0, p;"
    )
    code.append(
        "st.global.u32 [_y+40], r1; cvta.to.global.u64 x5, _y; setp.eq.u64 p, x5, _y; "
        "selp.u32 r1, 1, 0, p; st.global.u32 [_y+44], r1;"
    )
    kernel("\n".join(code), "y").launch(1, 1, [y]).check()
    assert y.tolist() == [1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1]


# --- atomics: 32 lanes on one number, in turn; each gets what was there before ----------------------------------------
def as_type(bits: int, type: str) -> int | Number:
    return signed(bits, int(type[1:])) if type[0] == "s" else bits


ATOMICS = {
    **{f"{op}.{type}": f for type in ("u32", "s32", "u64", "s64") for op, f in
       {"min": lambda a, b: min(a, b), "max": lambda a, b: max(a, b), "add": lambda a, b: a + b}.items()
       if (op, type) != ("add", "s64")},
    **{f"{op}.b{bits}": f for bits in (32, 64) for op, f in
       {"and": operator.and_, "or": operator.or_, "xor": operator.xor, "exch": lambda a, b: b}.items()},
    "inc.u32": lambda a, b: 0 if a >= b else a + 1, "dec.u32": lambda a, b: b if a == 0 or a > b else a - 1,
}  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared", ""])
def test_atomics_on_integers(space):
    for name, f in ATOMICS.items():
        type = name.split(".")[1]
        bits = int(type[1:])
        x, y, z = whole(bits, 32), aligned(32, UNSIGNED[bits]), aligned(1, UNSIGNED[bits])
        z[0] = first = whole(bits, 1, seed=7)[0]
        letter, where = {32: "r", 64: "x"}[bits], "_z"
        code = [
            SHARED_64,
            f"mad.wide.u32 x10, tid, {bits // 8}, _x; mad.wide.u32 x11, tid, {bits // 8}, _y; "
            f"ld.global.b{bits} {letter}1, [x10];",
        ]
        if space == "shared":
            where = "[room]"[1:-1]
            code.append(
                f"setp.eq.u32 p, tid, 0; @p ld.global.b{bits} {letter}2, [_z]; "
                f"@p st.shared.b{bits} [room], {letter}2; bar.sync 0;"
            )
        kind = f".{space}" if space else ""
        code.append(f"atom{kind}.{name} {letter}3, [{where}], {letter}1; st.global.b{bits} [x11], {letter}3;")
        if space == "shared":
            code.append(f"bar.sync 0; @p ld.shared.b{bits} {letter}2, [room]; @p st.global.b{bits} [_z], {letter}2;")
        run("\n".join(code), x, y, z)
        value, before = int(first), []
        for operand in x.tolist():
            before.append(value)
            value = f(as_type(value, type), as_type(operand, type)) & ((1 << bits) - 1)
        assert y.tolist() == before, name
        assert z[0] == value, name
        z[0] = first
        if space == "global" and "exch" not in name:  # red: the same without the old value
            run(
                f"mad.wide.u32 x10, tid, {bits // 8}, _x; ld.global.b{bits} {letter}1, [x10]; "
                f"red.global.{name} [_z], {letter}1;",
                x,
                y,
                z,
            )
            assert z[0] == value, f"red.{name}"


def test_compare_and_swap():
    for bits, letter in ((16, "h"), (32, "r"), (64, "x")):
        y, z = aligned(32, UNSIGNED[bits]), aligned(1, UNSIGNED[bits])
        # Each lane takes its turn: lane k finds k and leaves k + 1.
        run(f"cvt.u{bits}.u32 {letter}1, tid; add.u{bits} {letter}2, {letter}1, 1; "
        f"mad.wide.u32 x10, tid, {bits // 8}, _x;"
            f"atom.global.acq_rel.gpu.cas.b{bits} {letter}3, [_y], {letter}1, {letter}2; "
            f"st.global.b{bits} [x10], {letter}3;", y, z)  # fmt: skip
        assert y.tolist() == list(range(32))
        assert z[0] == 32


@pytest.mark.parametrize("format", ["f32", "f64", "f16", "bf16", "f16x2", "bf16x2"])
def test_atomic_sums_of_floats(format):
    half = format.removesuffix("x2")
    bits = bits_of(half) * (2 if format != half else 1)
    letter = {16: "h", 32: "r", 64: "x"}[bits]
    values = floats(half, 64)
    values = values[:32] if half == format else values.view(np.uint32)
    kind = ".noftz" if half in ("f16", "bf16") else ""
    y, z = aligned(32, UNSIGNED[bits]), aligned(1, UNSIGNED[bits])
    run(f"mad.wide.u32 x10, tid, {bits // 8}, _x; mad.wide.u32 x11, tid, {bits // 8}, _y; "
    f"ld.global.b{bits} {letter}1, [x10];"
        f"atom.global.add{kind}.{format} {letter}2, [_z], {letter}1; "
        f"st.global.b{bits} [x11], {letter}2;", values, y, z)  # fmt: skip
    parts = np.array(values).view(UNSIGNED[bits_of(half)]).reshape(32, -1)
    old = y.view(parts.dtype).reshape(32, -1)
    for part in range(parts.shape[1]):
        total = Number(1, Fraction(0))
        for lane in range(32):
            got = parsed(int(old[lane, part]), half)
            assert got == total or got.size == total.size == "nan"
            rounded = formed(sum_of(total, parsed(int(parts[lane, part]), half)), half)
            total = NAN if rounded < 0 else parsed(rounded, half)


def test_vector_reductions():
    x, y = aligned(128), aligned(4)
    x[:] = np.random.default_rng(0).integers(-9, 9, 128)
    run("shl.b32 r1, tid, 4; cvt.u64.u32 x1, r1; add.u64 x1, x1, _x; ld.global.v4.f32 {f1, f2, f3, f4}, [x1];"
        "red.global.gpu.relaxed.add.v4.f32 [_y], {f1, f2, f3, f4};", x, y)  # fmt: skip
    assert (y == x.reshape(32, 4).sum(0)).all()


# --- cp.async ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("kept", [None, 0, 4, 1])
def test_cp_async_copies_and_fills(size, kept):
    kind = "cg" if size == 16 else "ca"
    x, y = aligned(32 * size, np.uint8), aligned(32 * size, np.uint8)
    x[:] = np.random.default_rng(0).integers(1, 255, x.size)
    source = f", {kept}" if kept is not None and kept <= size else ""
    lines = "\n".join(
        f"mul.lo.u32 r3, tid, {size}; add.u32 r3, r3, {k}; cvt.u64.u32 x3, r3; add.u64 x3, x3, _y; "
        f"ld.shared.u32 r4, [r2+{k}]; st.global.u32 [x3], r4;"
        for k in range(0, size, 4)
    )
    run(f"{SHARED_64} mul.lo.u32 r1, tid, {size}; cvt.u64.u32 x1, r1; add.u64 x1, x1, _x; mov.u32 r2, room; "
    f"add.u32 r2, r2, r1;"
        f"cp.async.{kind}.shared.global.L2::128B [r2], [x1], {size}{source};\ncp.async.commit_group; "
        f"cp.async.wait_group 0;\n{lines}", x, y)  # fmt: skip
    want = x.reshape(32, size).copy()
    if source:
        want[:, kept:] = 0
    assert (y.reshape(32, size) == want).all()


def test_cp_async_reads_no_more_than_it_is_told_to():
    """Bytes beyond what is copied need not exist, nor any where none is."""
    x, y = aligned(16), aligned(32, fill=7)
    memory = Memory()
    memory.track(x, name="x")
    run(f"{SHARED_64} shl.b32 r1, tid, 2; mov.u32 r2, room; add.u32 r2, r2, r1; add.u64 x1, at, _x; "
    f"setp.lt.u32 p, tid, 16; selp.u32 r3, 4, 0, p;"
        "cp.async.ca.shared.global.L2::cache_hint [r2], [x1], 4, r3, x9; cp.async.wait_all; "
        "ld.shared.f32 f1, [r2]; add.u64 x2, at, _y;"
        "st.global.f32 [x2], f1;", x, y, memory=memory)  # fmt: skip
    assert (y == 0).all()


CP_ASYNC = """add.u64 x1, at, _x; mov.u32 r2, room; shl.b32 r1, tid, 2; add.u32 r2, r2, r1; mov.u32 r9, 0;
st.shared.u32 [r2], r9; st.shared.u32 [r2+1024], r9;
cp.async.ca.shared.global [r2], [x1], 4; cp.async.commit_group;
cp.async.ca.shared.global [r2+1024], [x1+128], 4; cp.async.commit_group;
"""


def test_cp_async_lands_group_by_group():
    x, y = aligned(64, np.uint32), aligned(32, np.uint32)
    x[:] = np.arange(64) + 1
    read = "ld.shared.u32 r3, [r2{}]; add.u64 x2, at, _y; st.global.u32 [x2], r3;"
    for wait, place, fine in [(1, "", True), (0, "", True), (0, "+1024", True), (1, "+1024", False), (2, "", False)]:
        text = f"{SHARED_64} {CP_ASYNC} cp.async.wait_group {wait};\n" + read.format(place)
        report = kernel(text).launch(1, 32, [x, y])
        kinds = {finding.kind for finding in report.findings}
        assert kinds == (set() if fine else {"uninitialised"}), (wait, place, report.findings)
        if fine:
            assert (y == x[32 if place else 0 :][:32]).all()


def test_cp_async_groups_are_each_threads_own():
    """Lanes that part commit apart: what each waits for is its own."""
    x, y = aligned(64, np.uint32), aligned(32, np.uint32)
    x[:] = np.arange(64) + 1
    code = f"""{SHARED_64} add.u64 x1, at, _x; mov.u32 r2, room; shl.b32 r1, tid, 2; add.u32 r2, r2, r1;
and.b32 r3, tid, 1;
setp.eq.u32 p, r3, 0; @p bra EVEN;
cp.async.ca.shared.global [r2], [x1], 4; cp.async.commit_group; ODD bra MEET;
EVEN: cp.async.ca.shared.global [r2], [x1+128], 4; cp.async.commit_group; cp.async.commit_group;
MEET: bar.warp.sync -1; cp.async.wait_group 1;
ld.shared.u32 r4, [r2]; add.u64 x2, at, _y; st.global.u32 [x2], r4;"""
    run(code.replace("ODD", "cp.async.commit_group;"), x, y)
    assert (y == np.where(np.arange(32) % 2, x[:32], x[32:])).all()
    report = kernel(code.replace("ODD", "")).launch(1, 32, [x, y])
    assert [(f.kind, f.thread, f.times) for f in report.findings] == [("uninitialised", (1, 0, 0), 16)]


# --- tensor cores: fragments as PTX draws them ------------------------------------------------------------------------
def split(format: str, values: np.ndarray) -> np.ndarray:
    """Numbers to bits of the format."""
    if format == "bf16":
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    if format == "f16":
        return values.astype(np.float16).view(np.uint16)
    return values.astype(np.float32).view(np.uint32)


MMA = [("m16n8k16", "f32", "f16"), ("m16n8k16", "f32", "bf16"), ("m16n8k16", "f16", "f16"), ("m16n8k8", "f32", "f16"),
       ("m16n8k8", "f32", "bf16"), ("m16n8k8", "f16", "f16"), ("m16n8k8", "f32", "tf32"),
       ("m16n8k4", "f32", "tf32")]  # fmt: skip


@pytest.mark.parametrize(("shape", "sums", "format"), MMA)
def test_mma(shape, sums, format):
    k = int(shape[6:])
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-8, 9, size).astype(np.float32) / 4 for size in ((16, k), (k, 8), (16, 8)))
    fragments = {"a": np.zeros((32, 4), np.uint32), "b": np.zeros((32, 2), np.uint32)}
    bits = {"a": split(format, a), "b": split(format, b)}
    per = 1 if format == "tf32" else 2
    registers = {"a": 2 * k * per // per // (4 * per), "b": k // (4 * per)}
    for lane in range(32):
        group, of_four = lane // 4, lane % 4
        for register in range(registers["a"]):
            for half in range(per):
                row = group + 8 * (register % 2)
                column = of_four * per + half + 4 * per * (register // 2)
                fragments["a"][lane, register] |= int(bits["a"][row, column]) << 16 * half
        for register in range(registers["b"]):
            for half in range(per):
                row = of_four * per + half + 4 * per * register
                fragments["b"][lane, register] |= int(bits["b"][row, group]) << 16 * half
    if format == "tf32":  # the bits that tf32 has not do not count
        fragments["a"] |= 0x1FFF
        a = a.astype(np.float64)
    c_fragments = np.zeros((32, 4), np.float32)
    for lane in range(32):
        for e in range(4):
            c_fragments[lane, e] = c[lane // 4 + 8 * (e // 2), lane % 4 * 2 + e % 2]
    c_bits = c_fragments.view(np.uint32) if sums == "f32" else c_fragments.astype(np.float16).view(np.uint32)
    c_bits = np.ascontiguousarray(np.pad(c_bits, ((0, 0), (0, 4 - c_bits.shape[1]))))
    y = aligned((32, 4), np.uint32)
    load = "shl.b32 r15, tid, 4; cvt.u64.u32 x9, r15;" + "".join(
        f"add.u64 x8, x9, _{name}; ld.global.v4.u32 {{{first}0, {first}1, {first}2, {first}3}}, [x8];"
        for name, first in (("x", "a"), ("z", "b"), ("u", "c"))
    )
    names = {
        n: ", ".join(f"{n}{j}" for j in range(count)) for n, count in (("a", registers["a"]), ("b", registers["b"]))
    }
    count = 4 if sums == "f32" else 2
    kind = "f" if sums == "f32" else "b"
    d, cs = (", ".join(f"{n}{j}" for j in range(count)) for n in ("d", "c"))
    fragments["b"] = np.ascontiguousarray(np.pad(fragments["b"], ((0, 0), (0, 2))))
    arrays = []
    for values in (fragments["a"], fragments["b"], c_bits):
        arrays.append(aligned((32, 4), np.uint32))
        arrays[-1][...] = values
    run(f".reg .b32 a<4>, b<4>, c<4>; .reg .{kind}32 d<4>; "
    f"{load} mma.sync.aligned.{shape}.row.col.{sums}.{format}.{format}.{sums} "
        f"{{{d}}}, {{{names['a']}}}, {{{names['b']}}}, {{{cs}}}; add.u64 x8, x9, _y;"
        + "".join(f"st.global.b32 [x8+{4 * j}], d{j};" for j in range(count)),
        arrays[0], y, arrays[1], arrays[2])  # fmt: skip
    want = a.astype(np.float64) @ b + c
    got = y.view(np.float32) if sums == "f32" else np.ascontiguousarray(y[:, :2]).view(np.float16)
    for lane in range(32):
        for e in range(4):
            assert got[lane, e] == want[lane // 4 + 8 * (e // 2), lane % 4 * 2 + e % 2]


def test_mma_of_doubles():
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), rng.standard_normal((8, 8))
    y = aligned((8, 8), np.float64)
    run("mad.wide.u32 x1, tid, 8, _x; ld.global.f64 g1, [x1]; mad.wide.u32 x1, tid, 8, _z; ld.global.f64 g2, [x1];"
        "mad.wide.u32 x1, tid, 16, _u; ld.global.v2.f64 {g3, g4}, [x1];"
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {g5, g6}, {g1}, {g2}, {g3, g4}; "
        "mad.wide.u32 x1, tid, 16, _y;"
        "st.global.v2.f64 [x1], {g5, g6};", a, y, np.ascontiguousarray(b.T), c)  # fmt: skip
    np.testing.assert_allclose(y, a @ b + c, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_stmatrix(count, transposed):
    """Matrices lie with rows of 80 bytes in shared memory: read as fragments, and written back elsewhere."""
    x, y, z = aligned((32, 8), np.uint16), aligned((32, 4), np.uint32), aligned((32, 8), np.uint16)
    x[...] = np.arange(256).reshape(32, 8) * 7
    names = ", ".join(f"r{j + 1}" for j in range(count))
    kind = f"m8n8.x{count}{'.trans' if transposed else ''}.shared.b16"
    run(f""".shared .align 16 .b8 all[5120]; mad.wide.u32 x1, tid, 16, _x; ld.global.v4.u32 {{r1, r2, r3, r4}}, [x1];
mov.u32 r10, all; mad.lo.u32 r11, tid, 80, r10; st.shared.v4.u32 [r11], {{r1, r2, r3, r4}};
mov.u32 r5, 0; st.shared.v4.u32 [r11+2560], {{r5, r5, r5, r5}}; bar.warp.sync -1;
ldmatrix.sync.aligned.{kind} {{{names}}}, [r11]; stmatrix.sync.aligned.{kind} [r11+2560], {{{names}}};
bar.warp.sync -1;
mad.wide.u32 x1, tid, 16, _y; st.global.v4.u32 [x1], {{r1, r2, r3, r4}};
ld.shared.v4.u32 {{r1, r2, r3, r4}}, [r11+2560]; mad.wide.u32 x1, tid, 16, _z;
st.global.v4.u32 [x1], {{r1, r2, r3, r4}};""",
        x, y, z)  # fmt: skip
    matrices = x.reshape(4, 8, 8)
    for m in range(count):
        matrix = matrices[m].T if transposed else matrices[m]
        for lane in range(32):
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert y[lane, m] == int(low) | int(high) << 16
    assert (z.reshape(4, 8, 8)[:count] == matrices[:count]).all()
    assert (z.reshape(4, 8, 8)[count:] == 0).all()


# --- lanes together ---------------------------------------------------------------------------------------------------
def per_lane(code: str, *arrays, out=32, **kwargs) -> list:
    """`code` makes r0 (or, out=1, predicate p) of r1, r2, r3, which are loaded from the arrays."""
    y = aligned(32, np.uint32)
    loads = "".join(f"add.u64 x1, at, _{n}; ld.global.b32 r{k + 1}, [x1];" for k, n in enumerate("xzuv"[: len(arrays)]))
    store = "selp.u32 r0, 1, 0, p;" if out == 1 else ""
    names = "y " + " ".join("xzuv"[: len(arrays)])
    kernel(f"{loads}\n{code}\n{store} add.u64 x1, at, _y; st.global.b32 [x1], r0;", names).launch(
        1, 32, [y, *(np.asarray(a, np.uint32) for a in arrays)], **kwargs
    ).check()
    return y.tolist()


LANES = np.arange(32, dtype=np.uint32)


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8, 1])
def test_shfl(mode, width):
    """As __shfl_sync of that width: lanes shuffle among `width` neighbours, and keep their own where there is none."""
    values = whole(32, 32)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    for amounts in (np.full(32, 1), np.full(32, width // 2), LANES * 5 % 32):
        got = per_lane(f"shfl.sync.{mode}.b32 r0|p, r1, r2, {clamp}, -1;", values, amounts)
        found = per_lane(f"shfl.sync.{mode}.b32 r0|p, r1, r2, {clamp}, -1;", values, amounts, out=1)
        alone = per_lane(f"shfl.sync.{mode}.b32 r0, r1, r2, {clamp}, 0xffffffff;", values, amounts)
        want, inside = [], []
        for lane in range(32):
            first = lane // width * width
            n = int(amounts[lane])
            source = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": first + n % width}[mode]
            # bfly may reach the segments before its own, as CUDA says.
            reached = source < first + width and (source >= first or mode == "bfly")
            want.append(int(values[source if reached else lane]))
            inside.append(int(reached))
        assert got == alone == want
        assert found == inside


def test_shfl_within_some_lanes():
    """Two halves of a warp, each with a mask of its own; and a guard instead of a branch."""
    code = """setp.lt.u32 q, tid, 16; @q bra LOW; shfl.sync.idx.b32 r0, r1, 31, 31, 0xffff0000; bra END;
LOW: shfl.sync.idx.b32 r0, r1, 3, 31, 0x0000ffff; END: """
    assert per_lane(code, LANES) == [3] * 16 + [31] * 16
    code = "mov.u32 r0, 99; setp.lt.u32 q, tid, 8; @q shfl.sync.bfly.b32 r0, r1, 7, 31, 255;"
    assert per_lane(code, LANES) == [7, 6, 5, 4, 3, 2, 1, 0] + [99] * 24


def test_vote():
    some = np.array([3, 9] * 16)
    for array, want in [(some, (0, 1, 0)), (some * 0, (1, 1, 1)), (some * 0 + 9, (0, 0, 1))]:
        for mode, expected in zip(("all", "any", "uni"), want):
            code = f"setp.lt.u32 q, r1, 5; vote.sync.{mode}.pred p, q, -1;"
            assert per_lane(code, array, out=1) == [expected] * 32, (mode, array)
    assert per_lane("setp.lt.u32 q, r1, 5; vote.sync.ballot.b32 r0, q, -1;", some) == [0x55555555] * 32
    assert per_lane("setp.lt.u32 q, r1, 5; vote.sync.ballot.b32 r0, !q, -1;", some) == [0xAAAAAAAA] * 32
    assert per_lane("setp.lt.u32 q, r1, 5; vote.sync.all.pred p, !q, -1;", some * 0 + 9, out=1) == [1] * 32
    code = "mov.u32 r0, 0; setp.lt.u32 q, tid, 4; setp.lt.u32 s, r1, 5; @q vote.sync.ballot.b32 r0, s, 15;"
    assert per_lane(code, some) == [5] * 4 + [0] * 28


def test_match():
    values = LANES % 5
    want = [int(sum(1 << k for k in range(32) if k % 5 == lane % 5)) for lane in range(32)]
    assert per_lane("match.any.sync.b32 r0, r1, -1;", values) == want
    assert per_lane("cvt.u64.u32 x2, r1; match.any.sync.b64 r0, x2, -1;", values) == want
    for array, alike in [(values, 0), (values * 0 + 7, 1)]:
        assert per_lane("match.all.sync.b32 r0|p, r1, -1;", array) == [0xFFFFFFFF * alike] * 32
        assert per_lane("match.all.sync.b32 r0|p, r1, -1;", array, out=1) == [alike] * 32


def test_redux_activemask_elect():
    values = whole(32, 32)
    numbers = [int(v) for v in values]
    s = [signed(v, 32) for v in numbers]
    both = either = odd = numbers[0]
    for n in numbers[1:]:
        both, either, odd = both & n, either | n, odd ^ n
    results = {"add.u32": sum(numbers), "add.s32": sum(s), "min.u32": min(numbers), "max.u32": max(numbers),
               "min.s32": min(s),
               "max.s32": max(s), "and.b32": both, "or.b32": either, "xor.b32": odd}  # fmt: skip
    for op, result in results.items():
        assert per_lane(f"redux.sync.{op} r0, r1, -1;", values) == [result & 0xFFFFFFFF] * 32, op
    code = "mov.u32 r0, 0; setp.ge.u32 q, tid, 30; @q redux.sync.add.u32 r0, r1, 0xC0000000;"
    assert per_lane(code, LANES) == [0] * 30 + [61] * 2
    assert per_lane("activemask.b32 r0;") == [0xFFFFFFFF] * 32
    code = "mov.u32 r0, 1; setp.lt.u32 q, tid, 4; @q bra END; activemask.b32 r0; END: "
    assert per_lane(code) == [1] * 4 + [0xFFFFFFF0] * 28
    assert per_lane("elect.sync r0|p, -1;", out=1) == [1] + [0] * 31
    code = "mov.u32 r0, 77; setp.ge.u32 q, tid, 5; @q elect.sync r0|p, 0xFFFFFFE0;"
    assert per_lane(code) == [77] * 5 + [5] * 27


def test_special_registers():
    y = aligned(24 * 6, np.uint32)
    specials = ["tid.x", "tid.y", "tid.z", "ctaid.x", "ctaid.y", "ctaid.z", "ntid.x", "ntid.y", "ntid.z", "nctaid.x",
                "nctaid.y",
                "nctaid.z", "laneid", "warpid"]  # fmt: skip
    y = aligned((12, 24, len(specials)), np.uint32)
    code = (
        "mov.u32 r1, %ctaid.z; mov.u32 r2, %ctaid.y; mov.u32 r3, %ctaid.x; mad.lo.u32 r1, r1, 2, r2; "
        "mad.lo.u32 r1, r1, 3, r3;"
    )
    code += (
        "mov.u32 r4, %tid.z; mov.u32 r5, %tid.y; mad.lo.u32 r4, r4, 3, r5; mad.lo.u32 r4, r4, 4, tid; "
        "mad.lo.u32 r1, r1, 24, r4;"
    )
    code += f"mad.wide.u32 x1, r1, {4 * len(specials)}, _y;"
    code += "".join(f"mov.u32 r6, %{s}; st.global.u32 [x1+{4 * k}], r6;" for k, s in enumerate(specials))
    kernel(code, "y").launch((3, 2, 2), (4, 3, 2), [y]).check()
    for block in range(12):
        for thread in range(24):
            assert y[block, thread].tolist() == [
                thread % 4, thread // 4 % 3, thread // 12, block % 3, block // 3 % 2, block // 6, 4, 3, 2, 3, 2, 2,
                thread, 0
            ]  # fmt: skip
    masks = {"eq": lambda l: 1 << l, "lt": lambda l: (1 << l) - 1, "le": lambda l: (2 << l) - 1}
    masks |= {"ge": lambda l: 0xFFFFFFFF & -1 << l, "gt": lambda l: 0xFFFFFFFF & -2 << l}
    for name, f in masks.items():
        assert per_lane(f"mov.u32 r0, %lanemask_{name};") == [f(l) for l in range(32)]


# --- lanes that part --------------------------------------------------------------------------------------------------
def collatz(n: int) -> int:
    steps = 0
    while n > 1 and steps < 40:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps


def test_loops_with_a_count_of_their_own():
    code = """mov.u32 r0, 0; LOOP: setp.le.u32 p, r1, 1; @p bra END; setp.ge.u32 p, r0, 40; @p bra END;
and.b32 r2, r1, 1; setp.eq.u32 q, r2, 0; @q bra EVEN; mad.lo.u32 r1, r1, 3, 1; bra NEXT;
EVEN: shr.u32 r1, r1, 1; NEXT: add.u32 r0, r0, 1; bra LOOP; END: """
    assert per_lane(code, LANES) == [collatz(n) for n in range(32)]


def test_lanes_that_parted_meet_again():
    """After a branch, and after a loop, all lanes go on together: activemask says so, and a shuffle finds all."""
    code = """mov.u32 r5, 0; LOOP: add.u32 r5, r5, 1; setp.lt.u32 p, r5, r1; @p bra LOOP;
setp.lt.u32 p, tid, 7; @p bra A; setp.lt.u32 q, tid, 20; @q bra B; add.u32 r5, r5, 1000; bra MEET;
B: add.u32 r5, r5, 100; bra MEET; A: add.u32 r5, r5, 10; MEET: activemask.b32 r6;
shfl.sync.bfly.b32 r7, r5, 31, 31, -1;
setp.ne.u32 p, r6, -1; selp.u32 r0, 0, r7, p;"""
    sums = [max(1, n) + (10 if n < 7 else 100 if n < 20 else 1000) for n in range(32)]
    assert per_lane(code, LANES) == sums[::-1]


def test_switch():
    code = """T: .branchtargets L0, L1, L2, L3; setp.gt.u32 p, r1, 3; @p bra OTHER; brx.idx r1, T;
L0: mov.u32 r0, 100; bra END; L1: mov.u32 r0, 101; L2: mov.u32 r0, 102; bra END; L3: mov.u32 r0, 103; bra END;
OTHER: mov.u32 r0, 0; END: """
    assert per_lane(code, LANES) == [100, 102, 102, 103] + [0] * 28


@pytest.mark.parametrize("block", [1, 31, 33, 96, 200])
def test_lanes_that_end_early_and_blocks_of_any_size(block):
    """Threads beyond the end return; the others sum through shuffles that name the whole warp."""
    y = aligned(256, np.uint32)
    code = (
        f"add.u64 x1, at, _y; and.b32 r9, tid, 31; setp.gt.u32 p, r9, 9; @p ret; "
        f"setp.ge.u32 p, tid, {block}; @p exit; st.global.u32 [x1], 5;"
    )
    code = code.replace("], 5", "], r8").replace("add.u64", "mov.u32 r8, 5; add.u64", 1)
    kernel(code, "y").launch(1, block, [y]).check()
    assert y.tolist() == [5 if t < block and t % 32 < 10 else 0 for t in range(256)]
    code = """add.u64 x1, at, _y; setp.gt.u32 p, tid, 3; @p ret; vote.sync.ballot.b32 r1, p, -1; bar.warp.sync -1;
shfl.sync.idx.b32 r2, tid, 0, 31, -1; add.u32 r2, r2, 9; st.global.u32 [x1], r2;"""
    y[:] = 0
    kernel(code, "y").launch(1, block, [y]).check()
    assert y.tolist() == [9 if t < min(4, block) else 0 for t in range(256)]


def test_nothing_of_one_block_reaches_the_next():
    """Barriers, carries, copies and local memory begin anew, and the order of the blocks does not count."""
    y = aligned(8 * 64, np.uint32)
    code = f"""{SHARED_64} mov.u32 r1, %ctaid.x; mad.lo.u32 r1, r1, 64, tid; mad.wide.u32 x1, r1, 4, _y;
mov.u32 r2, room;
shl.b32 r3, tid, 2; add.u32 r3, r3, r2; st.shared.u32 [r3], r1; bar.sync 0; xor.b32 r4, tid, 63;
shl.b32 r4, r4, 2; add.u32 r4, r4, r2;
ld.shared.u32 r5, [r4]; st.global.u32 [x1], r5;"""
    for backwards in (False, True):
        y[:] = 0
        kernel(code, "y").launch(8, 64, [y], backwards=backwards).check()
        assert (y.reshape(8, 64) == np.arange(512).reshape(8, 64)[:, ::-1]).all()


# --- barriers ---------------------------------------------------------------------------------------------------------
def test_barriers_with_numbers_and_counts():
    """Two pairs of warps, each with a barrier of its own; then all."""
    x, y = aligned(128, np.uint32), aligned(128, np.uint32)
    x[:] = np.arange(128)
    report = run(
        f"""{SHARED_64} add.u64 x1, at, _x; add.u64 x2, at, _y; ld.global.u32 r1, [x1]; mov.u32 r2, room;
shl.b32 r3, tid, 2;
add.u32 r3, r3, r2; st.shared.u32 [r3], r1; shr.u32 r4, tid, 6; add.u32 r5, r4, 3; bar.sync r5, 64;
xor.b32 r6, tid, 32;
shl.b32 r6, r6, 2; add.u32 r6, r6, r2; ld.shared.u32 r7, [r6]; bar.sync 0; st.shared.u32 [r3], r7;
barrier.sync.aligned 1;
xor.b32 r6, tid, 64; shl.b32 r6, r6, 2; add.u32 r6, r6, r2; ld.shared.u32 r8, [r6]; st.global.u32 [x2], r8;""",
        x, y, block=128,
    )  # fmt: skip
    assert (y == np.arange(128) ^ 96).all()
    assert report.counts["barriers"] == 4


def test_producers_arrive_and_consumers_wait():
    """One warp fills, the other waits: they meet at two places of the program."""
    y = aligned(32, np.uint32)
    code = f"""{SHARED_64} mov.u32 r2, room; and.b32 r1, tid, 31; shl.b32 r3, r1, 2; add.u32 r3, r3, r2;
setp.lt.u32 p, tid, 32; @p bra FILL;
bar.sync 1, 64; ld.shared.u32 r4, [r3]; mad.wide.u32 x1, r1, 4, _y; st.global.u32 [x1], r4; bra END;
FILL: add.u32 r4, r1, 100; st.shared.u32 [r3], r4; ARRIVE 1, 64; END: """
    for arrive in ("bar.arrive", "bar.sync"):
        y[:] = 0
        kernel(code.replace("ARRIVE", arrive), "y").launch(1, 64, [y]).check()
        assert (y == np.arange(32) + 100).all()


def test_barriers_that_reduce():
    y = aligned((96, 4), np.uint32)
    code = """setp.lt.u32 p, tid, 40; bar.red.popc.u32 r1, 0, p; bar.red.or.pred q, 0, p; selp.u32 r2, 1, 0, q;
barrier.cta.red.and.aligned.pred q, 0, p; selp.u32 r3, 1, 0, q; setp.lt.u32 p, tid, 96;
bar.red.and.pred q, 0, 96, p; selp.u32 r4, 1, 0, q;
mad.wide.u32 x1, tid, 16, _y; st.global.v4.u32 [x1], {r1, r2, r3, r4};"""
    report = kernel(code, "y").launch(1, 96, [y])
    report.check()
    assert (y == [40, 1, 0, 1]).all()
    assert report.counts["barriers"] == 4


def test_a_warp_that_syncs_is_no_race():
    """Each lane reads its neighbour's number and its own, meets its warp, and writes: three times over."""
    y = aligned(64, np.uint32)
    step = "ld.shared.u32 r5, [r3]; ld.shared.u32 r6, [r4]; add.u32 r5, r5, r6; MEET st.shared.u32 [r3], r5; MEET"
    code = f"""{SHARED_64} mov.u32 r2, room; shl.b32 r3, tid, 2; add.u32 r3, r3, r2; xor.b32 r4, tid, 1;
shl.b32 r4, r4, 2; add.u32 r4, r4, r2;
st.shared.u32 [r3], tid; MEET {step * 3}\nadd.u64 x1, at, _y; st.global.u32 [x1], r5;"""
    kernel(code.replace("MEET", "bar.warp.sync -1;\n"), "y").launch(1, 64, [y]).check()
    assert y.tolist() == [4 * (t // 2 * 4 + 1) for t in range(64)]
    for number in range(code.count("MEET") - 1):  # each of them is needed (but the last)
        parts = code.split("MEET")
        without = (
            "bar.warp.sync -1;\n".join(parts[: number + 1]) + "\n" + "bar.warp.sync -1;\n".join(parts[number + 1 :])
        )
        found = {f.kind for f in kernel(without, "y").launch(1, 64, [y]).findings}
        assert found == {"race"}, number


# --- mistakes that must be found, and the same kernels mended, in which nothing may be --------------------------------
PLANTED = r"""
#include <cuda_pipeline_primitives.h>
#define KERNEL template <bool kMended> __global__ void

KERNEL beyond_global(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (!kMended || i < n)
    y[i] = 1.f;  // HERE
}
KERNEL before_global(float* y, const float* x) {
  const int i = threadIdx.x;
  y[i] = i > 0 || kMended ? x[kMended ? i : i - 2] : 0.f;  // HERE
}
KERNEL beyond_shared(float* y, const float* x) {
  __shared__ float s[63];
  const int i = threadIdx.x;
  if (kMended ? i < 63 : i < 64)
    s[i] = x[i];  // HERE
  __syncthreads();
  if (i < 63) y[i] = s[62 - i];
}
KERNEL beyond_dynamic_shared(float* y, const float* x) {
  extern __shared__ float4 room[];
  float* s = reinterpret_cast<float*>(room);
  s[threadIdx.x] = x[threadIdx.x];  // HERE
  y[threadIdx.x] = s[threadIdx.x];
}
KERNEL beyond_local(float* y, int n) {
  float a[8];
  for (int k = 0; k < n; ++k) a[k % 8] = y[k];
  float sum = a[n % 8];
  for (int k = 0; k < (kMended ? 8 : n); ++k)
    sum += a[k];  // HERE
  y[threadIdx.x + 16] = sum;
}
KERNEL misaligned(float* y, const float* x) {
  const float2 two =
      *reinterpret_cast<const float2*>(x + (kMended ? 2 : 1) * threadIdx.x);  // HERE
  y[threadIdx.x] = two.x + two.y;
}
KERNEL misaligned_shared(float* y, const float* x) {
  __shared__ float s[128];
  s[threadIdx.x] = s[threadIdx.x + 64] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] =
      reinterpret_cast<const double*>(s + (kMended ? 0 : 1))[threadIdx.x] > 0;  // HERE
}
KERNEL unwritten_global(float* y, const float* x) {
  if (kMended) y[threadIdx.x] = 0.f;
  y[threadIdx.x] += x[threadIdx.x];  // HERE
}
KERNEL unwritten_shared(float* y, const float* x) {
  __shared__ float s[96];
  s[threadIdx.x] = x[threadIdx.x];
  if (kMended && threadIdx.x < 32) s[threadIdx.x + 64] = 0.f;
  __syncthreads();
  y[threadIdx.x] =
      s[threadIdx.x + 32];  // HERE
}
KERNEL no_syncthreads(float* y, const float* x) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  if (kMended) __syncthreads();
  y[threadIdx.x] =
      s[threadIdx.x % 32];  // HERE
}
KERNEL no_syncthreads_before_the_next_write(float* y, const float* x) {
  __shared__ float s[64];
  for (int k = 0; k < 3; ++k) {
    s[threadIdx.x] = x[threadIdx.x + k];  // HERE
    __syncthreads();
    y[threadIdx.x + 64 * k] = s[63 - threadIdx.x];
    if (kMended) __syncthreads();
  }
}
KERNEL no_syncwarp(float* y, const float* x) {
  __shared__ volatile float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  if (kMended) __syncwarp();
  y[threadIdx.x] =
      s[threadIdx.x ^ 1];  // HERE
}
KERNEL two_write(float* y, const float* x) {
  const int i = kMended ? blockIdx.x * blockDim.x + threadIdx.x : threadIdx.x;
  y[i] = x[i];  // HERE
}
KERNEL two_threads_write(float* y, const float* x) {
  const int i = threadIdx.x;
  y[kMended ? i : i / 2] = x[i];  // HERE
}
KERNEL in_place(float* y, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const float* from = kMended ? x : y;
  const float next = from[(i + 1) % n];
  y[i] = next;  // HERE
}
KERNEL sum_without_atomics(float* y, const float* x) {
  if (kMended)
    atomicAdd(y, x[threadIdx.x]);
  else
    *y += x[threadIdx.x];  // HERE
}
KERNEL barrier_in_a_branch(float* y, const float* x) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  if (kMended) __syncthreads();
  if (threadIdx.x % 2) {
    if (!kMended) __syncthreads();
    y[threadIdx.x] = s[threadIdx.x ^ 2];
  } else {
    if (!kMended) __syncthreads();  // HERE
    y[threadIdx.x] = 2 * s[threadIdx.x ^ 4];
  }
}
KERNEL barrier_that_some_miss(float* y, const float* x, int n) {
  __shared__ float s[64];
  if (!kMended && threadIdx.x >= n) return;
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();  // HERE
  y[threadIdx.x] = s[threadIdx.x ^ 1];
}
KERNEL no_pipeline_wait(float* y, const float* x) {
  __shared__ float s[64];
  __pipeline_memcpy_async(s + threadIdx.x, x + threadIdx.x, 4);
  __pipeline_commit();
  if (kMended) __pipeline_wait_prior(0);
  __syncthreads();
  y[threadIdx.x] =
      s[63 - threadIdx.x];  // HERE
}
KERNEL pipeline_wait_of_too_few(float* y, const float* x) {
  __shared__ float s[2][64];
  for (int k = 0; k < 4; ++k) {
    __syncthreads();
    __pipeline_memcpy_async(&s[k % 2][threadIdx.x], x + 64 * k + threadIdx.x, 4);
    __pipeline_commit();
    __pipeline_wait_prior(k == 0 || kMended ? 0 : 1);
    __syncthreads();
    y[64 * k + threadIdx.x] =
        s[k % 2][63 - threadIdx.x];  // HERE
  }
}
KERNEL shuffle_in_a_branch(float* y, const float* x) {
  float v = x[threadIdx.x];
  if (kMended || threadIdx.x % 32 < 16)
    v += __shfl_xor_sync(~0u, v, 1);  // HERE
  y[threadIdx.x] = v;
}
KERNEL shuffle_from_one_that_ended(float* y, const float* x, int n) {
  if (threadIdx.x >= n) return;
  y[threadIdx.x] =
      __shfl_down_sync(~0u, x[threadIdx.x], kMended ? 0 : 2);  // HERE
}
KERNEL shuffle_without_oneself(float* y, const float* x) {
  y[threadIdx.x] =
      __shfl_xor_sync(kMended ? ~0u : 0xffffu, x[threadIdx.x], 1);  // HERE
}

#define BOTH(name, ...)                              \
  template __global__ void name<false>(__VA_ARGS__); \
  template __global__ void name<true>(__VA_ARGS__);
BOTH(beyond_global, float*, int)
BOTH(before_global, float*, const float*)
BOTH(beyond_shared, float*, const float*)
BOTH(beyond_dynamic_shared, float*, const float*)
BOTH(beyond_local, float*, int)
BOTH(misaligned, float*, const float*)
BOTH(misaligned_shared, float*, const float*)
BOTH(unwritten_global, float*, const float*)
BOTH(unwritten_shared, float*, const float*)
BOTH(no_syncthreads, float*, const float*)
BOTH(no_syncthreads_before_the_next_write, float*, const float*)
BOTH(no_syncwarp, float*, const float*)
BOTH(two_write, float*, const float*)
BOTH(two_threads_write, float*, const float*)
BOTH(in_place, float*, const float*, int)
BOTH(sum_without_atomics, float*, const float*)
BOTH(barrier_in_a_branch, float*, const float*)
BOTH(barrier_that_some_miss, float*, const float*, int)
BOTH(no_pipeline_wait, float*, const float*)
BOTH(pipeline_wait_of_too_few, float*, const float*)
BOTH(shuffle_in_a_branch, float*, const float*)
BOTH(shuffle_from_one_that_ended, float*, const float*, int)
BOTH(shuffle_without_oneself, float*, const float*)
"""


class Bug(NamedTuple):
    """What must be found: where first, by what instruction; and how the kernel is launched."""

    kind: str
    thread: int
    opcode: str
    args: str = "yx"  # or n: a number
    grid: int = 1
    block: int = 64
    where: int = 0  # the block that is found
    n: int = 0
    shared: tuple[int, int] = (0, 0)  # dynamic bytes of the wrong kernel, and of the mended
    initialised: bool = True
    also: tuple[str, ...] = ()  # other kinds that follow from it


BUGS = {
    "beyond_global": Bug("out-of-bounds", 24, "st.global", "yn", 7, 40, 6, n=264),
    "before_global": Bug("out-of-bounds", 1, "ld.global"),
    "beyond_shared": Bug("out-of-bounds", 63, "st.shared"),
    "beyond_dynamic_shared": Bug("out-of-bounds", 60, "st.shared", shared=(240, 256), also=("out-of-bounds",)),
    "beyond_local": Bug("out-of-bounds", 0, "ld.local", "yn", n=9),
    "misaligned": Bug("misaligned", 1, "ld.global"),
    "misaligned_shared": Bug("misaligned", 0, "ld.shared"),
    "unwritten_global": Bug("uninitialised", 0, "ld.global", initialised=False),
    "unwritten_shared": Bug("uninitialised", 32, "ld.shared"),
    "no_syncthreads": Bug("race", 32, "ld.shared"),
    "no_syncthreads_before_the_next_write": Bug("race", 32, "st.shared", also=("race",)),
    "no_syncwarp": Bug("race", 0, "ld.volatile.shared"),
    "two_write": Bug("race", 0, "st.global", grid=3, where=1),
    "two_threads_write": Bug("race", 1, "st.global"),
    "in_place": Bug("race", 1, "st.global", "yxn", 2, 64, n=128, also=("race",)),
    "sum_without_atomics": Bug("race", 0, "st.global", also=("race",)),
    "barrier_in_a_branch": Bug("barrier", 0, "bar"),
    "barrier_that_some_miss": Bug("barrier", 0, "bar", "yxn", n=40),
    "no_pipeline_wait": Bug("uninitialised", 0, "ld.shared"),
    "pipeline_wait_of_too_few": Bug("uninitialised", 0, "ld.shared", also=("uninitialised",)),
    "shuffle_in_a_branch": Bug("warp-sync", 0, "shfl"),
    "shuffle_from_one_that_ended": Bug("warp-sync", 38, "shfl", "yxn", n=40),
    "shuffle_without_oneself": Bug("warp-sync", 16, "shfl"),
}
NO_NVCC = pytest.mark.skipif(nvcc.path() is None, reason=nvcc.MISSING)


def compiled(source: str, arch: int, folder: Path) -> str:
    """What nvcc makes of it, with its lines."""
    (folder / "planted.cu").write_text(source)
    command = [
        nvcc.path(),
        f"-arch=sm_{arch}",
        "-ptx",
        "-lineinfo",
        "-o",
        folder / "planted.ptx",
        folder / "planted.cu",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return (folder / "planted.ptx").read_text()


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """Modules and texts by architecture, compiled when they are wanted."""
    modules = {}

    def get(arch: int) -> tuple[Module, list[str]]:
        if arch not in modules:
            text = compiled(PLANTED, arch, tmp_path_factory.mktemp("planted"))
            modules[arch] = Module(text), text.split("\n")
        return modules[arch]

    return get


def launched(module: Module, name: str, bug: Bug, mended: bool, backwards=False):
    y = aligned(264)
    x = aligned(264)
    x[:] = np.arange(264)
    memory = Memory()
    memory.track(y, name="y", initialised=bug.initialised)
    memory.track(x, name="x")
    (mangled,) = (k for k in module.kernels if f"{len(name)}{name}ILb{int(mended)}E" in k)
    args = [{"y": y, "x": x, "n": bug.n}[letter] for letter in bug.args]
    report = module[mangled].launch(
        bug.grid, bug.block, args, shared=bug.shared[mended], memory=memory, backwards=backwards
    )
    return mangled, report


@NO_NVCC
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", BUGS)
def test_planted_mistakes_are_found(planted, name, arch):
    module, lines = planted(arch)
    bug = BUGS[name]
    mangled, report = launched(module, name, bug, mended=False)
    assert report.findings, "nothing found"
    source = PLANTED.split("\n")
    start = next(k for k, line in enumerate(source) if line.startswith(f"KERNEL {name}("))
    here = next(k for k in range(start, len(source)) if "// HERE" in source[k]) + 1
    found = [
        f
        for f in report.findings
        if f.kind == bug.kind and f.source.endswith(f"planted.cu:{here}") and bug.opcode in lines[f.line - 1]
    ]
    assert found, report.findings
    first = found[0]
    assert (first.kernel, first.block, first.thread) == (mangled, (bug.where, 0, 0), (bug.thread, 0, 0)), first
    others = {f.kind for f in report.findings if f is not first}
    assert others <= set(bug.also), report.findings
    with pytest.raises(
        AssertionError, match=rf"{bug.kind}: {mangled}, block .*, thread .*, PTX line \d+ \(.*planted.cu:{here}\)"
    ):
        report.check()


@NO_NVCC
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", BUGS)
def test_nothing_is_found_in_what_was_mended(planted, name, arch):
    for backwards in (False, True):
        launched(planted(arch)[0], name, BUGS[name], mended=True, backwards=backwards)[1].check()


def finding(code: str, *arrays, block=32, grid=1, **kwargs) -> list:
    names = " ".join("xyzuv"[: len(arrays)])
    return kernel(code, names).launch(grid, block, list(arrays), **kwargs).findings


def test_planted_mistakes_in_ptx():
    x = aligned(64, np.uint32)
    line = HEAD.count("\n") + REGISTERS.count("\n") + 4  # before the body

    def one(code: str, kind: str, thread: int, at: int, **kwargs) -> str:
        findings = finding(code, x, **kwargs)
        assert [(f.kind, f.thread[0], f.line, f.source) for f in findings] == [(kind, thread, line + at, "")], findings
        return findings[0].text

    text = one("add.u64 x1, at, _x;\n ld.global.u32 r1, [x1+132];", "out-of-bounds", 31, 2)
    assert text == "reads 4 bytes, 0 bytes after the end of x (256 bytes)"
    text = one("add.u64 x1, at, _x;\n\n ld.global.v2.u32 {r1, r2}, [x1];", "misaligned", 1, 3)
    assert "8 bytes" in text
    one("mov.u64 x1, 64; atom.global.add.u32 r1, [x1], 1;", "out-of-bounds", 0, 1)
    copy = ".shared .align 16 .b8 room[512]; shl.b32 r1, tid, 4; mov.u32 r2, room; add.u32 r2, r2, r1; PLACE\n"
    copy += "cp.async.cg.shared.global [r2], [x1], 16SIZE;"
    for size in ("", ", 4"):
        place = "add.u64 x1, at, _x;" if size else "mul.wide.u32 x1, tid, 4; add.u64 x1, x1, _x;"
        one(copy.replace("PLACE", place).replace("SIZE", size), "misaligned", 1, 2)
    one(
        copy.replace("PLACE", "mul.wide.u32 x1, r1, 1; add.u64 x1, x1, _x;").replace("SIZE", ""), "out-of-bounds", 16, 2
    )
    one(copy.replace("PLACE", "mov.u64 x1, _x; add.u32 r2, r2, r1;").replace("SIZE", ""), "out-of-bounds", 16, 2)
    one(".shared .align 4 .b8 room[100];\nmov.u32 r1, room; shl.b32 r2, tid, 2; add.u32 r1, r1, r2;"
        "\nst.shared.u32 [r1], r1;", "out-of-bounds", 25, 3)  # fmt: skip
    one(".local .align 4 .b8 own[8];\nst.local.u32 [own+8], tid;", "out-of-bounds", 0, 2)
    one("mov.u64 x1, x;\nld.param.u32 r1, [x+8];", "out-of-bounds", 0, 2)
    one("cvt.u32.u64 r1, _x; cvt.u64.u32 x1, r1; ld.global.u32 r2, [x1];", "out-of-bounds", 0, 1)
    one("setp.lt.u32 p, tid, 9;\n@p trap;", "trap", 0, 2)
    one(f"{SHARED_64}\nmov.u64 x1, room; cvta.shared.u64 x1, x1; ld.global.u32 r1, [x1];", "out-of-bounds", 0, 3)
    one("T: .branchtargets A; A: setp.eq.u32 p, tid, 0;\n@p bra END; brx.idx tid, T; END:", "trap", 1, 2)
    one("setp.lt.u32 p, tid, 9;\n@p vote.sync.ballot.b32 r1, p, -1;", "warp-sync", 0, 2)
    one("setp.lt.u32 p, tid, 9; @p bra A; bar.sync 0; A: \n bar.sync 0;", "barrier", 0, 2)


def test_a_race_is_one_between_any_two():
    """Readers of one warp, of two, of two blocks; and none where a barrier or an end lies between."""
    x, y = aligned(64, np.uint32), aligned(64, np.uint32)
    read, write = "ld.global.u32 r1, [_x];", "st.global.u32 [_x], tid;"

    def kinds(code: str, block=64, grid=1) -> list[str]:
        return [f.kind for f in finding(code, x, y, block=block, grid=grid)]

    only = "setp.eq.u32 p, tid, {}; @p "
    assert kinds(read, grid=3) == []
    assert kinds(read + only.format(63) + write) == ["race"]
    assert kinds(read + "\n" + only.format(0) + write) == ["race", "race"]
    assert kinds(read + "bar.sync 0; " + only.format(0) + write) == []
    assert kinds(only.format(0) + read + only.format(0) + write) == []
    assert kinds(only.format(0) + read + only.format(33) + write) == ["race"]
    assert kinds(only.format(0) + write, grid=2) == ["race"]
    assert kinds("mov.u32 r2, %ctaid.x; setp.eq.u32 p, r2, 1; @p " + write + " @!p " + read, block=1, grid=2) == [
        "race"
    ]
    assert kinds("red.global.add.u32 [_x], 1;", grid=2) == []
    assert kinds("red.global.add.u32 [_x], 1;" + read) == ["race"]
    # One launch is over before the next begins.
    memory = Memory()
    for _ in range(3):
        assert finding(only.format(5) + write, x, y, memory=memory) == []
        assert finding(read, x, y, memory=memory) == []


def test_what_one_launch_wrote_the_next_may_read():
    y, z = aligned(32, np.uint32), aligned(32, np.uint32)
    memory = Memory()
    memory.track(y, name="y", initialised=False)
    half = "add.u64 x1, at, _x; add.u64 x2, at, _y; "
    assert (
        finding(half + "setp.lt.u32 p, tid, 16; @p st.global.u32 [x1], 5;".replace("5", "tid"), y, z, memory=memory)
        == []
    )
    findings = finding(half + "ld.global.u32 r1, [x1]; st.global.u32 [x2], r1;", y, z, memory=memory)
    assert [(f.kind, f.thread, f.times) for f in findings] == [("uninitialised", (16, 0, 0), 16)]
    assert "y" in findings[0].text
    memory.clear()
    assert finding(half + "ld.global.u32 r1, [x1]; st.global.u32 [x2], r1;", y, z, memory=memory) == []
    # Of a number only some of whose bytes were written, the others are not known.
    memory.track(y, name="y", initialised=False)
    assert finding("add.u64 x1, at, _x; st.global.u8 [x1+1], tid;", y, memory=memory) == []
    assert finding("add.u64 x1, at, _x; ld.global.u8 r1, [x1+1];", y, memory=memory) == []
    assert [f.kind for f in finding("add.u64 x1, at, _x; ld.global.u16 r1, [x1];", y, memory=memory)] == [
        "uninitialised"
    ]


# --- traffic: numbers counted by hand ---------------------------------------------------------------------------------
def traffic(code: str, room: int, *, block=32, grid=1, dtype=np.uint8, what="global_loads") -> tuple:
    """Requests, sectors, ideal sectors, bytes, unique bytes and bytes of L2, of a kernel on `room` bytes x."""
    counts = run(code, aligned(room, dtype), block=block, grid=grid).counts[what]
    return tuple(counts[k] for k in ("requests", "sectors", "ideal_sectors", "bytes", "unique_bytes", "l2_bytes"))


def index(scale: int, offset: int = 0) -> str:
    return (
        "mov.u32 r9, %ctaid.x; mov.u32 r8, %ntid.x; mad.lo.u32 r9, r9, r8, tid; "
        f"mad.wide.u32 x1, r9, {scale}, _x; add.u64 x1, x1, {offset};"
    )


def test_global_traffic():
    load, vector = "ld.global.f32 f1, [x1];", "ld.global.v4.f32 {f1, f2, f3, f4}, [x1];"
    assert traffic(index(4) + load, 256) == (1, 4, 4, 128, 128, 128)  # coalesced
    assert traffic(index(8) + load, 256) == (1, 8, 4, 256, 128, 256)  # every other number
    assert traffic(index(128) + load, 4096) == (1, 32, 4, 1024, 128, 1024)  # a column
    assert traffic("ld.global.f32 f1, [_x];", 64) == (1, 1, 1, 32, 4, 32)  # all the same
    assert traffic(index(4, 4) + load, 256) == (1, 5, 4, 160, 128, 160)  # one beside the sector's edge
    assert traffic(index(16) + vector, 512) == (1, 16, 16, 512, 512, 512)
    assert traffic(index(16, 16) + vector, 528) == (1, 17, 16, 544, 512, 544)
    assert traffic(index(2) + "ld.global.u16 h1, [x1];", 64, dtype=np.uint8) == (1, 2, 2, 64, 64, 64)
    # Two warps in each of three blocks.
    assert traffic(index(4) + load, 768, block=64, grid=3) == (6, 24, 24, 768, 768, 768)
    # Each block reads the same again: once a block from L2, each byte once in all.
    assert traffic(f"add.u64 x1, at, _x; {load} {load}", 256, block=64, grid=3) == (12, 48, 48, 1536, 256, 768)
    # Lanes that overlap: 31 of 33 numbers twice.
    assert traffic(index(4) + "ld.global.u8 r1, [x1]; ld.global.f32 f1, [x1];", 128) == (2, 8, 8 - 3, 256, 128, 128)
    # Only lanes that take part count; none at all is no request.
    assert traffic(index(4) + "setp.lt.u32 p, tid, 8; @p " + load, 256) == (1, 1, 1, 32, 32, 32)
    assert traffic(index(4) + "setp.lt.u32 p, tid, 0; @p " + load, 256) == (0, 0, 0, 0, 0, 0)
    stores = {"what": "global_stores"}
    assert traffic(index(4) + "st.global.u32 [x1], tid;", 128, **stores) == (1, 4, 4, 128, 128, 128)
    assert traffic(index(12, 4) + "st.global.u32 [x1], tid;", 400, **stores) == (1, 12, 4, 384, 128, 384)
    assert traffic(index(4) + "st.global.u32 [x1], tid;", 128) == (0, 0, 0, 0, 0, 0)
    # What cp.async reads is read, through registers or not.
    copy = (
        f"{SHARED_64} mov.u32 r1, room; shl.b32 r2, tid, 4; add.u32 r1, r1, r2; "
        f"cp.async.cg.shared.global [r1], [x1], 16; cp.async.wait_all;"
    )
    assert traffic(copy.replace("mov.u32 r1", index(16) + "mov.u32 r1"), 512) == (1, 16, 16, 512, 512, 512)


def test_traffic_begins_where_memory_does():
    """A tensor's elements lie where they lie: a view that begins 4 bytes later is read in a sector more."""
    x = torch.zeros(65)
    report = kernel("add.u64 x1, at, _x; ld.global.f32 f1, [x1];", "x").launch(1, 32, [x[1:33]])
    assert x.data_ptr() % 32 == 0
    assert report.counts["global_loads"]["sectors"] == 5


def wavefronts(address: str, type: str = "u32", registers: str = "r1", what="shared_stores") -> tuple:
    access = (
        f"st.shared.{type} [r10], {registers};"
        if what == "shared_stores"
        else f"st.shared.u32 [r10], r1; ld.shared.{type} {registers}, [r10];"
    )
    code = f".shared .align 16 .b8 room[4352]; {address} mov.u32 r11, room; add.u32 r10, r10, r11; {access}"
    counts = run(code, aligned(4)).counts[what]
    return tuple(counts[k] for k in ("requests", "wavefronts", "ideal_wavefronts"))


def test_bank_conflicts():
    def by(scale: int) -> str:
        return f"mul.lo.u32 r10, tid, {scale};"

    assert wavefronts(by(4)) == (1, 1, 1)
    assert wavefronts(by(8)) == (1, 2, 1)
    assert wavefronts(by(16)) == (1, 4, 1)
    assert wavefronts(by(128)) == (1, 32, 1)  # a column of 32
    assert wavefronts(by(132)) == (1, 1, 1)  # a column of 33
    assert wavefronts(by(12)) == (1, 1, 1)  # an odd stride
    assert wavefronts("xor.b32 r10, tid, 13; shl.b32 r10, r10, 2;") == (1, 1, 1)
    assert wavefronts(by(8), "v2.u32", "{r1, r2}") == (1, 2, 2)
    assert wavefronts(by(16), "v4.u32", "{r1, r2, r3, r4}") == (1, 4, 4)
    assert wavefronts(by(16), "v2.u32", "{r1, r2}") == (1, 4, 2)
    assert wavefronts(by(80), "v4.u32", "{r1, r2, r3, r4}") == (1, 4, 4)  # rows of 80 bytes
    assert wavefronts(by(128), "v4.u32", "{r1, r2, r3, r4}") == (1, 32, 4)
    assert wavefronts(by(2), "u16", "h1") == (1, 1, 1)  # two lanes to a word
    # Half a warp asks for 8 bytes a lane at a time, even where the other half asks for the same.
    halves = (
        ".shared .align 16 .b8 room[128]; and.b32 r2, tid, 15; shl.b32 r2, r2, 3; mov.u32 r3, room; add.u32 r2, r2, r3;"
    )
    halves += (
        "setp.lt.u32 p, tid, 16; @p st.shared.v2.u32 [r2], {r1, r1}; bar.warp.sync -1; ld.shared.v2.u32 {r4, r5}, [r2];"
    )
    assert run(halves, aligned(4)).counts["shared_loads"] == {"requests": 1, "wavefronts": 2, "ideal_wavefronts": 2}
    # Broadcasts: all lanes one word, or two words of one bank.
    code = """.shared .align 4 .b8 room[256]; mov.u32 r1, 1; setp.lt.u32 p, tid, 2; shl.b32 r2, tid, 7;
mov.u32 r3, room;
add.u32 r2, r2, r3; @p st.shared.u32 [r2], r1; bar.warp.sync -1; ld.shared.u32 r1, [room]; and.b32 r4, tid, 1;
shl.b32 r4, r4, 7; add.u32 r4, r4, r3; ld.shared.u32 r1, [r4];"""
    loads = run(code, aligned(4)).counts
    assert loads["shared_loads"] == {"requests": 2, "wavefronts": 3, "ideal_wavefronts": 2}
    assert loads["shared_stores"] == {"requests": 1, "wavefronts": 2, "ideal_wavefronts": 1}


def test_ldmatrix_wavefronts():
    for pitch, wavefronts_ in [(16, 4), (32, 8), (80, 4), (128, 32), (144, 4)]:
        code = f""".shared .align 16 .b8 room[5120]; mul.lo.u32 r10, tid, {pitch}; mov.u32 r11, room;
add.u32 r10, r10, r11;
st.shared.v4.u32 [r10], {{r1, r2, r3, r4}}; bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{r1, r2, r3, r4}}, [r10];"""
        counts = run(code, aligned(4)).counts["shared_loads"]
        assert counts == {"requests": 1, "wavefronts": wavefronts_, "ideal_wavefronts": 4}, pitch


def test_instructions_atomics_barriers_blocks():
    text = f"""{HEAD}.visible .entry k(.param .u64 x) {{ {REGISTERS} .shared .b32 sh;
mov.u32 r1, %tid.x;
ld.param.u64 x1, [x];
setp.lt.u32 p, r1, 5;
@p red.global.add.u32 [x1], r1;
@!p atom.global.max.u32 r2, [x1], r1;
bar.sync 0;
cvt.rn.f32.u32 f1, r1;
add.f32 f1, f1, f1; fma.rn.f32 f1, f1, f1, f1;
ex2.approx.f32 f1, f1;
@p bra END;
add.u32 r1, r1, r1;
END: bar.sync 0;
ret; }}"""
    kernel_ = Module(text)["k"]
    reports = [kernel_.launch(3, 40, [aligned(1, np.uint32)], backwards=b) for b in (False, True, False)]
    for report in reports:
        assert report.counts["blocks"] == 3
        assert report.counts["barriers"] == 6
        assert report.counts["atomics"] == 3 * 40
        assert report.counts["by_class"] == {
            "float": 3 * 40 * 2, "int": 3 * (40 + 35), "move": 3 * 80, "memory": 3 * 40, "special": 3 * 80,
            "control": 3 * (40 + 5 + 40 + 40), "matrix": 0}  # fmt: skip
        assert report.counts["instructions"] == sum(report.counts["by_class"].values())
        # The second warp, of 8 lanes, has none that @p concerns.
        assert report.counts["warp_instructions"] == 3 * (14 + 12)
        assert report.counts == reports[0].counts
    both = reports[0] + reports[1]
    assert both.counts["atomics"] == 240
    assert both.counts["by_class"]["move"] == 480
    assert both.findings == []


def test_matrix_instructions_are_a_class():
    fragments = "{f1, f2, f3, f4}, {r1, r2, r3, r4}, {r5, r6}, {f1, f2, f3, f4}"
    code = f"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {fragments};"
    assert run(code, aligned(4)).counts["by_class"]["matrix"] == 32


# --- what is refused, and how -----------------------------------------------------------------------------------------
GOOD = f"{HEAD}.visible .entry k(.param .u64 x, .param .u32 n) {{\n.reg .b32 r<9>;\nmov.u32 r1, 5;\nret;\n}}\n"


@pytest.mark.parametrize("text", ["", "hello", "int main() { return 0; }", "\x7fELF\x02\x01", GOOD[20:]])
def test_text_that_is_no_ptx(text):
    with pytest.raises(Malformed, match="not PTX"):
        Module(text)
    with pytest.raises(ValueError, match=r"mine\.cu: this is not PTX"):
        Module(text, source="mine.cu")


def test_ptx_that_ends_too_early():
    for end in range(GOOD.index("("), len(GOOD) - 3, 5):
        with pytest.raises(Malformed, match=r"line 4"):
            Module(GOOD[:end])["k"].launch(1, 1, [None, 0])
    Module(GOOD)["k"].launch(1, 1, [None, 0])
    with pytest.raises(TypeError, match="ptx must be a str, got bytes"):
        Module(GOOD.encode())


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("wibble.u32 r1, r2;", Unknown, "`wibble.u32 r1, r2`"),
        ("add.u128 r1, r1, r2;", Unknown, "`add.u128 r1, r1, r2`"),
        ("add.f32.weird r1, r1, r2;", Unknown, "weird"),
        ("mul.f32 r1, r2, r3.x;", Malformed, "r3.x"),
        ("redux.sync.mul.u32 r1, r2, -1;", Unknown, "redux.mul.u32"),
        ("shfl.up.b32 r1, r2, 1, 0;", Unknown, "without .sync"),
        ("atom.global.mul.u32 r1, [r2], r3;", Unknown, "atom.mul.u32"),
        ("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {r1}, {r1}, {r1}, {r1};", Unknown, "mma"),
        ("cp.async.bulk.commit_group;", Unknown, "cp.async"),
        ("call foo, (r1);", Unknown, "call foo"),
        ("wgmma.fence.sync.aligned;", Unknown, "wgmma"),
        ("bra NOWHERE;", Malformed, "no label NOWHERE"),
        ("mov.u32 r77, 1;", Malformed, "r77"),
        ("mov.u64 r1, 1;", Malformed, "size"),
        ("mov.u32 r1, banana;", Malformed, "banana"),
        ("ld.global.u32 r1, [banana];", Malformed, "banana"),
        ("ld.global.v2.u32 r1, [r2];", Malformed, "1 registers for 2"),
        ("add.u32 r1, r2;", None, "add.u32 r1, r2"),
        ("add.u32 r1, r2, r3, r4;", None, "add.u32 r1, r2, r3, r4"),
        ("ADD r1;", Malformed, "ADD r1"),
        ("setp.lt.u32 r1, r1, r2;", Malformed, "pred"),
        ("mov.u32 %tid.x, 1;", Malformed, "%tid.x"),
        ("}", Malformed, "line 8|line 7"),
        (".reg .b99 q;", Malformed, "b99"),
    ],
)
def test_instructions_that_are_not_known(line, error, message):
    """Named with the kernel and the line, when the kernel is launched: others of the file run."""
    other = GOOD.split("\n", 3)[3].replace(" k(", " other(")
    text = GOOD.replace("ret;", f"add.u32 r1, r1, r1;\n{line}\nret;") + other
    if line == "}":
        with pytest.raises(Malformed):
            Module(text)["k"].launch(1, 1, [None, 0])
        return
    module = Module(text)
    for _ in range(2):  # the second time too
        with pytest.raises(error or (Unknown, Malformed)) as caught:
            module["k"].launch(1, 1, [None, 0])
        assert isinstance(caught.value, NotImplementedError | ValueError)
        assert re.search("PTX line 8", str(caught.value)), caught.value
        assert re.search(message, str(caught.value)), caught.value
        if "cannot read" not in str(caught.value):
            assert "k, PTX line 8" in str(caught.value)
    module["other"].launch(1, 1, [None, 0]).check()


def test_kernels_that_are_not_there():
    with pytest.raises(ValueError, match="no kernel 'j'; there are k"):
        Module(GOOD)["j"]
    with pytest.raises(ValueError, match="there are none"):
        Module(HEAD)["j"]


X = np.zeros(4, np.float32)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ([X], TypeError, "k takes 2 arguments, got 1"),
        ([X, 1, 2], TypeError, "k takes 2 arguments, got 3"),
        ([X, 1.5], TypeError, r"k, argument 1 \(n, .u32, 4 bytes\): got the float 1.5"),
        ([X, "1"], TypeError, r"argument 1 \(n.*got str"),
        ([X, X], TypeError, r"argument 1 \(n.*a pointer does not fit"),
        ([X, None], TypeError, r"argument 1 \(n.*a pointer does not fit"),
        ([X, 2**32], ValueError, r"argument 1 \(n.*4294967296 does not fit"),
        ([X, -(2**31) - 1], ValueError, "does not fit"),
        ([X, b"\0" * 3], ValueError, "got 3 bytes"),
        ([1.5, 1], TypeError, r"argument 0 \(x, .u64, 8 bytes\): got the float"),
        ([torch.zeros(4, device="meta"), 1], TypeError, r"argument 0 \(x.*must be on the CPU, got one on meta"),
        ([[1, 2], 1], TypeError, "got list"),
    ],
)
def test_arguments_that_do_not_fit(args, error, message):
    with pytest.raises(error, match=message):
        Module(GOOD)["k"].launch(1, 1, args)


@pytest.mark.parametrize(
    ("grid", "block", "shared", "error", "message"),
    [
        (0, 1, 0, ValueError, "grid must be positive in every dimension"),
        ((1, 0), 1, 0, ValueError, "grid must be positive"),
        (1, 0, 0, ValueError, "block must be positive"),
        (-1, 1, 0, ValueError, "grid must be positive"),
        (1.0, 1, 0, TypeError, "grid must be 1 to 3 ints, got 1.0"),
        ((1, 1, 1, 1), 1, 0, TypeError, "grid must be 1 to 3 ints"),
        ((), 1, 0, TypeError, "grid must be 1 to 3 ints"),
        ("1", 1, 0, TypeError, "grid must be 1 to 3 ints"),
        (True, 1, 0, TypeError, "grid must be 1 to 3 ints"),
        ((1, 65536), 1, 0, ValueError, "grid must not exceed"),
        (1, 1025, 0, ValueError, "block must not exceed"),
        (1, (32, 33), 0, ValueError, "at most 1024 threads"),
        (1, (1, 1, 65), 0, ValueError, "block must not exceed"),
        (1, None, 0, ValueError, "block must be given"),
        (1, 1, -1, ValueError, "shared must be a number of bytes"),
        (1, 1, 1.5, ValueError, "shared must be a number of bytes"),
        (1, 1, 227 * 1024 + 1, ValueError, "232449 bytes of shared memory, sm_90 has 232448"),
    ],
)
def test_launches_that_are_refused(grid, block, shared, error, message):
    with pytest.raises(error, match=message):
        Module(GOOD)["k"].launch(grid, block, [X, 1], shared=shared)


def test_limits_that_a_kernel_gives_itself():
    most = Module(GOOD.replace(") {", ")\n.maxntid 64, 2, 1\n{"))["k"]
    assert (most.max_threads, most.block) == (128, None)
    most.launch(1, 128, [X, 1])
    with pytest.raises(ValueError, match="at most 128 threads"):
        most.launch(1, 129, [X, 1])
    exactly = Module(GOOD.replace(") {", ")\n.reqntid 64\n{"))["k"]
    assert exactly.block == (64, 1, 1)
    exactly.launch(1, None, [X, 1])
    with pytest.raises(ValueError, match=r"exactly \(64, 1, 1\)"):
        exactly.launch(1, 32, [X, 1])


def test_what_memory_takes():
    memory = Memory()
    for bad in ("x", 5, None, [1]):
        with pytest.raises(TypeError, match="track takes"):
            memory.track(bad)
    with pytest.raises(TypeError, match="on the CPU"):
        memory.track(torch.zeros(1, device="meta"))
    memory.track(np.zeros(0))
    Module(GOOD)["k"].launch(1, 1, [np.zeros((0, 3)), 0]).check()
    # A view with steps, backwards too, is as much memory as it spans, and its pointer is its first element's.
    x = np.arange(64, dtype=np.float32)
    y = aligned(32)
    for view, step in [(x[::2], 8), (x[::-2], -8), (x.reshape(8, 8)[:4, 1], 32)]:
        count = len(view)
        code = (
            f"setp.lt.u32 p, tid, {count}; mul.wide.s32 x1, tid, {step}; add.u64 x1, x1, _x; "
            f"@p ld.global.f32 f1, [x1]; add.u64 x2, at, _y; @p st.global.f32 [x2], f1;"
        )
        run(code, view, y)
        assert (y[:count] == view).all()


def test_a_block_that_never_ends_is_given_up():
    text = (
        f"\n{HEAD}"
        + """\
.visible .entry waits(.param .u64 flag)
{
  .reg .pred %p;
  .reg .b32 %r;
  .reg .b64 %rd;
  ld.param.u64 %rd, [flag];
again:
  ld.volatile.global.u32 %r, [%rd];
  setp.eq.u32 %p, %r, 0;
  @%p bra again;
  ret;
}
"""
    )
    kernel = Module(text)["waits"]
    with pytest.raises(RuntimeError, match=r"waits, PTX line 14: a block has run 1000 warp instructions"):
        kernel.launch(1, 32, [torch.zeros(4, dtype=torch.int32)], longest=1000)
    kernel.launch(1, 32, [torch.ones(4, dtype=torch.int32)], longest=1000).check()


# --- what a reviewer broke --------------------------------------------------------------------------------------------
REVIEWED = r"""
#include <cuda_fp16.h>
extern "C" __global__ void divides(const long long* x, long long* y) {
  const __int128 v = static_cast<__int128>(x[threadIdx.x]) * x[0];
  y[threadIdx.x] = static_cast<long long>(v / 7);
}
extern "C" __global__ void unwritten(const int* x, int* y) {
  int a[16];
  for (int k = 0; k < 8; ++k) a[x[k] & 7] = k;
  y[threadIdx.x] = a[x[threadIdx.x]];
}
extern "C" __global__ void roots(const __half2* x, __half2* y) { y[threadIdx.x] = h2sqrt(x[threadIdx.x]); }
extern "C" __global__ void copies(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    if nvcc.path() is None:
        pytest.skip(nvcc.MISSING)
    return Module(compiled(REVIEWED, 80, tmp_path_factory.mktemp("reviewed")))


def test_the_carry_of_a_difference(reviewed):
    """nvcc's division of 128 bits adds it: it is that nothing was borrowed."""
    x = torch.randint(-(2**62), 2**62, (32,))
    y = torch.zeros_like(x)
    reviewed["divides"].launch(1, 32, [x, y]).check()
    for value, result in zip(x.tolist(), y.tolist(), strict=True):
        product = value * x[0].item()
        quotient = abs(product) // 7 * (1 if product >= 0 else -1)
        assert result == (quotient + 2**63) % 2**64 - 2**63


def test_local_memory_that_was_not_written(reviewed):
    x, y = torch.arange(32, dtype=torch.int32) % 16, torch.zeros(32, dtype=torch.int32)
    report = reviewed["unwritten"].launch(1, 32, [x, y])
    assert [finding.kind for finding in report.findings] == ["uninitialised"]
    assert report.findings[0].thread == (8, 0, 0)
    reviewed["unwritten"].launch(1, 32, [x % 8, y]).check()


def test_registers_that_headers_declare(reviewed):
    x, y = torch.rand(32, 2).half(), torch.zeros(32, 2).half()
    reviewed["roots"].launch(1, 32, [x, y]).check()
    torch.testing.assert_close(y, x.sqrt(), rtol=1e-3, atol=1e-6)


def test_a_memory_grows_with_its_arguments(reviewed):
    memory, x, y = Memory(), torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    memory.track(y[32:], name="rest", initialised=False)
    copies = reviewed["copies"]
    copies.launch(1, 32, [x[:32], y[:32]], memory=memory).check()
    copies.launch(1, 64, [x, y], memory=memory).check()
    assert torch.equal(x, y)
    memory.track(y[48:], name="rest", initialised=False)
    assert {f.kind for f in copies.launch(1, 64, [y, x], memory=memory).findings} == {"uninitialised"}


def test_read_only_arrays_are_not_written(reviewed):
    x, y = np.arange(32, dtype=np.int32), np.frombuffer(bytes(128), np.int32)
    (finding,) = reviewed["copies"].launch(1, 32, [x, y]).findings
    assert "read-only" in finding.text
    assert not y.any()
    reviewed["copies"].launch(1, 32, [y, x]).check()


def test_sizes_that_are_none():
    for nbytes, itemsize in ((8, 0), (-4, 4)):
        with pytest.raises(ValueError, match="must not be negative"):
            Memory().track(4096, nbytes, itemsize)
