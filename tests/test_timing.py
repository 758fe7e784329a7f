"""The benchmark's clock, floors, conditions and report, on examples worked out by hand."""

import gc
import importlib
import itertools
import json
import math
import re
import types

import pytest
import torch

pytest.importorskip("rich", reason="the benchmark needs rich")

from bench import __main__ as job
from bench import conditions, floors, layers, measure, peers, report, timing


# --- the clock --------------------------------------------------------------------------------------------------------
def test_spread_is_median_and_quartiles():
    assert timing.spread([5, 1, 3, 2, 4]) == timing.Spread(3, 2, 4, 5)
    assert timing.spread([7]) == timing.Spread(7, 7, 7, 1)
    assert timing.spread([5, 1, 3, 2, 4]).noise == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no values"):
        timing.spread([])


def test_geomean_of_a_ratio_and_its_inverse_is_one():
    assert timing.geomean([4, 0.25]) == pytest.approx(1)
    assert math.isnan(timing.geomean([]))


def test_order_rotates_and_turns():
    names = ["a", "b", "c"]
    assert [timing.order(names, r) for r in range(4)] == [list("abc"), list("acb"), list("cab"), list("cba")]
    for place in range(3):  # over six rounds each provider is at each place twice
        assert sorted(timing.order(names, r)[place] for r in range(6)) == sorted(names * 2)


@pytest.mark.parametrize(
    ("budget", "wanted", "each", "expected"),
    [(None, 31, 1.0, 31), (10.0, 31, 1.0, 10), (1.0, 31, 10.0, 3), (1.0, 2, 10.0, 2), (10.0, 5, 0.1, 5)],
)
def test_rounds_fit_the_budget_but_are_at_least_three(budget, wanted, each, expected):
    assert timing.rounds_within(budget, wanted, each) == expected


class Fake:
    """A provider that claims to take what it is told, and writes down when it ran."""

    def __init__(self, name, seconds, log):
        self.name, self.log = name, log
        self.each = itertools.chain(itertools.repeat(seconds)) if isinstance(seconds, float) else iter(seconds)

    def seconds(self, calls):
        self.log.append((self.name, calls))
        return calls * next(self.each)


def test_interleave_runs_every_provider_once_a_round_in_rotating_order():
    log = []
    slow, fast = Fake("slow", 0.01, log), Fake("fast", 1e-3, log)
    rounds = timing.interleave({"slow": slow, "fast": fast}, rounds=4, seconds=2e-3)
    assert rounds.calls == {"slow": 1, "fast": 2}
    timed = [entry for entry in log if entry != ("fast", 1)][-8:]  # the fast one is warmed by a call before each sample
    one, two = ("slow", 1), ("fast", 2)
    assert timed == [one, two, one, two, one, two, one, two]
    assert rounds.seconds("fast").median == pytest.approx(1e-3)
    assert rounds.ratio("slow", "fast").median == pytest.approx(10)


def test_ratios_are_taken_within_a_round():
    rounds = timing.Rounds({"a": [2.0, 20.0, 6.0], "b": [1.0, 10.0, 1.0], "c": [0.5, 0.5, 3.0]}, {})
    assert rounds.ratio("a", "b").median == 2  # 2, 2, 6; the ratio of the medians is 6
    assert rounds.ratio("a", "b", "c").median == 2  # over the slower of both: 2, 2, 2
    assert rounds.ratio("a", "b", "c").q3 == 2


def test_samples_last_long_enough():
    calls, once = timing.calibrate(lambda: sum(range(100)), 1e-3)
    assert calls * once >= 1e-3
    assert calls > 10


def test_threads_and_collector_are_restored():
    before = torch.get_num_threads()
    seen = []
    with timing.settled(before + 1):
        seen.append((torch.get_num_threads(), gc.isenabled()))
    assert seen == [(before + 1, False)]
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)
    with pytest.raises(RuntimeError), timing.settled(before + 1):
        raise RuntimeError
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


# --- ceilings ---------------------------------------------------------------------------------------------------------
FAKE_LIBRARY = types.SimpleNamespace(
    lightkernels_fma_gflops=lambda iterations: 100.0,
    lightkernels_copy_gbps=lambda dst, src, nbytes, repeats: 20.0,
)


@pytest.mark.parametrize("threads", [1, 2])
def test_ceilings_turn_rates_into_times(threads):
    assert timing.Fma(1e6, threads, FAKE_LIBRARY).seconds(3) == pytest.approx(3 * 1e-5 / threads)
    assert timing.Copy(2 << 20, threads, FAKE_LIBRARY).seconds(2) == pytest.approx(2 * (2 << 20) / 20e9 / threads)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("nbytes", [100, 4096, 1 << 20, 3_000_000])
def test_copies_stay_inside_their_buffer_and_apart(nbytes, threads):
    copy = timing.Copy(nbytes, threads, FAKE_LIBRARY)
    start, end = copy.buffer.data_ptr(), copy.buffer.data_ptr() + copy.buffer.numel()
    spans = sorted((at, at + copy.part) for pair in copy.places for at in pair)
    assert start <= spans[0][0]
    assert spans[-1][1] <= end
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert all((dst - src) % 4096 == 2048 for dst, src in copy.places)


def test_without_a_compiled_library_the_ceiling_is_unknown(monkeypatch):
    from pytorch_ext import _load

    monkeypatch.setattr(_load, "libraries", {})
    monkeypatch.setattr(_load, "reasons", {"cpu": f"not built: nothing is in {_load.FOLDER}"})
    with pytest.raises(timing.NoCeiling, match="nothing is in pytorch_ext"):
        timing.Fma(1.0)
    facts = conditions.conditions()
    assert (facts["implementation"], facts["isa"]) == ("reference", None)
    assert facts["why_not_compiled"] == "not built: nothing is in pytorch_ext"


def test_the_compiled_library_measures_plausible_ceilings():
    try:
        timing.machine_library()
    except timing.NoCeiling as reason:
        pytest.skip(str(reason))
    assert 1 < timing.Fma(1.0).gflops() < 1000
    assert 0.5 < timing.Copy(1 << 20).gbps() < 5000
    source, target = torch.arange(1000, dtype=torch.float32), torch.zeros(1000)
    timing.machine_library().lightkernels_copy_gbps(target.data_ptr(), source.data_ptr(), 4000, 1)
    whole = 4000 // 64 * 16  # floats in whole vectors of the widest instruction set
    assert torch.equal(target[:whole], source[:whole])


# --- floors -----------------------------------------------------------------------------------------------------------
def test_taps_inside_by_hand():
    # Five pixels, kernel 3: the two at the rim lose a tap each.
    assert floors.taps_inside(5, 3, 1, 1, 1) == 2 + 3 + 3 + 3 + 2
    assert floors.taps_inside(5, 3, 2, 1, 1) == 2 + 3 + 2
    assert floors.taps_inside(5, 3, 1, 1, 0) == 9
    # Four pixels, dilation 4 and as much padding: only the middle tap ever meets the image.
    assert floors.taps_inside(4, 3, 1, 4, 4) == 4


def test_work_of_a_layer_by_hand():
    work = floors.depthwise_conv2d(n=2, c=3, h=5, w=5, k=3, stride=1, dilation=1, padding=1)
    assert work.flops == 2 * 2 * 3 * 13 * 13
    assert work.flops_padded == 2 * 2 * 3 * 25 * 9
    assert work.nbytes == 4 * (150 + 30 + 150)
    backward = floors.depthwise_conv2d(2, 3, 5, 5, 3, 1, 1, 1, "backward")
    assert (backward.flops, backward.nbytes) == (2 * work.flops, 4 * (3 * 150 + 2 * 30))
    step = floors.depthwise_conv2d(2, 3, 5, 5, 3, 1, 1, 1, "step")
    assert (step.flops, step.nbytes) == (3 * work.flops, work.nbytes + backward.nbytes)


def test_work_of_a_dense_layer_by_hand():
    work = floors.dense_conv2d(2, 4, 6, (5, 1), (3, 1), padding=(1, 0), groups=2)
    assert work.flops == 2 * 2 * 6 * 2 * 13
    assert work.flops_padded == 2 * 2 * 6 * 2 * 15
    assert work.nbytes == 4 * (2 * 4 * 5 + 6 * (2 * 3 + 1) + 2 * 6 * 5)
    backward = floors.dense_conv2d(2, 4, 6, (5, 1), (3, 1), padding=(1, 0), groups=2, direction="backward")
    assert (backward.flops, backward.nbytes) == (2 * work.flops, 4 * (2 * 40 + 60 + 2 * 42))
    strided = floors.dense_conv2d(1, 3, 8, (8, 9), (1, 1), stride=2)
    assert strided.flops == strided.flops_padded == 2 * 3 * 8 * 4 * 5


def test_floor_is_the_larger_and_says_which_binds():
    work = floors.Work(flops=2_000_000, flops_padded=0, nbytes=1_000_000)
    assert work.floor(gflops=100, gbps=100) == (pytest.approx(20e-6), "flops")
    assert work.floor(gflops=100, gbps=20) == (pytest.approx(50e-6), "bytes")


def test_summary_of_hand_made_rounds():
    work = floors.Work(flops=1_000_000, flops_padded=1_000_000, nbytes=100_000)
    us = 1e-6
    samples = {
        "torch": [40 * us, 60 * us, 40 * us],
        "torch_cl": [30 * us, 30 * us, 30 * us],
        "ort": [24 * us, 24 * us, 24 * us],
        "ours": [20 * us, 20 * us, 10 * us],
        "ours_cl": [12 * us, 12 * us, 12 * us],
        "fma": [10 * us, 10 * us, 10 * us],
        "copy": [4 * us, 5 * us, 12 * us],
    }
    found = measure.summary(timing.Rounds(samples, dict.fromkeys(samples, 1)), work)
    assert found["floor"] == {
        "us": pytest.approx(10),
        "binds": "flops",
        "fma_gflops": pytest.approx(100),
        "copy_gbps": pytest.approx(20),
    }
    assert set(found["providers"]) == {"torch", "torch_cl", "ort", "ours", "ours_cl"}
    assert found["providers"]["ours_cl"]["us"]["median"] == pytest.approx(12)
    assert found["providers"]["ours_cl"]["over_floor"]["median"] == pytest.approx(1.2)  # 1.2, 1.2, 1.0
    assert found["speedup"]["nchw"]["median"] == pytest.approx(3)  # 2, 3, 4
    assert found["speedup"]["channels_last"]["median"] == pytest.approx(2.5)
    assert found["speedup"]["best"] == found["speedup"]["channels_last"] | {"ours": "ours_cl", "other": "torch_cl"}
    assert found["speedup"]["peers"]["other"] == "ort"
    assert found["speedup"]["peers"]["median"] == pytest.approx(2)


# --- cases ------------------------------------------------------------------------------------------------------------
def case(providers, reference):
    return measure.Case(
        op="depthwise_conv2d",
        set="peers",
        name="<layer>",
        batch=1,
        direction="forward",
        work=floors.Work(1000, 1000, 1000),
        build=lambda options: providers,
        reference=lambda: (reference,),
    )


def test_a_wrong_result_is_refused_and_a_right_one_timed():
    reference = torch.tensor([1.0, 2.0], dtype=torch.float64)
    providers = {
        "torch": lambda: reference.float(),
        "ours": lambda: reference.float() + 1e-3,
        "ours_cl": lambda: torch.tensor([1.0, math.nan]),
        "ort": peers.Skipped("not there"),
    }
    row = measure.measure(case(providers, reference), measure.Options(rounds=3))
    assert list(row["providers"]) == ["torch"]
    assert row["wrong"]["ours"] == "result 0 is off by 0.001, allowed 2e-05"
    assert "off by nan" in row["wrong"]["ours_cl"]
    assert row["skipped"]["ort"] == "not there"
    assert row["speedup"] == {}


def test_shapes_agree_with_themselves():
    from bench import bench_depthwise_conv2d

    options = measure.Options(full=True)
    subjects = list(bench_depthwise_conv2d.cases(options))
    assert len({subject.id for subject in subjects}) == len(subjects)
    for shape in bench_depthwise_conv2d.shapes():
        assert shape["activation"] in bench_depthwise_conv2d.ACTIVATIONS
        if shape["set"] != "overhead":
            assert f"dw{shape['k']}x{shape['k']}" in shape["name"]
            assert shape["name"].endswith(f" {shape['c']}x{shape['h']}")
    assert set(bench_depthwise_conv2d.QUICK_BACKWARD) <= {s["name"] for s in bench_depthwise_conv2d.shapes()}


@pytest.mark.parametrize("op", ["pointwise_conv2d", "dilated_conv2d"])
def test_shapes_of_dense_layers_agree_with_themselves(op):
    script = importlib.import_module(f"bench.bench_{op}")
    subjects = list(script.cases(measure.Options(full=True)))
    assert len({subject.id for subject in subjects}) == len(subjects)
    quick = list(script.cases(measure.Options()))
    assert {subject.direction for subject in quick} == {"forward", "backward", "step"}
    assert len(quick) < 25
    names = {shape["name"] for shape in script.shapes()}
    assert set(script.QUICK_BACKWARD) <= names
    assert {subject.name for subject in subjects} == names
    for shape in script.shapes():
        assert shape["activation"] in layers.ACTIVATIONS
        assert f"{shape['c']}-{shape['co']}x" in shape["name"]
        if op == "dilated_conv2d" and shape["h"] > 1:
            assert f"{shape['kh']}x{shape['kw']}" in shape["name"]
            assert (shape["dilation"] > 1) == (f"d{shape['dilation']}" in shape["name"])
            for size, k in ((shape["h"], shape["kh"]), (shape["w"], shape["kw"])):
                out = floors.output_size(size, k, shape["stride"], shape["dilation"], shape["padding"] if k > 1 else 0)
                assert out == -(-size // shape["stride"])
        if op == "pointwise_conv2d":
            assert (shape["groups"] > 1) == (f"g{shape['groups']} " in shape["name"])
            assert (shape["shuffle"] > 1) == ("+shuffle" in shape["name"])


@pytest.mark.parametrize("direction", ["forward", "backward", "step"])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu", "hardswish", "sigmoid"])
def test_every_provider_of_a_small_dense_layer_is_right(activation, direction):
    from bench import bench_dilated_conv2d, bench_pointwise_conv2d

    shape = {"set": "test", "name": "tiny", "activation": activation, "c": 6, "co": 12, "h": 9, "w": 7}
    point = {**shape, "stride": 2, "groups": 3, "shuffle": 4}
    spread = {**shape, "stride": 1, "groups": 1, "kh": 3, "kw": 3, "dilation": 2, "padding": 2}
    line = {**spread, "kh": 1}
    for script, shape in (
        (bench_pointwise_conv2d, point),
        (bench_dilated_conv2d, spread),
        (bench_dilated_conv2d, line),
    ):
        good, skipped, wrong = measure.checked(script.case(shape, 2, direction), measure.Options())
        assert {"torch", "torch_cl", "ours", "ours_cl"} <= set(good)
        assert wrong == {}
        assert all("not installed" in reason for reason in skipped.values())


@pytest.mark.parametrize("direction", ["forward", "backward", "step"])
def test_every_provider_of_a_small_layer_is_right(direction):
    from bench import bench_depthwise_conv2d

    numbers = dict(zip(bench_depthwise_conv2d.NUMBERS, (8, 9, 7, 3, 2, 1, 1), strict=True))
    shape = {"set": "test", "name": "tiny", "activation": "relu6", **numbers}
    good, _, wrong = measure.checked(bench_depthwise_conv2d.case(shape, 2, direction), measure.Options())
    assert {"torch", "torch_cl", "ours", "ours_cl"} <= set(good)
    assert wrong == {}


def test_kernel_time_leaves_out_reorders_and_warm_ups():
    def event(name, op, us):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": us, "args": {"op_name": op}}

    calls = [(5, 100), (10, 90), (12, 80), (14, 70)]
    events = [e for conv, reorder in calls for e in (event("in", "ReorderInput", reorder), event("c", "Conv", conv))]
    events.append({"cat": "Session", "name": "model_run", "dur": 999, "args": {}})
    found = peers.kernel_seconds(events, made=[1, 1, 2], calls=2, rounds=1)
    assert found == [pytest.approx(13e-6)]
    with pytest.raises(peers.Skipped, match="4 of 5 calls"):
        peers.kernel_seconds(events, made=[5], calls=5, rounds=1)


# --- results and report -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The command's own files of one tiny run."""
    folder = tmp_path_factory.mktemp("bench")
    status = job.main(["--only", "overhead", "--rounds", "3", "--out", str(folder)])
    (path,) = (folder / "results").glob("*.json")
    return status, path, json.loads(path.read_text()), (folder / "report" / "index.html").read_text()


def test_results_have_their_conditions(run):
    status, path, results, _ = run
    assert status == 0
    facts = results["conditions"]
    for name in (
        "cpu",
        "cores",
        "date",
        "threads",
        "torch_capability",
        "implementation",
        "load_average",
        "git",
        "allocator",
    ):
        assert facts[name], name
    assert {"lightkernels", "python", "torch"} <= set(facts["versions"])
    assert facts["threads"] == 1
    assert facts["isa"] or facts["why_not_compiled"]
    assert re.match(r"\d{4}-\d\d-\d\d-\d{6}-[a-z0-9-]+-quick-overhead\.json", path.name)
    assert conditions.slug(facts["cpu"]) in path.name
    assert str(conditions.ROOT) not in path.read_text()  # no path of this machine


def test_a_stored_result_renders_to_the_same_report(run, tmp_path):
    assert job.main(["--render", str(run[1]), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report" / "index.html").read_text() == run[3]


def test_results_have_their_figures(run):
    rows = run[2]["rows"]
    assert [row["op"] for row in rows] == ["depthwise_conv2d", "pointwise_conv2d"]
    for row in rows:
        for provider in ("torch", "torch_cl", "ours", "ours_cl"):
            figures = row["providers"][provider]["us"]
            assert 0 < figures["q1"] <= figures["median"] <= figures["q3"]
            assert figures["rounds"] == 3
    assert (run[2]["ceilings"] is None) == (run[2]["conditions"]["isa"] is None)


def fixed_results():
    """A small run, made up."""

    def provider(us, over):
        spread = {"q1": us * 0.9, "median": us, "q3": us * 1.1, "rounds": 3}
        return {"us": spread, "noise": 0.2, "calls": 1, "over_floor": {**spread, "median": over}}

    def speedup(x):
        return {"q1": x * 0.9, "median": x, "q3": x * 1.1, "rounds": 3, "ours": "ours_cl", "other": "torch"}

    def row(name, set_="peers", op="depthwise_conv2d", **more):
        providers = {"torch": provider(400, 8), "ours": provider(100, 2), "ours_cl": provider(61.5, 1.23)}
        return {
            "case": name,
            "op": op,
            "set": set_,
            "name": name,
            "batch": 1,
            "direction": "forward",
            "facts": {},
            "work": None,
            "floor": {"us": 50.0, "binds": "flops", "fma_gflops": 100.0, "copy_gbps": 20.0},
            "providers": providers,
            "speedup": {key: speedup(4.0) for key in ("nchw", "channels_last", "best", "peers")},
            "skipped": {"ort": "not <installed>"},
            "wrong": {},
            **more,
        }

    facts = {
        **conditions.conditions(threads=1, rounds=3, what="quick", only=None, allocator="default"),
        "cpu": "Processor <1>",
        "isa": "avx2",
        "load_average_after": [1.0, 1.0, 1.0],
    }
    top = [["espresso", 0.992], ["cup", 0.001]]
    return {
        "schema": 1,
        "conditions": facts,
        "ceilings": {"fma_gflops": 100.0, "copy_gbps": {"32768": 190.0, "134217728": 17.0}, "noise": 0.01},
        "photographs": [
            {"photograph": "coffee", "torch": top, "ours": top, "largest_logit": 21.0, "largest_difference": 1e-5}
        ],
        "no_photographs": None,
        "rows": [row("a"), row("b & c", wrong={"ort": "off by 6"}), row("mobilenet_v2", "networks", "models")],
    }


@pytest.mark.parametrize("compiled", [True, False])
def test_report_renders(compiled):
    results = fixed_results()
    if not compiled:
        results["conditions"] |= {"isa": None, "why_not_compiled": "not built"}
        results["ceilings"] = None
        for row in results["rows"]:
            row["floor"] = None
            for figures in row["providers"].values():
                del figures["over_floor"]
    page = report.render(results, {"coffee": b"\xff\xd8jpeg"})
    assert page.startswith("<!doctype html>")
    for tag in ("html", "body", "main", "svg", "table", "dl", "div", "details", "style"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
    for text in ("espresso", "0.992", "b &amp; c", "Processor &lt;1&gt;", "not &lt;installed&gt;", "off by 6", "4.00×"):
        assert text in page, text
    assert ("1.23×" in page) == compiled
    assert ("not compiled here" in page) == (not compiled)
    assert "data:image/jpeg;base64," in page
    assert "None" not in page
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|url\(""", page), "nothing from outside"


def test_markdown_tables_have_every_row_and_figure():
    results = fixed_results()
    text = report.markdown(results, job.NAMES)
    for row in results["rows"]:
        assert f"| {row['name']} |" in text
    assert "4.00×" in text
    assert "geometric mean" in text


def test_report_of_nothing_renders():
    results = {**fixed_results(), "rows": [], "photographs": [], "no_photographs": "no weights"}
    assert "no weights" in report.render(results)


@pytest.mark.parametrize("argv", [["--rounds", "0"], ["--threads", "-1"]])
def test_bad_arguments_are_refused(argv, capsys):
    with pytest.raises(SystemExit):
        job.main(argv)
    assert f"{argv[0]} must be positive" in capsys.readouterr().err


def test_an_unknown_case_is_an_error(tmp_path):
    assert job.main(["--only", "no such layer", "--out", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())
