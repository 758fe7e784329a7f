"""The PTX executor's own tests: every instruction against an independent reference (whole numbers and exact fractions
in Python), planted bugs that must be found, and right kernels in which nothing may be found."""

import math
import operator
import random
import re
import shutil
import struct
import subprocess
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import ptx_on_cpu
import pytest
import torch
from ptx_on_cpu import Malformed, Memory, Module, Unknown

# --- kernels out of a few lines of PTX --------------------------------------------------------------------------------
HEAD = ".version 8.7\n.target sm_90\n.address_size 64\n"
REGISTERS = """.reg .pred p, q, s; .reg .b16 h<10>; .reg .b32 r<20>, tid; .reg .b64 x<20>, at; .reg .f32 f<20>; .reg .f64 g<9>;"""


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
            f".reg .b{bits} d0, d1; mad.lo.cc.u{bits} d0, a, b, c; madc.hi.u{bits} d1, a, b, e; mov.b{bits} d, d{piece};"
        )

        def product(a, b, c, e, piece=piece):
            return (a * b + (e << bits | c)) >> piece * bits

        check_whole(code, product, *[bits] * 4, **types)
    # A comparison or another addition between them leaves the carry alone.
    code = f".reg .b{bits} t; add.cc.u{bits} t, a, b; add.u{bits} t, c, c; setp.eq.u{bits} p, t, a; addc.u{bits} d, c, 0;"
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
        return sum(
            (a >> position + k & 1 if k < length and position + k < bits else sign) << k for k in range(bits)
        )

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
                code + "selp.u32 d, 1, 0, p;", lambda a, b, c: f(signed(a, 32) < signed(b, 32), with_(c)), 32, 32, 32
            )
            check_whole(
                code + "selp.u32 d, 1, 0, q;", lambda a, b, c: f(signed(a, 32) >= signed(b, 32), with_(c)), 32, 32, 32
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
        minus = a.sign < 0 and b.sign < 0 or (a.sign != b.sign and mode == "rm")
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
    fraction, exponent = FORMATS[format]
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
    edges = [0, 1, 2, (1 << fraction) - 1, 1 << fraction, (1 << fraction) + 1, one - 1, one, one + 1, one + (1 << fraction)]
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


def check_floats(code: str, reference, format: str, operands: int, mode="rn", flush=False, saturate=False, out="") -> None:
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
    inputs = floats(format)
    got = without_nans(lanes(f"sqrt.rn.{format} d, a;", inputs, out=inputs.dtype.type), format)
    want = []
    for bits in inputs.tolist():
        x = parsed(bits, format)
        if x.size in ("nan", 0) or (x.size == "inf" and x.sign > 0):
            want.append(bits if x.size != "nan" else -1)
        elif x.sign < 0:
            want.append(-1)
        else:  # to so many digits that no tie can be missed
            scale = 2400
            root = math.isqrt(int(x.size * Fraction(4) ** scale))
            exact = root * root == x.size * Fraction(4) ** scale
            want.append(formed(Number(1, Fraction(2 * root + (not exact), 2 << scale)), format))
    assert_same(f"sqrt.rn.{format}", got, want, inputs)


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
    got = np.array(lanes(f"{code} d, {', '.join('ab'[:count])};", *inputs), np.uint32).view(np.float32).astype(np.float64)
    numbers = [i.view(np.float32) for i in inputs]
    if flush:
        numbers = [np.where(np.abs(n) < np.finfo(np.float32).tiny, np.copysign(0, n), n) for n in numbers]
    with np.errstate(all="ignore"):
        want = reference(*(n.astype(np.longdouble) for n in numbers))
        rounded = want.astype(np.float32).astype(np.float64)
        if flush:
            rounded = np.where(np.abs(rounded) < np.finfo(np.float32).tiny, np.copysign(0, rounded), rounded)
        bound = ulps * np.spacing(np.abs(rounded).astype(np.float32)).astype(np.float64) + absolute
    ok = (got == rounded) | (np.isnan(got) & np.isnan(rounded)) | (np.abs(got - want.astype(np.float64)) <= bound)
    if "sin" not in code and "cos" not in code:  # the sign of zero and of infinity too
        ok &= (np.signbit(got) == np.signbit(rounded)) | np.isnan(rounded)
    assert ok.all(), [(n[~ok][0], got[~ok][0], rounded[~ok][0]) for n in numbers]


@pytest.mark.parametrize("half", ["f16", "bf16"])
def test_approximations_of_halves(half):
    inputs = floats(half, 1024)
    numbers = np.array([float(parsed(int(i), half).value) for i in inputs])
    for code, f in {"ex2.approx": np.exp2, "tanh.approx": np.tanh}.items():
        flush = ".ftz" if (half, code) == ("bf16", "ex2.approx") else ""
        got = lanes(f"{code}{flush}.{half} d, a;", inputs, out=np.uint16)
        with np.errstate(all="ignore"):
            want = f(numbers)
        for bits, x, y in zip(got, numbers, want):
            result = float(parsed(bits, half).value)
            assert (math.isnan(result) and math.isnan(y)) or result == y or (
                abs(result - y) <= max(abs(y), 2.0**-14) * 2.0 ** (-10.987 if half == "f16" else -7) or math.isinf(result)
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


@pytest.mark.parametrize("format", ["f32", "f64"])
def test_testp_and_copysign(format):
    fraction, exponent = FORMATS[format]
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
    top = bits_of(format) - 1
    check_floats(f"copysign.{format} d, a, b;", lambda a, b: Number(a.sign, b.size), format, 2)
    if format == "f32":
        selected = lanes("slct.b32.f32 d, a, b, c;", *[floats("f32", seed=k) for k in range(3)])
        for got, a, b, c in zip(selected, *[floats("f32", seed=k).tolist() for k in range(3)]):
            assert got == (a if parsed(c, "f32").value >= 0 else b), (a, b, c)
    assert top in (31, 63)


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
        near = np.array([(int(v) >> fraction << fraction) + (1 << fraction - 1) + k for v in inputs[:90] for k in (-1, 0, 1)])
        inputs = np.concatenate([inputs, near.astype(inputs.dtype)])
    numbers = [parsed(v, source) for v in inputs.tolist()]
    narrower = FORMATS[to] != FORMATS[source] and FORMATS[to][0] < FORMATS[source][0] or {to, source} == {"f16", "bf16"}
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
        code = [SHARED_64, f"mul.lo.u32 r10, tid, {step}; cvt.u64.u32 x10, r10; add.u64 x11, _x, x10; add.u64 x12, _y, x10;"]
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
        code.append(f"add.u64 x14, {place}, x10; add.u64 x14, x14, -16;" if name != "local" else f"add.u64 x14, {place}, 16;")
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
            run(f"mul.lo.u32 r10, tid, {bits // 8}; cvt.u64.u32 x10, r10; add.u64 x10, x10, _x; ld.global.{type} {letter}1, [x10];"
                f"mad.wide.u32 x11, tid, {register // 8}, _y; st.global.b{register} [x11], {letter}1;", x, y)  # fmt: skip
            numbers = x[: 32 * bits // 8].view(UNSIGNED[bits]).tolist()
            want = [signed(v, bits) if type[0] == "s" else v for v in numbers]
            assert y.tolist() == [w & ((1 << register) - 1) for w in want]
    # A store of a wide register's lowest bits.
    x, y = aligned(32, np.uint32), aligned(32, np.uint8)
    x[:] = np.arange(32) * 0x01010107
    run("add.u64 x1, at, _x; ld.global.u32 r1, [x1]; cvt.u64.u32 x2, tid; add.u64 x2, x2, _y; st.global.u8 [x2], r1;", x, y)
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
            code.append(f"isspacep.{space} p, {pointer}; selp.u32 r1, 1, 0, p; st.global.u32 [_y+{4 * (3 * row + column)}], r1;")
    code.append("mov.u64 x3, room; cvta.to.shared.u64 x4, x1; setp.eq.u64 p, x3, x4; selp.u32 r1, 1, 0, p; st.global.u32 [_y+36], r1;")
    code.append("cvta.to.shared.u64 x4, x1; cvt.u32.u64 r2, x4; mov.u32 r3, room; setp.eq.u32 p, r2, r3; selp.u32 r1, 1, 0, p;")
    code.append("st.global.u32 [_y+40], r1; cvta.to.global.u64 x5, _y; setp.eq.u64 p, x5, _y; selp.u32 r1, 1, 0, p; st.global.u32 [_y+44], r1;")
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
        code = [SHARED_64, f"mad.wide.u32 x10, tid, {bits // 8}, _x; mad.wide.u32 x11, tid, {bits // 8}, _y; ld.global.b{bits} {letter}1, [x10];"]
        if space == "shared":
            where = "[room]"[1:-1]
            code.append(f"setp.eq.u32 p, tid, 0; @p ld.global.b{bits} {letter}2, [_z]; @p st.shared.b{bits} [room], {letter}2; bar.sync 0;")
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
            run(f"mad.wide.u32 x10, tid, {bits // 8}, _x; ld.global.b{bits} {letter}1, [x10]; red.global.{name} [_z], {letter}1;", x, y, z)
            assert z[0] == value, f"red.{name}"


def test_compare_and_swap():
    for bits, letter in ((16, "h"), (32, "r"), (64, "x")):
        y, z = aligned(32, UNSIGNED[bits]), aligned(1, UNSIGNED[bits])
        # Each lane takes its turn: lane k finds k and leaves k + 1.
        run(f"cvt.u{bits}.u32 {letter}1, tid; add.u{bits} {letter}2, {letter}1, 1; mad.wide.u32 x10, tid, {bits // 8}, _x;"
            f"atom.global.acq_rel.gpu.cas.b{bits} {letter}3, [_y], {letter}1, {letter}2; st.global.b{bits} [x10], {letter}3;", y, z)  # fmt: skip
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
    run(f"mad.wide.u32 x10, tid, {bits // 8}, _x; mad.wide.u32 x11, tid, {bits // 8}, _y; ld.global.b{bits} {letter}1, [x10];"
        f"atom.global.add{kind}.{format} {letter}2, [_z], {letter}1; st.global.b{bits} [x11], {letter}2;", values, y, z)  # fmt: skip
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
        f"mul.lo.u32 r3, tid, {size}; add.u32 r3, r3, {k}; cvt.u64.u32 x3, r3; add.u64 x3, x3, _y; ld.shared.u32 r4, [r2+{k}]; st.global.u32 [x3], r4;"
        for k in range(0, size, 4)
    )
    run(f"{SHARED_64} mul.lo.u32 r1, tid, {size}; cvt.u64.u32 x1, r1; add.u64 x1, x1, _x; mov.u32 r2, room; add.u32 r2, r2, r1;"
        f"cp.async.{kind}.shared.global.L2::128B [r2], [x1], {size}{source};\ncp.async.commit_group; cp.async.wait_group 0;\n{lines}", x, y)  # fmt: skip
    want = x.reshape(32, size).copy()
    if source:
        want[:, kept:] = 0
    assert (y.reshape(32, size) == want).all()


def test_cp_async_reads_no_more_than_it_is_told_to():
    """Bytes beyond what is copied need not exist, nor any where none is."""
    x, y = aligned(16), aligned(32, fill=7)
    memory = Memory()
    memory.track(x, name="x")
    run(f"{SHARED_64} shl.b32 r1, tid, 2; mov.u32 r2, room; add.u32 r2, r2, r1; add.u64 x1, at, _x; setp.lt.u32 p, tid, 16; selp.u32 r3, 4, 0, p;"
        "cp.async.ca.shared.global.L2::cache_hint [r2], [x1], 4, r3, x9; cp.async.wait_all; ld.shared.f32 f1, [r2]; add.u64 x2, at, _y;"
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
    code = f"""{SHARED_64} add.u64 x1, at, _x; mov.u32 r2, room; shl.b32 r1, tid, 2; add.u32 r2, r2, r1; and.b32 r3, tid, 1;
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
       ("m16n8k8", "f32", "bf16"), ("m16n8k8", "f16", "f16"), ("m16n8k8", "f32", "tf32"), ("m16n8k4", "f32", "tf32")]  # fmt: skip


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
    names = {n: ", ".join(f"{n}{j}" for j in range(count)) for n, count in (("a", registers["a"]), ("b", registers["b"]))}
    count = 4 if sums == "f32" else 2
    kind = "f" if sums == "f32" else "b"
    d, cs = (", ".join(f"{n}{j}" for j in range(count)) for n in ("d", "c"))
    fragments["b"] = np.ascontiguousarray(np.pad(fragments["b"], ((0, 0), (0, 2))))
    arrays = []
    for values in (fragments["a"], fragments["b"], c_bits):
        arrays.append(aligned((32, 4), np.uint32))
        arrays[-1][...] = values
    run(f".reg .b32 a<4>, b<4>, c<4>; .reg .{kind}32 d<4>; {load} mma.sync.aligned.{shape}.row.col.{sums}.{format}.{format}.{sums} "
        f"{{{d}}}, {{{names['a']}}}, {{{names['b']}}}, {{{cs}}}; add.u64 x8, x9, _y;"
        + "".join(f"st.global.b32 [x8+{4 * j}], d{j};" for j in range(count)), arrays[0], y, arrays[1], arrays[2])  # fmt: skip
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
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {g5, g6}, {g1}, {g2}, {g3, g4}; mad.wide.u32 x1, tid, 16, _y;"
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
ldmatrix.sync.aligned.{kind} {{{names}}}, [r11]; stmatrix.sync.aligned.{kind} [r11+2560], {{{names}}}; bar.warp.sync -1;
mad.wide.u32 x1, tid, 16, _y; st.global.v4.u32 [x1], {{r1, r2, r3, r4}};
ld.shared.v4.u32 {{r1, r2, r3, r4}}, [r11+2560]; mad.wide.u32 x1, tid, 16, _z; st.global.v4.u32 [x1], {{r1, r2, r3, r4}};""",
        x, y, z)  # fmt: skip
    matrices = x.reshape(4, 8, 8)
    for m in range(count):
        matrix = matrices[m].T if transposed else matrices[m]
        for lane in range(32):
            low, high = matrix[lane // 4, lane % 4 * 2], matrix[lane // 4, lane % 4 * 2 + 1]
            assert y[lane, m] == int(low) | int(high) << 16
    assert (z.reshape(4, 8, 8)[:count] == matrices[:count]).all()
    assert (z.reshape(4, 8, 8)[count:] == 0).all()
