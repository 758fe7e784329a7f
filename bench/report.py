"""One self-contained HTML page of a run's results: inline SVG and data, nothing from outside, light and dark."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from html import escape

from .timing import geomean

GROUP = ("op", "set", "batch", "direction")  # rows that share these share a chart and a table

# name, label, colour; in the order of legends and columns
PROVIDERS = (
    ("torch", "torch NCHW", "--grey-dark"),
    ("torch_cl", "torch channels_last", "--grey"),
    ("inductor", "Inductor NCHW", "--violet-dark"),
    ("inductor_cl", "Inductor channels_last", "--violet"),
    ("ort", "onnxruntime", "--amber"),
    ("ort_kernel", "onnxruntime, kernel only", "--amber-light"),
    ("ours", "ours NCHW", "--blue"),
    ("ours_cl", "ours channels_last", "--teal"),
    ("ours_frozen", "ours channels_last, frozen weight", "--teal"),
)
LABEL = {name: label for name, label, _ in PROVIDERS}
COLOUR = {name: colour for name, _, colour in PROVIDERS}
SPEEDUPS = (
    ("nchw", "NCHW", "--blue"),
    ("channels_last", "channels_last", "--teal"),
)
DIRECTIONS = {
    "forward": "forward",
    "backward": "backward (gradients of input, weight and bias)",
    "step": "forward + backward, a training step of the layer",
}
SETS = {
    "peers": "Layers of the peer survey",
    "efficientnet_b0": "EfficientNet-B0",
    "thundernet_146": "ThunderNet, SNet146",
    "xception": "Xception",
    "mobilefacenet": "MobileFaceNet",
    "mobilenet_v2": "MobileNetV2",
    "shufflenet_v1_g3": "ShuffleNet v1, 3 groups",
    "shufflenet_v2_x1": "ShuffleNet v2",
    "stems": "First layers of networks",
    "deeplabv3": "DeepLabv3, ResNet-50",
    "drn_d_22": "DRN-D-22",
    "enet": "ENet",
    "resnet50": "ResNet-50",
    "conv1d": "One-dimensional",
    "activations": "Activations on their own",
    "shuffles": "Shuffles",
    "upsampling": "Upsampling",
    "overhead": "Cost of a call",
    "networks": "Whole networks",
}

STYLE = """
:root { --ink: #1b2330; --soft: #5d6878; --line: #dfe3ea; --page: #f6f7f9; --card: #ffffff; --blue: #2f6fde;
  --teal: #0f9d8a; --grey: #a8b0bd; --grey-dark: #7a8494; --violet: #a78bfa; --violet-dark: #7c5cdb; --amber: #e39a1f;
  --amber-light: #f2c46d; --bad: #c63c3c; --good: #12805f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf3; --soft: #9aa6b8; --line: #2d3646; --page: #10151d;
  --card: #182029; --blue: #6ea2ff; --teal: #35c9b3; --grey: #717c8d; --grey-dark: #939dac; --bad: #ff7b7b;
  --good: #4ed6a5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 80px; }
h1 { font-size: 30px; margin: 0 0 4px; letter-spacing: -0.02em; } h2 { font-size: 21px; margin: 44px 0 6px; }
h3 { font-size: 16px; margin: 26px 0 6px; } p { margin: 6px 0 12px; } .soft { color: var(--soft); }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin: 22px 0; } .cards .card { flex: 1 1 200px; }
.card, .panel { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.panel { margin: 12px 0; overflow-x: auto; }
.card b { display: block; font-size: 32px; line-height: 1.15; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13.5px; }
.alarm { border-left: 5px solid var(--bad); }
.photos { display: flex; flex-wrap: wrap; gap: 14px; } .photos .card { flex: 1 1 280px; }
.photos img { width: 100%; height: 210px; object-fit: cover; border-radius: 8px; display: block; }
.photos .name { font-size: 19px; font-weight: 650; margin: 10px 0 4px; }
.guess { display: flex; justify-content: space-between; font-size: 13.5px; margin: 3px 0; padding: 1px 7px;
  border-radius: 4px; background: linear-gradient(#0f9d8a2e, #0f9d8a2e) no-repeat 0 0; }
.card .guess span { color: var(--ink); } .guess em { font-style: normal; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; min-width: 620px; }
svg text { fill: var(--ink); font-family: system-ui, sans-serif; }
svg .axis { stroke: var(--line); } svg .one { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .soft { fill: var(--soft); }
svg .whisker { stroke: var(--ink); opacity: 0.55; } svg .value { font-variant-numeric: tabular-nums; font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); margin: 2px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
table { border-collapse: collapse; font-size: 13px; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
td.good { color: var(--good); font-weight: 650; } td.bad { color: var(--bad); font-weight: 650; }
details summary { cursor: pointer; color: var(--soft); font-size: 13.5px; padding: 4px 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px; }
dt { color: var(--soft); } dd { margin: 0; } code { font: 13px ui-monospace, monospace; }
"""


# --- numbers ----------------------------------------------------------------------------------------------------------
def size(nbytes: int) -> str:
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= scale:
            return f"{nbytes / scale:g} {unit}"
    return f"{nbytes} B"


def time(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.3g} s"
    return f"{us / 1e3:.3g} ms" if us >= 1e3 else f"{us:.3g} µs"


def times(factor: float) -> str:
    return f"{factor:.0f}×" if factor >= 100 else f"{factor:.1f}×" if factor >= 10 else f"{factor:.2f}×"


def median(row: dict, name: str) -> float | None:
    provider = row["providers"].get(name)
    return provider["us"]["median"] if provider else None


def over_floor(row: dict, *names: str) -> float | None:
    found = [row["providers"][n]["over_floor"]["median"] for n in names if "over_floor" in row["providers"].get(n, {})]
    return min(found, default=None)


def groups(rows: list[dict]) -> dict[tuple, list[dict]]:
    """The rows of each chart and table, in the order of their first."""
    together: dict[tuple, list[dict]] = {}
    for row in rows:
        together.setdefault(tuple(row[key] for key in GROUP), []).append(row)
    return together


def markdown(results: dict, names: dict[str, str]) -> str:
    """The rows as Markdown tables, one for each group: what README.md and docs/measured.md quote."""
    lines: list[str] = []
    for (op, set_, batch, direction), rows in groups(results["rows"]).items():
        present = [name for name in names if any(name in row["providers"] for row in rows)]
        speedups = [
            key
            for key in ("nchw", "channels_last", "best", "peers", "kernel")
            if any(key in row["speedup"] for row in rows)
        ]
        lines += [f"**{op}, {set_}, batch {batch}, {direction}**", ""]
        lines.append("| layer | " + " | ".join([*(names[n] for n in present), "ours / floor", *speedups]) + " |")
        lines.append("|---" * (len(present) + len(speedups) + 2) + "|")
        for row in rows:
            cells = [time(value) if (value := median(row, name)) else "–" for name in present]
            ratio = over_floor(row, "ours", "ours_cl")
            cells.append(f"{ratio:.2f}" if ratio else "–")
            cells += [times(row["speedup"][key]["median"]) if key in row["speedup"] else "–" for key in speedups]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        means = [
            times(geomean([row["speedup"][key]["median"] for row in rows if key in row["speedup"]])) for key in speedups
        ]
        lines += [f"| geometric mean | {'| ' * (len(present) + 1)}" + " | ".join(means) + " |", ""]
    return "\n".join(lines)


# --- charts -----------------------------------------------------------------------------------------------------------
LEFT, RIGHT, WIDTH = 176, 96, 980


def _ticks(low: float, high: float) -> list[float]:
    candidates = [m * 10**e for e in range(-2, 6) for m in (1, 2, 5)]
    return [t for t in candidates if low <= t <= high * 1.0001]


def _legend(items: Iterable[tuple[str, str]]) -> str:
    marks = "".join(f'<span><i style="background:var({colour})"></i>{escape(label)}</span>' for label, colour in items)
    return f'<div class="legend">{marks}</div>'


def _log_scale(low: float, high: float):
    span = math.log(high / low)
    return lambda v: LEFT + (WIDTH - LEFT - RIGHT) * math.log(min(max(v, low), high) / low) / span


def _frame(height: float, scale, ticks: Iterable[float], unit: str) -> str:
    parts = []
    for tick in ticks:
        x = scale(tick)
        kind = "one" if tick == 1 else "axis"
        parts.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{height - 20:.1f}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{height - 5:.1f}" text-anchor="middle">{tick:g}{unit}</text>')
    return "".join(parts)


def _svg(height: float, label: str, parts: list[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" font-size="12" role="img" aria-label="{label}">'
    return head + "".join(parts) + "</svg>"


def speedup_chart(rows: list[dict]) -> str:
    """Bars from 1× to the speed-up in each layout, on a logarithmic axis; whiskers are the quartiles."""
    found = [row["speedup"][key] for row in rows for key, _, _ in SPEEDUPS if key in row["speedup"]]
    if not found:
        return ""
    low, high = min(0.5, *(f["q1"] * 0.95 for f in found)), max(4.0, *(f["q3"] * 1.1 for f in found))
    scale = _log_scale(low, high)
    step, bar = 30, 10
    height = len(rows) * step + 32
    parts = [_frame(height, scale, _ticks(low, high), "×")]
    for i, row in enumerate(rows):
        y = 10 + i * step
        parts.append(f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(row["name"])}</text>')
        for j, (key, label, colour) in enumerate(SPEEDUPS):
            figures = row["speedup"].get(key)
            if figures is None:
                continue
            top = y + 2 + j * (bar + 1)
            x0, x1 = sorted((scale(1), scale(figures["median"])))
            q1, q3 = scale(figures["q1"]), scale(figures["q3"])
            tip = (
                f"{row['name']}, {label}: {figures['median']:.3g}× (quartiles {figures['q1']:.3g}–{figures['q3']:.3g})"
            )
            parts.append(
                f'<rect x="{x0:.1f}" y="{top}" width="{max(x1 - x0, 1.5):.1f}" height="{bar}" rx="2" '
                f'style="fill:var({colour})"><title>{escape(tip)}</title></rect>'
                f'<line class="whisker" x1="{q1:.1f}" x2="{q3:.1f}" y1="{top + bar / 2}" y2="{top + bar / 2}"/>'
                f'<text class="value" x="{max(x1, q3) + 6:.1f}" y="{top + 9}" style="font-size:11px">'
                f"{times(figures['median'])}</text>"
            )
    legend = _legend((f"{label}: ours against torch in that layout", colour) for _, label, colour in SPEEDUPS)
    return legend + _svg(height, "speed-up", parts)


def floor_chart(rows: list[dict]) -> str:
    """Time over the floor of each provider, a dot each; the line at 1 is what this machine allows."""
    rows = [row for row in rows if over_floor(row, *LABEL) is not None]
    if not rows:
        return ""
    present = [(n, label, colour) for n, label, colour in PROVIDERS if any(over_floor(row, n) for row in rows)]
    values = [over_floor(row, name) for row in rows for name, _, _ in present if over_floor(row, name)]
    low, high = min(0.9, *values), max(5.0, *values) * 1.1
    scale = _log_scale(low, high)
    step = 24
    height = len(rows) * step + 32
    parts = [_frame(height, scale, _ticks(low, high), "×")]
    for i, row in enumerate(rows):
        y = 20 + i * step
        binds = "FMA" if row["floor"]["binds"] == "flops" else "bytes"
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(row["name"])}</text>')
        parts.append(
            f'<text class="soft" x="{WIDTH - RIGHT + 8}" y="{y + 4}" style="font-size:11px">'
            f"{time(row['floor']['us'])} {binds}</text>"
        )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        for name, label, colour in present:
            value = over_floor(row, name)
            if value is None:
                continue
            tip = f"{row['name']}, {label}: {value:.3g} × floor, {time(median(row, name))}"
            radius = 6 if name in ("ours", "ours_cl") else 4.5
            parts.append(
                f'<circle cx="{scale(value):.1f}" cy="{y}" r="{radius}" style="fill:var({colour})" fill-opacity="0.9">'
                f"<title>{escape(tip)}</title></circle>"
            )
    legend = _legend((label, colour) for _, label, colour in present)
    return legend + _svg(height, "time over the floor", parts)


def time_chart(row: dict) -> str:
    """Bars of one row's times."""
    present = [(n, label, colour) for n, label, colour in PROVIDERS if n in row["providers"]]
    longest = max((row["providers"][n]["us"]["q3"] for n, _, _ in present), default=1.0)
    step = 28
    height = len(present) * step + 8
    parts = []
    for i, (name, label, colour) in enumerate(present):
        figures = row["providers"][name]["us"]
        y, width = 4 + i * step, (WIDTH - LEFT - RIGHT - 30) * figures["median"] / longest
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="18" rx="3" style="fill:var({colour})">'
            f"<title>quartiles {time(figures['q1'])}–{time(figures['q3'])}</title></rect>"
            f'<text class="value" x="{LEFT + width + 8:.1f}" y="{y + 15}">{time(figures["median"])}</text>'
        )
    return _svg(height, "times", parts)


# --- sections ---------------------------------------------------------------------------------------------------------
def _cards(results: dict) -> str:
    rows = results["rows"]
    cards = []

    def mean(op: str, key: str, text: str) -> None:
        chosen = [
            r["speedup"][key]["median"]
            for r in rows
            if (r["op"], r["set"], r["batch"], r["direction"]) == (op, "peers", 1, "forward") and key in r["speedup"]
        ]
        if chosen:
            what = f"{op.removesuffix('_conv2d')} layers"
            cards.append((times(geomean(chosen)), f"{text}: {what}, batch 1, geometric mean of {len(chosen)}"))

    for row in rows:
        if row["op"] == "models" and row["batch"] == 1 and "best" in row["speedup"]:
            best = row["speedup"]["best"]
            what = (
                f"{row['name']}: {time(median(row, best['other']))} → {time(median(row, best['ours']))}, best layouts"
            )
            cards.append((times(best["median"]), what))
    for op in dict.fromkeys(r["op"] for r in rows):
        mean(op, "channels_last", "against torch channels_last")
        mean(op, "nchw", "against torch NCHW")
    floors = [
        v
        for r in rows
        if r["set"] == "peers"
        and r["batch"] == 1
        and r["direction"] == "forward"
        and (v := over_floor(r, "ours", "ours_cl"))
    ]
    if floors:
        cards.append(
            (
                times(geomean(floors)),
                f"of the time that this machine allows at the least, geometric mean of {len(floors)}",
            )
        )
    training = [r["speedup"]["best"]["median"] for r in rows if r["direction"] == "backward" and "best" in r["speedup"]]
    if training:
        cards.append(
            (times(geomean(training)), f"backward, batch 8, against torch's best layout, {len(training)} layers")
        )
    for row in rows:
        if row["set"] == "overhead" and (
            us := min((median(row, n) for n in ("ours", "ours_cl") if median(row, n)), default=None)
        ):
            cards.append((time(us), "a whole call on a tiny tensor"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{escape(big)}</b><span>{escape(text)}</span></div>' for big, text in cards)
        + "</div>"
    )


def _photographs(results: dict, thumbnails: dict[str, bytes]) -> str:
    if results["no_photographs"]:
        return f'<div class="panel alarm">No photographs: {escape(results["no_photographs"])}</div>'
    cards = []
    for row in results["photographs"]:
        picture = thumbnails.get(row["photograph"])
        image = ""
        if picture:
            data = base64.b64encode(picture).decode()
            image = f'<img alt="{escape(row["photograph"])}" src="data:image/jpeg;base64,{data}">'
        guesses = "".join(
            f'<div class="guess" style="background-size:{100 * p:.1f}% 100%">'
            f"<span>{escape(label)}</span><em>{p:.3f}</em></div>"
            for label, p in row["ours"]
        )
        same = [label for label, _ in row["ours"]] == [label for label, _ in row["torch"]]
        verdict = "the same five as plain torch" if same else "NOT the same five as plain torch"
        cards.append(
            f'<div class="card">{image}<div class="name">{escape(row["ours"][0][0])}</div>{guesses}'
            f"<span>{verdict}; largest difference of a logit {row['largest_difference']:.1e} "
            f"of {row['largest_logit']:.1f}</span></div>"
        )
    if not cards:
        return ""
    return (
        "<h2>What the network sees</h2><p class='soft'>MobileNetV2 with ImageNet weights, its convolutions "
        "on this library's kernels (channels_last); photographs from scikit-image.</p>"
        f'<div class="photos">{"".join(cards)}</div>'
    )


def _table(rows: list[dict]) -> str:
    names = [name for name in LABEL if any(name in row["providers"] for row in rows)]
    heads = "".join(f"<th>{escape(LABEL[n])}</th>" for n in names)
    body = []
    for row in rows:
        cells = "".join(f"<td>{time(us) if (us := median(row, n)) is not None else '–'}</td>" for n in names)
        floor, over = row["floor"], over_floor(row, "ours", "ours_cl")
        cells += f"<td>{time(floor['us']) if floor else '?'}</td><td>{times(over) if over else '–'}</td>"
        for key in ("nchw", "channels_last", "best", "peers"):
            figures = row["speedup"].get(key)
            value = figures["median"] if figures else None
            kind = "" if value is None else "good" if value >= 1.05 else "bad" if value <= 0.95 else ""
            cells += f'<td class="{kind}">{times(value) if value else "–"}</td>'
        noise = max((p["noise"] for p in row["providers"].values()), default=0)
        wrong = "".join(
            f"<br><span class='soft'>refused {escape(LABEL.get(n, n))}: {escape(t)}</span>"
            for n, t in row["wrong"].items()
        )
        body.append(f"<tr><td>{escape(row['name'])}{wrong}</td>{cells}<td>{noise:.0%}</td></tr>")
    return (
        f"<table><tr><th>layer</th>{heads}<th>floor</th><th>ours / floor</th><th>NCHW</th><th>channels_last</th>"
        f"<th>vs torch's best</th><th>vs best peer</th><th>noise</th></tr>{''.join(body)}</table>"
    )


def _sections(rows: list[dict]) -> str:
    parts, op = [], None
    for (name, set_, batch, direction), group in groups(rows).items():
        if name != op:
            parts.append(f"<h2>{escape('Networks' if name == 'models' else name)}</h2>")
            op = name
        parts.append(f"<h3>{escape(SETS.get(set_, set_))}: batch {batch}, {DIRECTIONS.get(direction, direction)}</h3>")
        if len(group) == 1:
            charts = time_chart(group[0])
        else:
            charts = f"<h4>Speed-up over torch</h4>{speedup_chart(group)}" + (
                f"<h4>Time over the floor</h4>{chart}" if (chart := floor_chart(group)) else ""
            )
        shown = "" if len(group) > 1 else " open"
        skipped = sorted({(n, reason) for row in group for n, reason in row["skipped"].items()})
        notes = "".join(
            f"<p class='soft'>Without {escape(LABEL.get(n, n))}: {escape(reason)}</p>" for n, reason in skipped
        )
        parts.append(
            f'<div class="panel">{charts}<details{shown}><summary>all figures</summary>{_table(group)}</details>'
            f"{notes}</div>"
        )
    return "".join(parts)


def _conditions(results: dict) -> str:
    facts, ceilings = results["conditions"], results["ceilings"]
    git = facts["git"]
    lines = {
        "processor": facts["cpu"],
        "cores, caches, memory": f"{facts['cores']}; "
        f"{', '.join(f'{n} {s}' for n, s in facts['caches'].items()) or 'unknown'}; {facts['memory_gib']} GiB",
        "system": facts["system"],
        "threads used": facts["threads"],
        "our kernels": f"compiled for {facts['isa']}" if facts["isa"] else f"not compiled: {facts['why_not_compiled']}",
        "torch's instruction set": facts["torch_capability"],
        "versions": ", ".join(f"{n} {v}" for n, v in facts["versions"].items() if v),
        "memory allocator": facts["allocator"],
        "compiler": facts["compiler"] or "–",
        "commit": f"{git['commit']}{' with uncommitted changes' if git['dirty'] else ''}" if git else "not in git",
        "date": facts["date"],
        "load average before, after": f"{facts['load_average']}, {facts.get('load_average_after')}",
        "run": f"{facts['what']}{', only ' + facts['only'] if facts['only'] else ''}, at most {facts['rounds']} rounds",
    }
    if ceilings:
        lines["multiply-add peak"] = f"{ceilings['fma_gflops']:.0f} GFLOP/s"
        lines["copy, read + written"] = "; ".join(
            f"{size(int(s))}: {rate:.0f} GB/s" for s, rate in ceilings["copy_gbps"].items()
        )
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in lines.items())
    return f'<h2>Conditions</h2><div class="panel"><dl>{items}</dl></div>'


DEFINITIONS = """<h2>How to read this</h2><div class="panel"><dl>
<dt>time</dt><dd>median over rounds. All providers of a row run in one process, in rounds of rotating order; a sample
lasts at least 0.2 ms. Forward passes run in inference mode; compilation and weight packing are done before.</dd>
<dt>speed-up</dt><dd>torch's time over ours in the same round, median over rounds; whiskers are the quartiles.
“vs torch's best” takes the faster layout of each side, “vs best peer” the fastest of all whole calls.</dd>
<dt>floor</dt><dd>the larger of two times measured in the same rounds: the layer's multiply-adds (those on pixels of
the image, none for padding) at the rate of a register-only multiply-add loop, and its input, weights and output, each
once, at the rate of a copy with that working set: where the layer leaves a cache, so does the copy.</dd>
<dt>noise</dt><dd>distance between the quartiles over the median, of the row's noisiest provider. Above a few percent
the machine was busy: read ratios, not times.</dd>
<dt>allocator</dt><dd>unless asked otherwise, the C library is told to keep freed memory, as caching allocators do; else
large outputs are paged in anew at every call, which costs all providers the same and hides the kernels.</dd>
<dt>kernel only</dt><dd>onnxruntime's own profile of the layer, without call and layout conversion.</dd>
<dt>checked</dt><dd>every provider's result is compared with float64 before it is timed; a wrong one is refused.</dd>
</dl></div>"""


def render(results: dict, thumbnails: dict[str, bytes] | None = None) -> str:
    """The page as text. `thumbnails`: JPEG bytes by photograph."""
    facts = results["conditions"]
    compiled = (
        ""
        if facts["isa"]
        else (
            '<div class="panel alarm"><b>Our kernels are not compiled here.</b> What is called “ours” below is '
            f"the plain-torch reference. {escape(facts['why_not_compiled'] or '')}</div>"
        )
    )
    unknown = (
        ""
        if results["ceilings"]
        else (
            "<p class='soft'>Without the compiled library this machine's ceilings are unknown: no floors are shown.</p>"
        )
    )
    head = (
        f"{escape(facts['cpu'])}, {escape(facts['isa'] or 'not compiled')}, {facts['threads']} thread(s), "
        f"torch {escape(facts['versions']['torch'])}, {escape(facts['date'][:16].replace('T', ' '))}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>lightkernels bench</title>'
        f"<style>{STYLE}</style></head><body><main><h1>lightkernels against PyTorch</h1>"
        f'<p class="soft">{head}</p>{compiled}{unknown}{_cards(results)}'
        f"{_photographs(results, thumbnails or {})}{_sections(results['rows'])}{_conditions(results)}{DEFINITIONS}"
        "</main></body></html>\n"
    )
