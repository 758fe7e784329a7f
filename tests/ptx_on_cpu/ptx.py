"""PTX text to modules, kernels, statements. Nothing here knows what an instruction means: decode.py does."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

BYTES = {
    **{f"{kind}{bits}": bits // 8 for kind in "bus" for bits in (8, 16, 32, 64)},
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4, "f32x2": 8, "tf32": 4, "b128": 16,
}  # fmt: skip
IDENTIFIER = r"[%$A-Za-z_][\w$]*"


class Malformed(ValueError):
    """The text is not PTX as we know it."""


@dataclass(frozen=True)
class Variable:
    """A parameter, or memory that a module or a kernel declares."""

    name: str
    type: str
    size: int  # bytes
    align: int
    space: str
    offset: int = 0  # among the parameters, in shared or in local memory
    count: int | None = None  # elements of an array, None for a scalar
    values: bytes = b""
    extern: bool = False


@dataclass(frozen=True)
class Statement:
    """An instruction: `@!guard opcode operands;`"""

    opcode: str
    operands: tuple[str, ...]
    guard: str
    line: int  # of the PTX, from 1
    source: tuple[tuple[int, int], ...]  # file number and line, of .loc; then where that was inlined


@dataclass
class Entry:
    """A kernel as it stands in the text. Its body is read when it is wanted."""

    name: str
    params: list[Variable]
    directives: dict[str, tuple[int, ...]]  # reqntid, maxntid, ...
    body: str
    first_line: int
    registers: dict[str, str] = field(default_factory=dict)  # name -> type
    variables: dict[str, Variable] = field(default_factory=dict)
    statements: list[Statement] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # name -> number of a statement
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def without_comments(text: str) -> str:
    """Comments as spaces: lines keep their numbers."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.DOTALL)


def split_operands(text: str) -> tuple[str, ...]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    if current.strip():
        parts.append(current.strip())
    return tuple(parts)


DECLARATION = re.compile(
    r"(?P<extern>\.(?:extern|visible|weak|common)\s+)?\.(?P<space>param|shared|local|global|const)\b"
    r"(?P<middle>(?:\s*\.(?:align\s+\d+|ptr|global|shared|const|local|unified|attribute\s*\([^)]*\)))*)"
    rf"\s*\.(?P<type>b8|b16|b32|b64|b128|[us](?:8|16|32|64)|f16|f32|f64)\s*"
    rf"(?P<middle2>(?:\s*\.(?:align\s+\d+|ptr|global|shared|const|local))*)"
    rf"\s*(?P<name>{IDENTIFIER})\s*(?P<array>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<value>.*))?$",
    re.DOTALL,
)


def declaration(text: str, line: int) -> Variable:
    match = DECLARATION.match(text.strip())
    if not match:
        raise Malformed(f"PTX line {line}: cannot read the declaration `{' '.join(text.split())[:120]}`")
    element = BYTES[match["type"]]
    # `.ptr .align 16` speaks of what is pointed to.
    align = re.search(r"\.align\s+(\d+)", (match["middle"] or "").split(".ptr")[0])
    dimensions = re.findall(r"\[\s*(\d*)\s*\]", match["array"])
    count = None
    for dimension in dimensions:
        count = (1 if count is None else count) * int(dimension or 0)
    return Variable(
        match["name"],
        match["type"],
        element * (1 if count is None else count),
        int(align[1]) if align else element,
        match["space"],
        count=count,
        values=initial(match["value"], match["type"], line) if match["value"] else b"",
        extern=(match["extern"] or "").strip() == ".extern",
    )


def initial(text: str, type: str, line: int) -> bytes:
    values = re.findall(r"[^\s{},]+", text)
    try:
        return b"".join(constant(value, type) for value in values)
    except ValueError as error:
        raise Malformed(f"PTX line {line}: cannot read the initial values `{text[:80]}`") from error


def constant(text: str, type: str) -> bytes:
    """A literal in its type's bytes."""
    size = BYTES[type]
    if match := re.fullmatch(r"(-?)0[fF]([0-9A-Fa-f]{8})", text):
        value = struct.unpack(">f", bytes.fromhex(match[2]))[0]
        return floating(-value if match[1] else value, type) if type[0] in "fb" and type != "b8" else b""
    if match := re.fullmatch(r"(-?)0[dD]([0-9A-Fa-f]{16})", text):
        value = struct.unpack(">d", bytes.fromhex(match[2]))[0]
        return floating(-value if match[1] else value, type)
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
        return floating(float(text), type)
    if not re.fullmatch(r"[-~!]?(?:0[xX][0-9A-Fa-f]+|0[bB][01]+|\d+)U?", text):
        raise ValueError(f"`{text}` is not a number")
    digits = text.rstrip("U").lstrip("-~!")
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    value = int(digits, 8 if octal else 0)
    value = {"-": -value, "~": ~value, "!": int(not value)}.get(text[0], value)
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def floating(value: float, type: str) -> bytes:
    size = BYTES[type]
    if size not in (4, 8):
        raise ValueError(f"a float does not fit {type}")
    return struct.pack("<f" if size == 4 else "<d", value)


def laid_out(variables: list[Variable], start: int = 0) -> tuple[list[Variable], int]:
    """Variables with their offsets, and the bytes they take."""
    result, offset = [], start
    for variable in variables:
        offset = -(-offset // variable.align) * variable.align
        result.append(Variable(**{**variable.__dict__, "offset": offset}))
        offset += variable.size
    return result, offset


class Text:
    """A module's text: its files, its variables, its kernels."""

    def __init__(self, ptx: str):
        if not isinstance(ptx, str):
            raise TypeError(f"ptx must be a str, got {type(ptx).__name__}")
        if not re.search(r"^\s*\.version\s+\d+\.\d+", ptx, re.MULTILINE):
            raise Malformed("this is not PTX: it has no .version")
        text = without_comments(ptx)
        self.files = {
            int(number): (f"{folder}/{name}" if name else folder)
            for number, folder, name in re.findall(r'\.file\s+(\d+)\s+"([^"]*)"(?:\s+"([^"]*)")?', text)
        }
        target = re.search(r"^\s*\.target\s+(\w+)", text, re.MULTILINE)
        self.target = target[1] if target else ""
        self.entries: dict[str, Entry] = {}
        self.variables: dict[str, Variable] = {}
        position = 0
        outside = []
        for head in re.finditer(rf"\.(entry|func)\b\s*(\([^)]*\)\s*)?({IDENTIFIER})\s*(\(|\{{|;|\.)", text):
            if head.start() < position:
                continue
            outside.append((position, head.start()))
            position = self._function(text, head)
        outside.append((position, len(text)))
        for begin, end in outside:
            self._declarations(text, begin, end)

    def _function(self, text: str, head: re.Match) -> int:
        name, line = head[3], line_of(text, head.start())
        position = head.end()
        params = ""
        if head[4] == "(":
            close = text.find(")", position)
            if close < 0:
                raise Malformed(f"PTX line {line}: the parameters of {name} do not end")
            params, position = text[position:close], close + 1
        else:
            position -= 1
        stop = re.compile(r"[{;]").search(text, position)
        if not stop:
            raise Malformed(f"PTX line {line}: {name} has no body")
        if stop[0] == ";":
            return stop.end()  # a declaration
        directives = {
            key: tuple(int(n) for n in re.findall(r"\d+", values))
            for key, values in re.findall(r"\.(\w+)\s+([\d,\s]+)", text[position : stop.start()])
        }
        depth = 0
        for brace in re.compile(r"[{}]").finditer(text, stop.start()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                break
        else:
            raise Malformed(f"PTX line {line}: the body of {name} does not end")
        if head[1] == "entry":
            variables = [declaration(part, line) for part in split_operands(params)]
            self.entries[name] = Entry(
                name,
                laid_out(variables)[0],
                directives,
                text[stop.end() : brace.start()],
                line_of(text, stop.end()),
            )
        return brace.end()

    def _declarations(self, text: str, begin: int, end: int) -> None:
        between = text[begin:end]
        if torn := re.search(r"\.(?:entry|func)\b", between):
            raise Malformed(f"PTX line {line_of(text, begin + torn.start())}: a function's head does not end")
        if between.count("{") != between.count("}"):
            raise Malformed(f"PTX line {line_of(text, end)}: a brace closes that was not opened, or does not close")
        for match in re.finditer(
            r"(?:\.(?:extern|visible|weak|common)\s+)?\.(?:shared|global|const)\b[^;]*", text[begin:end]
        ):
            line = line_of(text, begin + match.start())
            variable = declaration(match[0], line)
            self.variables[variable.name] = variable


STOP = re.compile(r"[;{}\n:]")


def read_body(entry: Entry) -> None:
    """Fills the entry's registers, variables, statements, labels and tables."""
    for part in (entry.registers, entry.variables, entry.statements, entry.labels, entry.tables):
        part.clear()  # of a reading that failed
    text, line, at, start = entry.body, entry.first_line, 0, 0
    scopes: list[dict[str, str]] = [{}]
    source: tuple[tuple[int, int], ...] = ()
    calls: dict[tuple[int, int], tuple[int, int]] = {}  # where what stands at a place was last inlined
    depth = 0  # of braces within a statement
    begun = line

    def resolve(operand: str) -> str:
        # Names of inner scopes stand for themselves with the scope's number.
        if len(scopes) == 1 and not scopes[0]:
            return operand

        def replaced(match: re.Match) -> str:
            for scope in reversed(scopes):
                if match[0] in scope:
                    return scope[match[0]]
            return match[0]

        return re.sub(IDENTIFIER, replaced, operand)

    scope_number = 0
    while match := STOP.search(text, at):
        at = match.end()
        character = match[0]
        pending = text[start : match.start()].strip()
        if character == "\n":
            if re.match(r"\.(?:loc|file)\s", pending):
                if locations := re.findall(r"(?:\.loc|\binlined_at)\s+(\d+)\s+(\d+)", pending):
                    chain = [(int(number), int(row)) for number, row in locations]
                    if len(chain) == 2:
                        calls[chain[0]] = chain[1]
                    while chain[-1] in calls and calls[chain[-1]] not in chain:
                        chain.append(calls[chain[-1]])
                    source = tuple(chain)
                start = at
            elif not pending:
                start = at
            line += 1
            if not pending or start == at:
                begun = line
            continue
        if character == ":":
            if depth == 0 and re.fullmatch(IDENTIFIER, pending) and text[at : at + 1] != ":":
                name = resolve(pending)
                if len(scopes) > 1 and name == pending:
                    name = scopes[-1][pending] = f"{pending}@{scope_number}"
                # A table of branch targets: `name: .branchtargets a, b, c;`
                table = re.compile(r"\s*\.branchtargets\s+([^;]*);").match(text, at)
                if table:
                    entry.tables[name] = [part.strip() for part in table[1].split(",")]
                    line += text.count("\n", at, table.end())
                    at = table.end()
                else:
                    entry.labels[name] = len(entry.statements)
                start, begun = at, line
            continue
        if character == "{":
            if not pending:
                scopes.append({})
                scope_number += 1
                start, begun = at, line
            else:
                depth += 1
            continue
        if character == "}":
            if depth:
                depth -= 1
                continue
            if pending:
                raise Malformed(f"PTX line {line}: `{pending[:80]}` does not end with a semicolon")
            if len(scopes) == 1:
                raise Malformed(f"PTX line {line}: a brace closes that was not opened")
            scopes.pop()
            start, begun = at, line
            continue
        if depth:
            raise Malformed(f"PTX line {begun}: braces do not close in `{pending[:80]}`")
        statement_line = begun
        start, begun = at, line
        if not pending or re.match(r"\.(?:pragma|loc|file)\s", pending):
            continue
        if pending.startswith(".reg"):
            _registers(entry, scopes, scope_number, pending, statement_line)
        elif pending.startswith((".local", ".shared", ".param")):
            variable = declaration(pending, statement_line)
            name = variable.name
            if len(scopes) > 1:
                name = scopes[-1][name] = f"{name}@{scope_number}"
            entry.variables[name] = variable
        elif pending.startswith("."):
            raise Malformed(f"PTX line {statement_line}: cannot read `{pending[:80]}`")
        else:
            head = re.match(rf"(?:@\s*(!?\s*{IDENTIFIER})\s+)?([a-z_][\w.:]*)\s*(.*)", pending, re.DOTALL)
            if not head:
                raise Malformed(f"PTX line {statement_line}: cannot read `{pending[:80]}`")
            entry.statements.append(
                Statement(
                    head[2],
                    tuple(resolve(operand) for operand in split_operands(head[3])),
                    resolve((head[1] or "").replace(" ", "")),
                    statement_line,
                    source,
                )
            )
    if len(scopes) > 1 or text[start:].strip():
        raise Malformed(f"PTX line {line}: {entry.name} ends within a statement")


def _registers(entry: Entry, scopes: list[dict], number: int, text: str, line: int) -> None:
    match = re.match(r"\.reg\s*(?:\.(v[24])\s+)?\.(\w+)\s+(.*)", text, re.DOTALL)
    if not match or (match[2] != "pred" and match[2] not in BYTES) or match[1]:
        raise Malformed(f"PTX line {line}: cannot read the registers `{text[:80]}`")
    for part in split_operands(match[3]):
        many = re.fullmatch(rf"({IDENTIFIER})<(\d+)>", part)
        names = [f"{many[1]}{k}" for k in range(int(many[2]))] if many else [part]
        for name in names:
            unique = name
            if len(scopes) > 1:
                unique = scopes[-1][name] = f"{name}@{number}"
            entry.registers[unique] = match[2]
