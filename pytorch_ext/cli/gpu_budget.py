"""`doctor --gpu-budget`: what compilers make of the GPU kernels, as the repository's tests hold it; docs/gpu.md."""

from __future__ import annotations

import csv
from pathlib import Path

from .. import _load

TABLE = _load.FOLDER.parent / "tests/gpu_budget.csv"
HEADS = (
    "kernel", "sm", "variants", "block", "registers", "mean", "threads/SM", "shared", "stack", "spills", "16 B loads",
    "16 B stores", "atomics", "tensor cores",
)  # fmt: skip
LEGEND = """\
The worst of a kernel's variants (template instances; a Triton kernel's layers, types and tiles): threads of a block,
registers of a thread (and their mean), threads that a multiprocessor holds, bytes of shared and of local memory
(stack), instructions that spill, atomics. Then how many variants move 16 bytes at once, and use tensor cores.
`make gpu-budget` measures anew."""


def _rows(lines: list[str]) -> list[list[str]]:
    """Cells under HEADS; a kernel's name stands in the first of its rows, a language's in a row of its own."""
    rows: list[list[str]] = []
    language = kernel = ""
    for row in csv.DictReader(lines):
        if row["language"] != language:
            language, kernel = row["language"], ""
            rows.append([language])
        count = int(row["variants"])
        of = [
            row[name] if row[name] == "0" else f"{row[name]} of {count}" for name in ("loads16", "stores16", "matrix")
        ]
        rows.append(
            [
                "" if row["kernel"] == kernel else f"  {row['kernel']}",
                row["arch"],
                row["variants"],
                row["threads"],
                row["registers"],
                f"{int(row['registers_sum']) / count:.0f}",
                row["occupancy"],
                *(row[name] for name in ("shared", "stack", "spills")),
                *of[:2],
                row["atomics"],
                of[2],
            ]
        )
        kernel = row["kernel"]
    return rows


def text(path: Path = TABLE) -> str:
    """Raises FileNotFoundError, which says what to do, where the table is not there."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: the table of GPU kernels belongs to the repository's tests and is not installed. "
            "Run this in a clone with an editable install (make build)."
        )
    lines = path.read_text().splitlines()
    notes = [line.lstrip("# ") for line in lines if line.startswith("#")]
    rows = _rows([line for line in lines if not line.startswith("#")])
    whole = [list(HEADS), *(row for row in rows if len(row) > 1)]
    widths = [max(len(row[i]) for row in whole) for i in range(len(HEADS))]

    def line(row: list[str]) -> str:
        return "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()

    return "\n".join([*notes, "", line(list(HEADS)), *(line(row) for row in rows), "", LEGEND])
