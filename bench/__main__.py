"""`python -m bench`: the real network on real photographs, every op against its floor and its peers, a report."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import operator
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from . import bench_models, report
from .conditions import conditions, slug
from .measure import Case, Options, measure
from .peers import Skipped
from .timing import Copy, Fma, NoCeiling, geomean, give_back_pages, interleave, keep_pages

HERE = Path(__file__).parent
COPY_SIZES = (32 << 10, 512 << 10, 8 << 20, 128 << 20)  # bytes read and written

QUICK = Options(rounds=31, budget=1.0)
FULL = Options(rounds=51, budget=6.0, full=True)

NAMES = {
    "torch": "torch",
    "torch_cl": "torch cl",
    "inductor": "Inductor",
    "inductor_cl": "Inductor cl",
    "ort": "ORT",
    "ort_kernel": "ORT kernel",
    "ours": "ours",
    "ours_cl": "ours cl",
    "ours_frozen": "cl frozen",
}
DIRECTIONS = {
    "forward": "forward",
    "backward": "backward: dx, dweight, dbias",
    "step": "forward + backward",
}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--full", action="store_true", help="batch 8, all backward passes, Inductor, more rounds")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="cases whose id (op/set/layer/batch/direction) holds it; several by commas",
    )
    parser.add_argument(
        "--rounds", type=int, help=f"samples of each provider ({QUICK.rounds}, or {FULL.rounds} if full)"
    )
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads (1)")
    parser.add_argument(
        "--system-allocator", action="store_true", help="let the C library return memory to the system between calls"
    )
    parser.add_argument(
        "--render", type=Path, metavar="JSON", help="measure nothing: make the report of a stored result"
    )
    parser.add_argument("--markdown", type=Path, metavar="JSON", help="measure nothing: print a stored result's tables")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results/ and report/ (bench)")
    chosen = parser.parse_args(argv)
    for name in ("rounds", "threads"):
        value = getattr(chosen, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be positive, got {value}")
    return chosen


def scripts() -> list:
    """The benchmark of every op, and of the networks: `bench_*.py` with a function `cases`."""
    return [importlib.import_module(f".{path.stem}", __package__) for path in sorted(HERE.glob("bench_*.py"))]


def selected(options: Options, only: str) -> list[Case]:
    wanted = only.split(",")
    return [case for script in scripts() for case in script.cases(options) if any(text in case.id for text in wanted)]


def ceilings(threads: int) -> dict | None:
    """FMA peak and copy bandwidth by size, measured together."""
    providers = {"fma": Fma(1e6, threads), **{str(size): Copy(size, threads) for size in COPY_SIZES}}
    rounds = interleave(providers, rounds=15, threads=threads)
    return {
        "fma_gflops": 1e6 / rounds.seconds("fma").median / 1e9,
        "copy_gbps": {str(size): size / rounds.seconds(str(size)).median / 1e9 for size in COPY_SIZES},
        "noise": max(rounds.seconds(name).noise for name in providers),
    }


# --- on the console ---------------------------------------------------------------------------------------------------
def machine_panel(facts: dict, measured: dict | None, why: str) -> Panel:
    versions = ", ".join(f"{name} {value}" for name, value in facts["versions"].items() if value)
    git = facts["git"]
    lines = [
        f"[bold]{facts['cpu']}[/], {facts['cores']} cores, {facts['threads']} thread(s) used; "
        f"caches {', '.join(f'{name} {size}' for name, size in facts['caches'].items()) or 'unknown'}",
        f"{versions}; {facts['compiler'] or 'no compiler'}; "
        + (f"commit {git['commit']}{' + changes' if git['dirty'] else ''}" if git else "no git"),
    ]
    if facts["isa"]:
        lines.append(f"ours: compiled for [bold]{facts['isa']}[/]")
    else:
        lines.append(
            f"[bold red]ours: NOT COMPILED, the plain-torch reference is timed in its place[/] "
            f"({facts['why_not_compiled']})"
        )
    if measured:
        copies = ", ".join(f"{report.size(int(size))} {rate:.0f}" for size, rate in measured["copy_gbps"].items())
        lines.append(
            f"ceilings: multiply-add {measured['fma_gflops']:.0f} GFLOP/s; copy (GB/s read + written) {copies}"
        )
    else:
        lines.append(f"[yellow]ceilings unknown[/]: {why}")
    lines.append(f"load average {facts['load_average']}")
    return Panel("\n".join(lines), title="machine", title_align="left")


def photograph_table(found: list[dict]) -> Table:
    table = Table(title="MobileNetV2, ImageNet weights: what it sees", title_justify="left")
    for column in ("photograph", "torch", "ours", "max |logit difference|"):
        table.add_column(column)
    for row in found:
        labels = ["\n".join(f"{p:.3f} {label}" for label, p in row[key]) for key in ("torch", "ours")]
        table.add_row(row["photograph"], *labels, f"{row['largest_difference']:.1e} of {row['largest_logit']:.1f}")
        table.add_section()
    return table


def result_table(rows: list[dict]) -> Table:
    """One table for rows that share op, set, batch and direction."""
    first = rows[0]
    names = [name for name in NAMES if any(name in row["providers"] for row in rows)]
    longest = max(report.median(row, name) for row in rows for name in row["providers"])
    unit, scale = ("ms", 1e-3) if longest > 3e4 else ("µs", 1.0)
    table = Table(
        title=f"{first['op']} · {first['set']} · batch {first['batch']} · {DIRECTIONS[first['direction']]} · {unit}",
        title_justify="left",
    )
    table.add_column("layer", no_wrap=True)
    for name in (*(NAMES[name] for name in names), "floor", "ours / floor", "NCHW", "cl", "best", "noise"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [_number(report.median(row, name) * scale) if name in row["providers"] else "–" for name in names]
        floor, over = row["floor"], report.over_floor(row, "ours", "ours_cl")
        cells.append(f"{_number(floor['us'] * scale)} {floor['binds'][0].upper()}" if floor else "?")
        cells.append(f"{over:.2f}" if over else "–")
        cells += [_speedup(row["speedup"].get(key)) for key in ("nchw", "channels_last", "best")]
        cells.append(f"{max((p['noise'] for p in row['providers'].values()), default=0):.0%}")
        wrong = f" [red]refused: {', '.join(row['wrong'])}[/]" if row["wrong"] else ""
        table.add_row(row["name"] + wrong, *cells)
    means = [
        geomean(row["speedup"][k]["median"] for row in rows if k in row["speedup"])
        for k in ("nchw", "channels_last", "best")
    ]
    if len(rows) > 1:
        table.add_section()
        table.add_row(
            "geometric mean", *[""] * (len(names) + 2), *(f"[bold]{m:.2f}x[/]" if m == m else "–" for m in means), ""
        )
    return table


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _speedup(figures: dict | None) -> str:
    if figures is None:
        return "–"
    colour = "green" if figures["median"] >= 1.05 else "red" if figures["median"] <= 0.95 else "default"
    return f"[{colour}]{figures['median']:.2f}x[/]"


# --- the job ----------------------------------------------------------------------------------------------------------
def run(console: Console, subjects: list[Case], options: Options, save: Callable[[list[dict]], object]) -> list[dict]:
    """Measures the cases; a table appears, and the rows so far are saved, as soon as its last row is there."""
    rows: list[dict] = []
    key_of = operator.attrgetter(*report.GROUP)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("benchmarks", total=len(subjects))
        for i, case in enumerate(subjects):
            progress.update(task, description=f"[bold]{case.name}[/] b{case.batch} {case.direction}")
            rows.append(measure(case, options))
            give_back_pages()
            progress.advance(task)
            key = key_of(case)
            if i + 1 == len(subjects) or key_of(subjects[i + 1]) != key:
                group = report.groups(rows)[key]
                console.print(result_table(group))
                save(rows)
                for provider, reason in sorted({item for row in group for item in row["skipped"].items()}):
                    console.print(f"  [yellow]without {NAMES.get(provider, provider)}[/]: {reason}")
    return rows


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(argv)
    if chosen.render:
        print(write_report(json.loads(chosen.render.read_text(encoding="utf-8")), chosen.out))
        return 0
    if chosen.markdown:
        print(report.markdown(json.loads(chosen.markdown.read_text(encoding="utf-8")), NAMES))
        return 0
    base = FULL if chosen.full else QUICK
    options = Options(chosen.rounds or base.rounds, chosen.threads, base.budget, base.full)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    warnings.filterwarnings("ignore", module="torch._inductor")

    what = "full" if chosen.full else "quick"
    subjects = selected(options, chosen.only)
    if not subjects:
        console.print(f"[red]no case's id holds {chosen.only!r}[/]; ids look like {selected(options, '')[0].id}")
        return 2

    kept = not chosen.system_allocator and keep_pages()
    allocator = "keeps freed pages" if kept else "the C library's default"
    facts = conditions(
        allocator=allocator, threads=options.threads, rounds=options.rounds, what=what, only=chosen.only or None
    )
    why, measured = "", None
    try:
        measured = ceilings(options.threads)
    except NoCeiling as error:
        why = str(error)
    console.print(machine_panel(facts, measured, why))

    seen: list[dict] = []
    no_photographs = None
    if any(case.op == "models" for case in subjects):
        try:
            seen = bench_models.photographs()
            console.print(photograph_table(seen))
        except Skipped as error:
            no_photographs = str(error)
            console.print(f"[bold yellow]no photographs[/]: {error}")

    stamp = datetime.datetime.fromisoformat(facts["date"]).strftime("%Y-%m-%d-%H%M%S")
    name = "-".join(
        [stamp, slug(facts["cpu"]), facts["isa"] or "reference", what, *filter(None, [slug(chosen.only or "")[:60]])]
    )
    json_path = chosen.out / "results" / f"{name}.json"
    json_path.parent.mkdir(parents=True, exist_ok=True)

    def save(rows: list[dict]) -> dict:
        results = {
            "schema": 1,
            "conditions": {**facts, "load_average_after": conditions()["load_average"]},
            "ceilings": measured,
            "photographs": seen,
            "no_photographs": no_photographs,
            "rows": rows,
        }
        json_path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        return results

    rows = run(console, subjects, options, save)
    results = save(rows)
    html_path = write_report(results, chosen.out)
    console.print(f"\nresults  {json_path}\nreport   [bold]{html_path}[/]   (open it in a browser)")
    refused = [f"{row['case']}: {name}: {text}" for row in rows for name, text in row["wrong"].items()]
    for line in refused:
        console.print(f"[bold red]refused, wrong result[/]: {line}")
    return 1 if refused else 0


def write_report(results: dict, out: Path) -> Path:
    try:
        thumbnails = {row["photograph"]: bench_models.thumbnail(row["photograph"]) for row in results["photographs"]}
    except ImportError:  # a stored result, rendered where scikit-image is missing
        thumbnails = {}
    path = out / "report" / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.render(results, thumbnails), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
