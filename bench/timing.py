"""The only clock of this project.

Callables that are compared run in one process, in rounds whose order rotates, so that a slow second of a shared machine
falls on all of them; ratios are taken within a round. Every figure keeps its quartiles: a noisy run shows as one.

The machine's ceilings (multiply-adds, streaming copy) come from the compiled library and can take part in the rounds.
Without a compiled library they are unknown.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

clock = time.perf_counter

ROUNDS = 31
SAMPLE_SECONDS = 200e-6  # least duration of a sample; the clock's own cost and step vanish in it
WARM_BELOW_SECONDS = 5e-3  # calls shorter than this are made once, untimed, before each sample
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    q1: float
    q3: float
    rounds: int

    @property
    def noise(self) -> float:
        """Distance of the quartiles over the median: 0.02 is a quiet machine, 0.2 a busy one."""
        return (self.q3 - self.q1) / self.median if self.median else 0.0


def spread(values) -> Spread:
    values = sorted(values)
    if not values:
        raise ValueError("no values to take a median of")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3, len(values))


def geomean(values) -> float:
    """Geometric mean, the only average of ratios that does not depend on which of two is the unit."""
    values = list(values)
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


class SelfTimed(Protocol):
    """A provider that keeps its own time, as the ceilings do."""

    def seconds(self, calls: int) -> float:
        """Makes `calls` calls; returns seconds for all of them."""


Provider = Callable[[], object] | SelfTimed


def _seconds(provider: Provider, calls: int) -> float:
    own = getattr(provider, "seconds", None)
    if own is not None:
        return own(calls)
    start = clock()
    for _ in itertools.repeat(None, calls):
        provider()
    return clock() - start


def calibrate(provider: Provider, seconds: float = SAMPLE_SECONDS) -> tuple[int, float]:
    """(calls that last at least `seconds`, seconds of one call); the first call, which may allocate, does not count."""
    first = _seconds(provider, 1)
    if first > 1.0:  # so slow that a second call would only cost time
        return 1, first
    calls = 1
    while (elapsed := _seconds(provider, calls)) < seconds:
        calls = max(2 * calls, math.ceil(1.1 * calls * seconds / elapsed) if calls > 8 else 0)
    return calls, elapsed / calls


def order(names: list[str], round_: int) -> list[str]:
    """Names rotated by the round, and backwards in odd rounds: neither place nor neighbour is always the same."""
    shift = round_ % len(names)
    rotated = names[shift:] + names[:shift]
    return rotated[::-1] if round_ % 2 else rotated


class Rounds:
    """Seconds per call of each provider in each round."""

    def __init__(self, samples: dict[str, list[float]], calls: dict[str, int]):
        self.samples = samples
        self.calls = calls  # calls in one sample

    def __contains__(self, name: str) -> bool:
        return name in self.samples

    def seconds(self, name: str) -> Spread:
        return spread(self.samples[name])

    def ratio(self, numerator: str, *denominators: str) -> Spread:
        """Times of `numerator` over those of the slowest of `denominators` in the same round."""
        below = zip(*(self.samples[d] for d in denominators), strict=True)
        return spread(a / max(b) for a, b in zip(self.samples[numerator], below, strict=True))


def rounds_within(budget: float | None, wanted: int, seconds_per_round: float) -> int:
    """As many rounds as fit the budget, at most those wanted, at least LEAST_ROUNDS (or those wanted, if fewer)."""
    fit = wanted if budget is None else int(budget / max(seconds_per_round, 1e-9))
    return max(min(wanted, LEAST_ROUNDS), min(wanted, fit))


def interleave(
    providers: Mapping[str, Provider],
    *,
    rounds: int = ROUNDS,
    threads: int = 1,
    seconds: float = SAMPLE_SECONDS,
    budget: float | None = None,
) -> Rounds:
    """Times all providers in rounds.

    Args:
        providers: name to callable, or to an object that keeps its own time (`SelfTimed`).
        rounds: samples of each; fewer, but at least three, where they would last longer than `budget` seconds.
        threads: torch's intra-op threads meanwhile.
        seconds: least duration of a sample.
    """
    with settled(threads):
        planned = {name: calibrate(provider, seconds) for name, provider in providers.items()}
        warm = {name for name, (_, once) in planned.items() if once < WARM_BELOW_SECONDS}
        cost = sum((calls + (name in warm)) * once for name, (calls, once) in planned.items())
        samples: dict[str, list[float]] = {name: [] for name in providers}
        for round_ in range(rounds_within(budget, rounds, cost)):
            for name in order(list(providers), round_):
                calls = planned[name][0]
                if name in warm:  # its data back into the caches that the provider before it filled
                    _seconds(providers[name], 1)
                samples[name].append(_seconds(providers[name], calls) / calls)
    return Rounds(samples, {name: calls for name, (calls, _) in planned.items()})


@contextlib.contextmanager
def settled(threads: int) -> Iterator[None]:
    """Thread count set, garbage collector off; both as before afterwards."""
    threads_before, collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        if collecting:
            gc.enable()


def keep_pages() -> bool:
    """Tells the C library to keep freed memory for the next allocation, as caching allocators do; True if it did.

    glibc hands blocks above 32 MiB back to the system at each free, and torch's next output then faults in every page
    anew: at batch 8 that is most of a layer's time, whoever computes it, and hides what is compared.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_max, 0))


def give_back_pages() -> None:
    """Returns to the system what `keep_pages` kept: between cases, or a large one leaves too little for the next."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


# --- ceilings ---------------------------------------------------------------------------------------------------------
class NoCeiling(RuntimeError):
    """This machine's ceilings cannot be known here; the text says why."""


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    try:
        library.lightkernels_fma_gflops.argtypes = (ctypes.c_int64,)
        library.lightkernels_copy_gbps.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        library.lightkernels_fma_gflops.restype = library.lightkernels_copy_gbps.restype = ctypes.c_double
    except AttributeError as error:
        raise NoCeiling(f"{path.name} measures no ceilings ({error}): build it again") from error
    return library


def machine_library() -> ctypes.CDLL:
    """The compiled CPU library, or NoCeiling."""
    from pytorch_ext import _load

    if "cpu" not in _load.libraries:
        raise NoCeiling(f"no compiled CPU library ({_load.reasons['cpu']})".replace(str(_load.FOLDER), "pytorch_ext"))
    return _library(_load.libraries["cpu"])


class Fma:
    """`flops` operations at the rate of a loop of multiply-adds in registers, on each of `threads` cores."""

    ITERATIONS = 100_000  # about 0.15 ms of the loop

    def __init__(self, flops: float, threads: int = 1, library: ctypes.CDLL | None = None):
        self.flops = flops
        self.threads = threads
        self.library = library or machine_library()

    def gflops(self) -> float:
        return sum(_on_each(self.threads, lambda _: self.library.lightkernels_fma_gflops(self.ITERATIONS)))

    def seconds(self, calls: int) -> float:
        return calls * self.flops / (self.gflops() * 1e9)


class Copy:
    """`nbytes` read and written in equal parts at the rate of a copy whose two buffers are together that large."""

    SECONDS = SAMPLE_SECONDS

    def __init__(self, nbytes: int, threads: int = 1, library: ctypes.CDLL | None = None):
        self.nbytes = nbytes
        self.threads = threads
        self.library = library or machine_library()
        part = max(nbytes // 2 // threads // 64, 1) * 64
        self.part = part
        # One buffer, and a destination half a page out of step with its source: equal low address bits would make the
        # core mistake loads for reads of the stores before them.
        step = -(-part // 4096) * 4096 + 2048
        self.buffer = torch.zeros(threads * (part + step) + 4096, dtype=torch.uint8)
        base = -(-self.buffer.data_ptr() // 64) * 64
        self.places = [(base + i * (part + step) + step, base + i * (part + step)) for i in range(threads)]
        self.repeats = 1
        self.gbps()
        self.repeats = max(1, math.ceil(self.SECONDS * self.gbps() * 1e9 / nbytes))

    def gbps(self) -> float:
        def copy(i: int) -> float:
            dst, src = self.places[i]
            self.library.lightkernels_copy_gbps(dst, src, self.part, 1)  # into the caches, as far as it fits
            return self.library.lightkernels_copy_gbps(dst, src, self.part, self.repeats)

        return sum(_on_each(self.threads, copy))

    def seconds(self, calls: int) -> float:
        return calls * self.nbytes / (self.gbps() * 1e9)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ceiling")


def _on_each(threads: int, work: Callable[[int], float]) -> list[float]:
    """work(i) on every one of `threads` cores at once; ctypes lets go of the interpreter's lock."""
    return [work(0)] if threads == 1 else list(_pool(threads).map(work, range(threads)))
