"""Statements of PTX to instructions of the runtime: what each opcode is called there, and where its operands lie.

A register is 32 values side by side, one for each lane; a predicate is 32 bits. Literals are registers too, in a part
that all warps share.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from . import _runtime, ptx
from .ptx import BYTES, Entry, Statement, Variable

LANES = 32
SPACES = {"generic": 0, "global": 1, "shared": 2, "local": 3, "param": 4, "const": 5}
FLOAT, INT, MOVE, MEMORY, CONTROL, MATRIX, SPECIAL = range(7)
ROUNDINGS = {"rn": 0, "rz": 1, "rm": 2, "rp": 3, "rni": 4, "rzi": 5, "rmi": 6, "rpi": 7}
SPECIALS = (
    "%tid.x", "%tid.y", "%tid.z", "%laneid", "%warpid", "%ctaid.x", "%ctaid.y", "%ctaid.z",
    "%ntid.x", "%ntid.y", "%ntid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",
)  # fmt: skip
FIXED = {
    "%clusterid.x": 0,
    "%cluster_ctarank": 0,
    "%cluster_nctarank": 1,
    "%clock": 0,
    "%clock64": 0,
    "%globaltimer": 0,
}
# Hints, and orders of memory that one thread after another keeps anyway.
IGNORED = {
    "uni", "sync", "aligned", "volatile", "relaxed", "acquire", "release", "acq_rel", "weak", "gpu", "cta", "sys", "nc",
    "cluster", "cs", "cg", "ca", "cv", "wb", "wt", "lu", "coherent", "approx", "full", "noftz", "unified",
}  # fmt: skip
NO_OPS = {
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "nanosleep",
    "discard",
    "griddepcontrol",
    "createpolicy",
    "applypriority",
}
# How many operands an instruction takes; of the others each looks for itself.
COUNTS = {
    opcode: counts
    for counts, opcodes in {
        (0,): "ret exit trap brkpt",
        (1,): "bra activemask",
        (2,): "neg abs rcp sqrt rsqrt ex2 lg2 sin cos tanh not mov popc clz brev bfind cvta testp isspacep brx elect",
        (3,): "add sub mul div rem min max addc subc and or xor shl shr copysign set vote match redux",
        (4,): "mad fma sad madc shf bfe prmt selp slct mma",
        (5,): "bfi lop3",
        (2, 3): "cvt ld st",
        (3, 4): "setp",
        (4, 5): "shfl",
    }.items()
    for opcode in opcodes.split()
}


class Unknown(NotImplementedError):
    """An instruction that the executor does not have."""


def fits(type: str) -> str:
    """The type of handlers that only look at bits."""
    return f"u{8 * BYTES[type]}"


class Program:
    """Puts one kernel together."""

    def __init__(self, entry: Entry, module_variables: dict[str, tuple[Variable, int]]):
        self.entry = entry
        self.kernel = _runtime.Kernel()
        self.kernel.name = entry.name
        self.constants = bytearray()
        self.literals: dict[tuple[bytes, int], int] = {}
        self.registers: dict[str, tuple[int, str]] = {}  # name -> offset, type
        self.specials: dict[str, int] = {}
        self.size = 8 * LANES  # the first are written by `_`
        self.symbols: dict[str, int] = {parameter.name: parameter.offset for parameter in entry.params}
        self._lay_out(module_variables)
        for name, type in entry.registers.items():
            self.registers[name] = (self._room(4 if type == "pred" else BYTES[type] * LANES), type)
        self.granule = 4
        self.pending: list[tuple[str, list, dict]] = []
        self.starts: list[int] = []  # of each statement among the instructions
        for statement in entry.statements:
            self._add(statement)
        self.common = {"line": entry.statements[-1].line if entry.statements else 0}
        self.starts.append(len(self.pending))
        self.emit("ret", [], CONTROL)
        for handler, operands, fields in self.pending:
            self._link(handler, operands, fields)
        self.kernel.register_bytes = self.size
        self.kernel.specials = [self.specials.get(name, _runtime.NONE) for name in SPECIALS]
        self.kernel.shared_granule = self.granule
        self.kernel.set_constants(bytes(self.constants))

    def _room(self, size: int) -> int:
        offset = self.size
        self.size += -(-size // 64) * 64
        return offset

    def _lay_out(self, module_variables: dict[str, tuple[Variable, int]]) -> None:
        own = list(self.entry.variables.items())
        named = [*own, *((name, variable) for name, (variable, _) in module_variables.items())]
        text = self.entry.body
        static = {n: v for n, v in named if v.space == "shared" and not v.extern and v.size and n.split("@")[0] in text}
        self.kernel.static_shared = self._place(static)
        for name, variable in named:  # dynamic shared memory begins after what is static
            if variable.space == "shared" and (variable.extern or not variable.size):
                self.symbols[name] = -(-self.kernel.static_shared // 16) * 16
        self.kernel.local = self._place({name: variable for name, variable in own if variable.space == "local"})
        for name, (variable, address) in module_variables.items():
            if variable.space in ("global", "const"):
                self.symbols[name] = address

    def _place(self, variables: dict[str, Variable]) -> int:
        """Gives each its offset, in their order, and returns the bytes of all."""
        laid_out, size = ptx.laid_out(list(variables.values()))
        self.symbols |= {name: variable.offset for name, variable in zip(variables, laid_out)}
        return size

    # --- operands ---

    def literal(self, value: bytes, count: int = LANES) -> int:
        """Offset of a constant, the same for all lanes."""
        key = (value, count)
        if key not in self.literals:
            self.constants += bytes(-len(self.constants) % 64)
            self.literals[key] = len(self.constants) | _runtime.CONSTANT
            self.constants += value * count
        return self.literals[key]

    def type_of(self, operand: str) -> str | None:
        """Of a register; None of what is not one."""
        found = self.registers.get(operand)
        return found[1] if found else None

    def read(self, operand: str, type: str) -> int:
        """Offset of an operand that is read as `type`."""
        if operand in self.registers:
            offset, declared = self.registers[operand]
            if (declared == "pred") != (type == "pred"):
                raise ValueError(f"{operand} is .{declared}, not .{type}")
            if type != "pred" and BYTES[declared] != BYTES[type]:
                raise ValueError(f"{operand} is .{declared}: it has not the size of .{type}")
            return offset
        if type == "pred":
            if re.fullmatch(r"-?\d+", operand):
                return self.literal((b"\xff" if int(operand) else b"\0") * 4, 1)
            raise ValueError(f"{operand} is not a predicate")
        if operand in SPECIALS:
            if operand not in self.specials:
                self.specials[operand] = self._room(4 * LANES)
            return self._special(operand, type)
        if operand in FIXED:
            return self.literal(FIXED[operand].to_bytes(BYTES[type], "little"))
        if mask := re.fullmatch(r"%lanemask_(eq|le|lt|ge|gt)", operand):
            masks = {"eq": lambda l: 1 << l, "lt": lambda l: (1 << l) - 1, "le": lambda l: (2 << l) - 1,
                     "ge": lambda l: -1 << l, "gt": lambda l: -2 << l}  # fmt: skip
            values = b"".join((masks[mask[1]](l) & 0xFFFFFFFF).to_bytes(4, "little") for l in range(LANES))
            return self.literal(values, 1)
        if operand == "WARP_SZ":
            return self.literal((32).to_bytes(BYTES[type], "little"))
        symbol, _, displacement = operand.partition("+")
        if symbol.strip() in self.symbols:
            value = self.symbols[symbol.strip()] + int(displacement or "0", 0)
            return self.literal(value.to_bytes(BYTES[type], "little"))
        try:
            value = ptx.constant(operand, "f64" if type == "f64" else fits(type) if type[0] in "us" else type)
        except ValueError:
            raise ValueError(f"cannot read the operand `{operand}` as .{type}") from None
        return self.literal(value)

    def _special(self, operand: str, type: str) -> int:
        if BYTES[type] == 4:
            return self.specials[operand]
        # %tid into another width: through a conversion of its own.
        offset = self._room(BYTES[type] * LANES)
        self.emit(f"cvt.u{8 * BYTES[type]}.u32", [offset, self.specials[operand]], INT, bytes=4, reg_bytes=BYTES[type])
        return offset

    def write(self, operand: str, type: str) -> int:
        """Offset of a register that is written."""
        if operand == "_":
            return 0
        if operand not in self.registers:
            raise ValueError(f"`{operand}` is not a register")
        return self.read(operand, type)

    def loose(self, operand: str, type: str) -> tuple[int, int]:
        """Offset and bytes of an operand that may be wider than its type."""
        declared = self.type_of(operand)
        if declared and declared != "pred" and BYTES[declared] >= BYTES[type]:
            return self.registers[operand][0], BYTES[declared]
        return self.read(operand, type), BYTES[type]

    def predicate(self, operand: str) -> tuple[int, bool]:
        """Offset of a predicate, and whether it is negated."""
        negated = operand.startswith("!")
        return self.read(operand.lstrip("! "), "pred"), negated

    def straight(self, operand: str) -> int:
        """Offset of a predicate, of instructions that do not negate one."""
        offset, negated = self.predicate(operand)
        if negated:
            raise KeyError("!")
        return offset

    def address(self, operand: str, space: str) -> dict:
        """Fields of `[register + displacement]` or `[symbol + displacement]`."""
        match = re.fullmatch(r"\[\s*([^\s+\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if not match:
            raise ValueError(f"cannot read the address `{operand}`")
        base, displacement = match[1], int(match[2] or "0", 0)
        fields: dict = {"space": SPACES[space]}
        if declared := self.type_of(base):
            fields |= {"address": self.registers[base][0], "address_bytes": BYTES[declared], "immediate": displacement}
        elif base in self.symbols:
            fields |= {"address_bytes": 0, "immediate": self.symbols[base] + displacement}
        elif re.fullmatch(r"-?\w+", base) and base[0] in "-0123456789":
            fields |= {"address_bytes": 0, "immediate": int(base, 0) + displacement}
        elif space == "param":
            raise KeyError("a call of a device function: only what is inlined can be executed")
        else:
            raise ValueError(f"`{base}` is neither a register nor a variable")
        return fields

    # --- instructions ---

    def emit(self, handler: str, operands: list[int], counted_as: int, **fields) -> None:
        if not _runtime.knows(handler):
            raise KeyError(handler)
        self.pending.append((handler, operands, {"counted_as": counted_as, **self.common, **fields}))

    def _link(self, handler: str, operands: list, fields: dict) -> None:
        """Gives an instruction to the runtime, its labels as numbers."""
        for field in ("to", "table"):
            if field in fields:
                numbers = [self.starts[self.entry.labels[label]] for label in fields.pop(field)]
                if field == "to":
                    fields["immediate"] = numbers[0]
                else:
                    operands = [*operands, self.literal(b"".join(n.to_bytes(4, "little") for n in numbers), 1)]
        self.kernel.add(handler, operands, fields)

    def _add(self, statement: Statement) -> None:
        self.common = {"line": statement.line}
        self.starts.append(len(self.pending))
        words = statement.opcode.split(".")
        try:
            if statement.guard:
                self.common["guard"], self.common["unless"] = self.predicate(statement.guard)
            decode = TABLE.get(words[0])
            if decode is None:
                raise KeyError(statement.opcode)
            count = len(statement.operands)
            if count not in COUNTS.get(words[0], {count}):
                raise ValueError(f"{count} operands, not {' or '.join(map(str, COUNTS[words[0]]))}")
            decode(self, words, list(statement.operands))
        except (KeyError, IndexError, StopIteration, ValueError) as error:
            # Types or modifiers of another number than any form here has: not unpacked, not found.
            if not isinstance(error, ValueError) or "to unpack" in str(error):
                raise Unknown(
                    f"{self.entry.name}, PTX line {statement.line}: the executor does not know "
                    f"`{statement.opcode} {', '.join(statement.operands)}` ({error or 'no such form'})"
                ) from None
            raise ptx.Malformed(
                f"{self.entry.name}, PTX line {statement.line}: "
                f"`{statement.opcode} {', '.join(statement.operands)}`: {error}"
            ) from None

    def known(self, labels: list[str]) -> list[str]:
        if missing := [label for label in labels if label not in self.entry.labels]:
            raise ValueError(f"there is no label {missing[0]}")
        return labels


TABLE: dict[str, Callable[[Program, list[str], list[str]], None]] = {}


def opcode(*names: str):
    def register(function):
        for name in names:
            TABLE[name] = function
        return function

    return register


def types_in(words: list[str]) -> list[str]:
    return [word for word in words[1:] if word in BYTES or word == "pred"]


def kept(words: list[str], *drop: str) -> list[str]:
    """Modifiers that mean something, without the types."""
    return [w for w in words[1:] if w not in IGNORED and w not in BYTES and w != "pred" and w not in drop]


def only(words: list[str], allowed: set[str]) -> None:
    unknown = [word for word in words if word not in allowed]
    if unknown:
        raise KeyError("." + unknown[0])


def which(words: list[str], options: tuple[str, ...]) -> int:
    """The number of that option which the opcode names."""
    return options.index(next(word for word in words if word in options))


def parts(operand: str) -> tuple[str, ...]:
    """The registers of `{a, b}`, or the only one."""
    return ptx.split_operands(operand.strip("{} "))


def comparable(type: str) -> str:
    """Numbers as they are, bits as unsigned numbers."""
    if type in ("f16x2", "bf16x2"):
        raise KeyError(type)
    return fits(type) if type in ("b16", "b32", "b64") else type


FLOATS = {"f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "f32x2"}


@opcode("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "neg", "abs", "sad", "rcp", "sqrt", "rsqrt",
        "ex2", "lg2", "sin", "cos", "tanh", "copysign")  # fmt: skip
def arithmetic(p: Program, words: list[str], operands: list[str]) -> None:
    types = types_in(words)
    if len(types) == 2 and types[0] == "f32" and types[1] in ("f16", "bf16"):  # halves into a float sum
        only(kept(words, "rn"), set())
        narrow = [p.read(o, types[1]) for o in operands[1:-1]]
        offsets = [p.write(operands[0], "f32"), *narrow, p.read(operands[-1], "f32")]
        return p.emit(f"{words[0]}.f32.{types[1]}", offsets, FLOAT)
    if len(types) != 1:
        raise KeyError("types")
    type, base = types[0], words[0]
    modifiers = kept(words, "rn")
    if base == "mad" and type in FLOATS:
        base = "fma"
    if "cc" in modifiers:
        return carrying(p, [base, *words[1:]], operands)
    if "wide" in modifiers:
        wide = f"{type[0]}{2 * int(type[1:])}"
        only(modifiers, {"wide"})
        reads = [p.read(o, type) for o in operands[1:3]] + [p.read(o, wide) for o in operands[3:]]
        return p.emit(f"{base}.wide.{type}", [p.write(operands[0], wide), *reads], INT)
    if type in FLOATS:
        order = ["rz", "rm", "rp", "nan", "relu", "ftz", "sat"]
        only(modifiers, {*order, "NaN"})
        modifiers = ["nan" if m == "NaN" else m for m in modifiers]
        modifiers = [m for m in order if m in modifiers]
        if type in ("bf16", "bf16x2"):
            modifiers = [m for m in modifiers if m != "ftz"]  # only ex2 has it, of which no subnormal comes
        kind = FLOAT if base in ("add", "sub", "mul", "fma", "min", "max", "neg", "abs") else SPECIAL
    else:
        only(modifiers, {"lo", "hi", "sat"})
        kind = INT
    handler = ".".join([base, *modifiers, type])
    return p.emit(handler, [p.write(operands[0], type), *(p.read(o, type) for o in operands[1:])], kind)


@opcode("addc", "subc", "madc")
def carrying(p: Program, words: list[str], operands: list[str]) -> None:
    type = types_in(words)[0]
    base, takes = words[0].removesuffix("c") if words[0] in ("addc", "subc", "madc") else words[0], words[0][-1] == "c"
    modifiers = kept(words, "cc")
    only(modifiers, {"lo", "hi"})
    type = f"u{type[1:]}"
    mode = int(takes) | (2 if "cc" in words else 0)
    reads = [p.read(o, type) for o in operands[1:]]
    p.emit(".".join([base, *modifiers, "cc", type]), [p.write(operands[0], type), *reads], INT, mode=mode)


@opcode("and", "or", "xor", "not", "cnot")
def logic(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    if type == "pred":
        return p.emit(f"{words[0]}.pred", [p.write(operands[0], "pred"), *map(p.straight, operands[1:])], INT)
    return p.emit(
        f"{words[0]}.{fits(type)}", [p.write(operands[0], type), *(p.read(o, type) for o in operands[1:])], INT
    )


@opcode("shl", "shr")
def shift(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    named = type if type[0] == "s" else fits(type)
    p.emit(
        f"{words[0]}.{named}", [p.write(operands[0], type), p.read(operands[1], type), p.read(operands[2], "u32")], INT
    )


@opcode("shf", "bfe", "bfi", "lop3", "prmt", "popc", "clz", "brev", "bfind")
def bits(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    base, modifiers = words[0], kept(words)
    unsigned = fits(type)
    if base == "shf":
        only(modifiers, {"l", "r", "wrap", "clamp"})
        reads = [p.read(o, "u32") for o in operands[1:]]
        return p.emit(".".join(["shf", *modifiers, "u32"]), [p.write(operands[0], "u32"), *reads], INT)
    if base == "bfe":
        named = type if type[0] == "s" else unsigned
        reads = [p.read(operands[1], type), p.read(operands[2], "u32"), p.read(operands[3], "u32")]
        return p.emit(f"bfe.{named}", [p.write(operands[0], type), *reads], INT)
    if base == "bfi":
        reads = [p.read(o, type) for o in operands[1:3]] + [p.read(o, "u32") for o in operands[3:]]
        return p.emit(f"bfi.{unsigned}", [p.write(operands[0], type), *reads], INT)
    if base == "lop3":
        only(modifiers, set())
        reads = [p.read(o, "u32") for o in operands[1:4]]
        return p.emit("lop3.u32", [p.write(operands[0], "u32"), *reads], INT, immediate=int(operands[4], 0))
    if base == "prmt":
        modes = ["", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
        only(modifiers, set(modes))
        reads = [p.read(o, "u32") for o in operands[1:4]]
        mode = modes.index(modifiers[0] if modifiers else "")
        return p.emit("prmt.u32", [p.write(operands[0], "u32"), *reads], INT, mode=mode)
    only(modifiers, {"shiftamt"})
    named = type if base == "bfind" else unsigned
    result = type if base == "brev" else "u32"
    return p.emit(
        f"{base}.{named}",
        [p.write(operands[0], result), p.read(operands[1], type)],
        INT,
        mode=int("shiftamt" in modifiers),
    )


@opcode("mov")
def move(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    to, source = operands
    if type == "pred":
        return p.emit("mov.pred", [p.write(to, "pred"), p.read(source, "pred")], MOVE)
    size = BYTES[type]
    if to.startswith("{") or source.startswith("{"):
        pieces = parts(to if to.startswith("{") else source)
        piece = f"b{8 * size // len(pieces)}"
        if to.startswith("{"):
            offsets = [p.write(o, piece) for o in pieces] + [p.read(source, type)]
            return p.emit(f"unpack.u{8 * size}", offsets, MOVE, vector=len(pieces))
        offsets = [p.write(to, type)] + [p.read(o, piece) for o in pieces]
        return p.emit(f"pack.u{8 * size}", offsets, MOVE, vector=len(pieces))
    return p.emit(f"mov.{fits(type)}", [p.write(to, type), p.read(source, type)], MOVE)


@opcode("selp")
def select(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    reads = [p.read(operands[1], type), p.read(operands[2], type), p.straight(operands[3])]
    p.emit(f"selp.{fits(type)}", [p.write(operands[0], type), *reads], INT)


@opcode("slct")
def select_by_sign(p: Program, words: list[str], operands: list[str]) -> None:
    type, by = types_in(words)
    reads = [p.read(operands[1], type), p.read(operands[2], type), p.read(operands[3], by)]
    p.emit(f"slct.{fits(type)}.{by}", [p.write(operands[0], type), *reads], INT)


LESS, EQUAL, GREATER, UNORDERED = 1, 2, 4, 8
COMPARISONS = {
    "eq": EQUAL, "lt": LESS, "le": LESS | EQUAL, "gt": GREATER, "ge": GREATER | EQUAL, "ne": LESS | GREATER,
    "lo": LESS, "ls": LESS | EQUAL, "hi": GREATER, "hs": GREATER | EQUAL,
    "equ": EQUAL | UNORDERED, "neu": LESS | GREATER | UNORDERED, "ltu": LESS | UNORDERED,
    "leu": LESS | EQUAL | UNORDERED, "gtu": GREATER | UNORDERED, "geu": GREATER | EQUAL | UNORDERED,
    "num": LESS | EQUAL | GREATER, "nan": UNORDERED,
}  # fmt: skip
COMBINATIONS = {"and": 1 << 4, "or": 2 << 4, "xor": 3 << 4}


@opcode("setp")
def compare(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    modifiers = kept(words, "ftz")
    mode = COMPARISONS[modifiers[0]] | (128 if "ftz" in words else 0)
    only(modifiers[1:], set(COMBINATIONS))
    first, _, second = (name.strip() for name in operands[0].partition("|"))
    combined = []
    if len(modifiers) > 1:
        predicate, negated = p.predicate(operands[3])
        mode |= COMBINATIONS[modifiers[1]] | (64 if negated else 0)
        combined = [predicate]
    if type in ("f16x2", "bf16x2"):  # the second result is that of the high halves
        halves = [[p._room(64), p._room(64)] for _ in range(2)]
        for pair, operand in zip(halves, operands[1:3]):
            p.emit("unpack.u32", [*pair, p.read(operand, type)], MOVE, vector=2)
        for result, *values in zip((first, second), *halves):
            p.emit(f"setp.{type[:-2]}", [p.write(result, "pred"), _runtime.NONE, *values, *combined], INT, mode=mode)
        return
    type = comparable(type)
    offsets = [p.write(first, "pred"), p.write(second, "pred") if second else _runtime.NONE]
    offsets += [p.read(operands[1], type), p.read(operands[2], type), *combined]
    p.emit(f"setp.{type}", offsets, INT, mode=mode)


@opcode("set")
def compare_to_number(p: Program, words: list[str], operands: list[str]) -> None:
    result, type = types_in(words)
    if BYTES[result] != 4:
        raise KeyError(result)
    modifiers = kept(words, "ftz")
    only(modifiers[1:], set())
    type = comparable(type)
    truth = p._room(4)
    p.emit(f"setp.{type}", [truth, _runtime.NONE, p.read(operands[1], type), p.read(operands[2], type)], INT,
           mode=COMPARISONS[modifiers[0]] | (128 if "ftz" in words else 0))  # fmt: skip
    p.emit("spread.u32", [p.write(operands[0], result), truth], INT, mode=int(result == "f32"))


@opcode("testp")
def test(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    mode = ["finite", "infinite", "number", "notanumber", "normal", "subnormal"].index(kept(words)[0])
    p.emit(f"testp.{type}", [p.write(operands[0], "pred"), p.read(operands[1], type)], INT, mode=mode)


@opcode("cvt")
def convert(p: Program, words: list[str], operands: list[str]) -> None:
    to, source = types_in(words)
    modifiers = kept(words)
    only(modifiers, {*ROUNDINGS, "sat", "ftz", "relu", "rna"})
    mode = next((ROUNDINGS[m] for m in modifiers if m in ROUNDINGS), 0)
    if to == "tf32":
        offsets = [p.write(operands[0], "b32"), p.read(operands[1], "f32")]
        return p.emit("cvt.tf32.f32", offsets, SPECIAL, mode=int("rna" not in modifiers))
    if to in ("f16x2", "bf16x2"):
        offsets = [p.write(operands[0], to), p.read(operands[1], "f32"), p.read(operands[2], "f32")]
        return p.emit(f"cvt.{to}.f32", offsets, SPECIAL, mode=mode | (16 if "relu" in modifiers else 0))
    if "relu" in modifiers:
        raise KeyError(".relu")
    mode |= (64 if "sat" in modifiers else 0) | (128 if "ftz" in modifiers else 0)
    offset, size = p.loose(operands[1], source)
    if operands[0] == "_":
        result, result_size = 0, 8
    else:
        declared = p.type_of(operands[0])
        if declared is None or declared == "pred" or BYTES[declared] < BYTES[to]:
            raise ValueError(f"`{operands[0]}` does not hold .{to}")
        result, result_size = p.registers[operands[0]][0], BYTES[declared]
    return p.emit(f"cvt.{to}.{source}", [result, offset], SPECIAL if to in FLOATS or source in FLOATS else INT,
           mode=mode, bytes=size, reg_bytes=result_size)  # fmt: skip


def space_of(words: list[str]) -> str:
    return next((word.split("::")[0] for word in words[1:] if word.split("::")[0] in SPACES), "generic")


VECTORS = ("v2", "v4", "v8")


def vector_of(words: list[str]) -> int:
    return next((int(word[1:]) for word in words[1:] if word in VECTORS), 1)


HINT = re.compile(r"L[12]::|level::|unified")


def memory_words(words: list[str]) -> list[str]:
    """Modifiers of an access but its space, its vector and the hints for caches."""
    return [m for m in kept(words) if not HINT.match(m) and m.split("::")[0] not in SPACES and m not in VECTORS]


@opcode("ld", "ldu", "st")
def access(p: Program, words: list[str], operands: list[str]) -> None:
    is_store = words[0] == "st"
    only(memory_words(words), set())
    (type,) = types_in(words)
    vector, space = vector_of(words), space_of(words)
    where, values = (operands[0], operands[1]) if is_store else (operands[1], operands[0])
    registers = parts(values)
    if len(registers) != vector:
        raise ValueError(f"{len(registers)} registers for {vector} values")
    offsets, size = [], BYTES[type]
    for register in registers:
        if register == "_":
            offsets.append(0)
            continue
        offset, width = p.loose(register, type) if is_store or p.type_of(register) else (None, 0)
        if offset is None:
            raise ValueError(f"`{register}` is not a register")
        offsets.append(offset)
        size = width
    if space in ("shared", "generic"):
        p.granule = min(p.granule, BYTES[type] * vector)
    handler, kind = "store" if is_store else "load", MOVE if space == "param" else MEMORY
    p.emit(handler, offsets, kind, bytes=BYTES[type], reg_bytes=size, vector=vector, signed=type[0] == "s",
           **p.address(where, space))  # fmt: skip


@opcode("atom", "red")
def atomic(p: Program, words: list[str], operands: list[str]) -> None:
    vector = vector_of(words)
    (operation,) = memory_words(words)
    (type,) = types_in(words)
    if words[0] == "red":
        operands = ["{" + ", ".join("_" * vector) + "}", *operands]
    width = fits(type) if operation in ("and", "or", "xor", "exch", "cas") else type
    if space_of(words) in ("shared", "generic"):
        p.granule = min(p.granule, BYTES[type])
    offsets = [p.write(o, type) for o in parts(operands[0])]
    offsets += [p.read(o, type) for operand in operands[2:] for o in parts(operand)]
    p.emit(f"atom.{operation}.{width}", offsets, MEMORY, vector=vector, mode=int(operation == "cas"),
           **p.address(operands[1], space_of(words)))  # fmt: skip


@opcode("cvta")
def to_generic(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    offset, size = p.loose(operands[1], type)
    p.emit("cvta", [p.write(operands[0], type), offset], INT, space=SPACES[space_of(words)], mode=int("to" in words),
           bytes=size, reg_bytes=BYTES[type])  # fmt: skip


@opcode("isspacep")
def is_space(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("isspacep", [p.write(operands[0], "pred"), p.read(operands[1], "u64")], INT, space=SPACES[space_of(words)])


@opcode("bra")
def branch(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("bra", [], CONTROL, to=p.known([operands[0]]))


@opcode("brx")
def branch_by_index(p: Program, words: list[str], operands: list[str]) -> None:
    if operands[1] not in p.entry.tables:
        raise ValueError(f"there is no table {operands[1]}")
    labels = p.known(p.entry.tables[operands[1]])
    p.emit("brx.idx", [p.read(operands[0], "u32")], CONTROL, immediate=len(labels), table=labels)


@opcode("ret", "exit")
def end(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("ret", [], CONTROL)


@opcode("trap", "brkpt")
def trap(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("trap", [], CONTROL)


@opcode("bar", "barrier")
def barrier(p: Program, words: list[str], operands: list[str]) -> None:
    if words[1] == "warp":
        return p.emit("bar.warp", [], CONTROL, members=p.read(operands[0], "u32"))
    if "red" in words:
        operations = ("popc", "and", "or")
        operation = which(words, operations)
        only(words[1:], {"red", "aligned", "cta", "u32", "pred", operations[operation]})
        predicate = p.straight(operands[-1])
        count = p.read(operands[2], "u32") if len(operands) > 3 else _runtime.NONE
        result = p.write(operands[0], "pred" if operation else "u32")
        return p.emit("bar", [p.read(operands[1], "u32"), count, result, predicate], CONTROL, mode=1 + operation)
    only(words[1:], {"sync", "arrive", "aligned", "cta"})
    count = p.read(operands[1], "u32") if len(operands) > 1 else _runtime.NONE
    return p.emit("bar", [p.read(operands[0], "u32"), count], CONTROL, mode=8 if "arrive" in words else 0)


@opcode("shfl")
def shuffle(p: Program, words: list[str], operands: list[str]) -> None:
    if "sync" not in words:
        raise KeyError("shfl without .sync")
    result, _, in_range = operands[0].partition("|")
    offsets = [p.write(result.strip(), "b32"), p.write(in_range.strip(), "pred") if in_range else _runtime.NONE]
    offsets += [p.read(o, "b32") for o in operands[1:4]]
    mode = which(words, ("up", "down", "bfly", "idx"))
    p.emit("shfl", offsets, SPECIAL, mode=mode, members=p.read(operands[4], "u32"))


@opcode("vote")
def vote(p: Program, words: list[str], operands: list[str]) -> None:
    mode = which(words, ("all", "any", "uni", "ballot"))
    predicate, negated = p.predicate(operands[1])
    result = p.write(operands[0], "b32" if mode == 3 else "pred")
    p.emit("vote", [result, predicate], SPECIAL, mode=mode | (4 if negated else 0), members=p.read(operands[2], "u32"))


@opcode("match")
def match(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    result, _, alike = operands[0].partition("|")
    offsets = [p.write(result.strip(), "b32"), p.read(operands[1], type)]
    offsets.append(p.write(alike.strip(), "pred") if alike else _runtime.NONE)
    p.emit(f"match.{fits(type)}", offsets, SPECIAL, mode=int("all" in words), members=p.read(operands[2], "u32"))


@opcode("redux")
def reduce(p: Program, words: list[str], operands: list[str]) -> None:
    (type,) = types_in(words)
    (operation,) = kept(words)
    named = "u32" if type == "b32" else type
    handler = f"redux.{operation}.{named}"
    p.emit(
        handler, [p.write(operands[0], type), p.read(operands[1], type)], SPECIAL, members=p.read(operands[2], "u32")
    )


@opcode("activemask")
def active_mask(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("activemask", [p.write(operands[0], "b32")], SPECIAL)


@opcode("elect")
def elect(p: Program, words: list[str], operands: list[str]) -> None:
    result, _, leader = operands[0].partition("|")
    p.emit(
        "elect",
        [p.write(result.strip(), "b32"), p.write(leader.strip(), "pred")],
        SPECIAL,
        members=p.read(operands[1], "u32"),
    )


@opcode("cp")
def copy_async(p: Program, words: list[str], operands: list[str]) -> None:
    if words[1] != "async" or "bulk" in words or "mbarrier" in words:
        raise KeyError("only cp.async of 4, 8 or 16 bytes")
    if words[2] == "commit_group":
        return p.emit("cp.async.commit", [], CONTROL)
    if words[2] == "wait_group":
        return p.emit("cp.async.wait", [], CONTROL, immediate=int(operands[0], 0))
    if words[2] == "wait_all":
        return p.emit("cp.async.wait", [], CONTROL, mode=1)
    to, source = p.address(operands[0], "shared"), p.address(operands[1], "global")
    if source["address_bytes"] != 8 or not to["address_bytes"]:
        raise KeyError("an address that is not a register")
    if "L2::cache_hint" in words:
        operands = operands[:-1]
    size = p.read(operands[3], "u32") if len(operands) > 3 else _runtime.NONE
    return p.emit("cp.async", [to["address"], source["address"], size, 0, source["immediate"] & 0xFFFFFFFF], MEMORY,
           space=SPACES["shared"], bytes=int(operands[2], 0), immediate=to["immediate"],
           address_bytes=to["address_bytes"])  # fmt: skip


ALL = (0xFFFFFFFF).to_bytes(4, "little")


@opcode("ldmatrix", "stmatrix")
def matrix(p: Program, words: list[str], operands: list[str]) -> None:
    only(kept(words), {"m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"})
    values, where = (operands[0], operands[1]) if words[0] == "ldmatrix" else (operands[1], operands[0])
    count = next(int(w[1]) for w in words if w in ("x1", "x2", "x4"))
    registers = parts(values)
    if len(registers) != count or "b16" not in words:
        raise KeyError("shape")
    p.emit(words[0], [p.write(o, "b32") for o in registers], MATRIX, vector=count, mode=int("trans" in words),
           members=p.literal(ALL), **p.address(where, "shared"))  # fmt: skip


@opcode("mma")
def multiply(p: Program, words: list[str], operands: list[str]) -> None:
    only(kept(words), {"row", "col", *(w for w in words if re.fullmatch(r"m\d+n\d+k\d+", w))})
    shape = next(w for w in words if re.fullmatch(r"m\d+n\d+k\d+", w))
    result, a, b, c = types_in(words)
    handler = f"mma.{shape}.{result}.{a}"
    if a != b or result != c:
        raise KeyError(handler)
    registers = [parts(operand) for operand in operands]
    sums, inputs = ("b32" if result == "f16" else result), ("f64" if a == "f64" else "b32")
    offsets = [p.write(o, sums) for o in registers[0]]
    offsets += [p.read(o, inputs) for o in (*registers[1], *registers[2])] + [p.read(o, sums) for o in registers[3]]
    p.emit(handler, offsets, MATRIX, members=p.literal(ALL))


@opcode(*NO_OPS)
def nothing(p: Program, words: list[str], operands: list[str]) -> None:
    p.emit("nothing", [], CONTROL)
