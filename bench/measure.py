"""From a case to a row of results: check every provider against float64, then time them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .floors import Work
from .peers import OrtKernel, Skipped
from .timing import Copy, Fma, NoCeiling, Provider, Rounds, Spread, interleave, settled

# Providers by name: torch, inductor, ort, ours; "_cl" is channels_last, "_kernel" a time without call and conversion.
LAYOUTS = {"nchw": ("torch", "ours"), "channels_last": ("torch_cl", "ours_cl")}
TORCH, OURS = ("torch", "torch_cl"), ("ours", "ours_cl")
PEERS = (*TORCH, "inductor", "inductor_cl", "ort")


@dataclass(frozen=True)
class Options:
    rounds: int = 31
    threads: int = 1
    budget: float | None = 2.0  # seconds for the rounds of one case
    full: bool = False


@dataclass(frozen=True)
class Case:
    """Something that several providers compute."""

    op: str
    set: str
    name: str
    batch: int
    direction: str  # "forward", "backward" (gradients of every input from a kept graph), "step" (both)
    work: Work | None
    build: Callable[[Options], Mapping[str, Provider | Skipped]]
    reference: Callable[[], tuple[Tensor, ...]]  # in float64
    tolerances: tuple[float, ...] = (1e-5,)  # of each result, as a part of the reference's largest value
    facts: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.op}/{self.set}/{self.name}/b{self.batch}/{self.direction}"

    def mode(self):
        """The autograd mode that a user has here."""
        return torch.inference_mode() if self.direction == "forward" else torch.enable_grad()


class WrongResult(AssertionError):
    """A provider's output is not the reference's: it is not timed."""


def check(results, reference: tuple[Tensor, ...], tolerances: tuple[float, ...]) -> None:
    results = (results,) if isinstance(results, Tensor) else tuple(results)
    if len(results) != len(reference):
        raise WrongResult(f"{len(results)} results instead of {len(reference)}")
    for i, (got, expected, tolerance) in enumerate(zip(results, reference, tolerances, strict=True)):
        if got.shape != expected.shape:
            raise WrongResult(f"result {i} has shape {list(got.shape)} instead of {list(expected.shape)}")
        error = (got.detach().double() - expected).abs().max().item()
        bound = tolerance * expected.abs().max().item()
        if not error <= bound:
            raise WrongResult(f"result {i} is off by {error:.3g}, allowed {bound:.3g}")


def checked(case: Case, options: Options) -> tuple[dict[str, Provider], dict[str, str], dict[str, str]]:
    """(providers whose result is right, why others are skipped, what is wrong with the rest)."""
    reference = case.reference()
    good: dict[str, Provider] = {}
    skipped: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, provider in case.build(options).items():
        if isinstance(provider, Skipped):
            skipped[name] = str(provider)
            continue
        try:
            with settled(options.threads), case.mode():
                check(provider(), reference, case.tolerances)
            good[name] = provider
        except WrongResult as error:
            wrong[name] = str(error)
    return good, skipped, wrong


def measure(case: Case, options: Options) -> dict:
    """One row of results."""
    providers, skipped, wrong = checked(case, options)
    timed: dict[str, Provider] = dict(providers)
    if case.work is not None:
        try:
            timed |= {"fma": Fma(case.work.flops, options.threads), "copy": Copy(case.work.nbytes, options.threads)}
        except NoCeiling as error:
            skipped["floor"] = str(error)
    with case.mode():
        rounds = interleave(timed, rounds=options.rounds, threads=options.threads, budget=options.budget)
    for name, provider in providers.items():
        if isinstance(provider, OrtKernel):
            try:
                rounds.samples[name] = provider.finish(rounds.calls[name], len(rounds.samples[name]))
            except Skipped as error:
                del rounds.samples[name]
                skipped[name] = str(error)
    return {
        "case": case.id,
        **{key: getattr(case, key) for key in ("op", "set", "name", "batch", "direction", "facts")},
        "work": asdict(case.work) if case.work else None,
        **summary(rounds, case.work),
        "skipped": skipped,
        "wrong": wrong,
    }


def summary(rounds: Rounds, work: Work | None) -> dict:
    """Times in microseconds, times over the floor, and speed-ups, each with its quartiles."""
    floor = None
    if work is not None and "fma" in rounds and "copy" in rounds:
        gflops = work.flops / rounds.seconds("fma").median / 1e9
        gbps = work.nbytes / rounds.seconds("copy").median / 1e9
        seconds, binds = work.floor(gflops, gbps)
        floor = {"us": seconds * 1e6, "binds": binds, "fma_gflops": gflops, "copy_gbps": gbps}
    providers = {}
    for name in rounds.samples:
        if name in ("fma", "copy"):
            continue
        time = rounds.seconds(name)
        providers[name] = {"us": _figures(time, 1e6), "noise": time.noise, "calls": rounds.calls[name]}
        if floor:
            providers[name]["over_floor"] = _figures(rounds.ratio(name, "fma", "copy"))
    return {"floor": floor, "providers": providers, "speedup": speedups(rounds)}


def speedups(rounds: Rounds) -> dict:
    """How many times faster ours is: in each layout; our best against torch's best, any peer's, any peer's kernel."""
    found = {
        layout: _figures(rounds.ratio(torch_, ours))
        for layout, (torch_, ours) in LAYOUTS.items()
        if torch_ in rounds and ours in rounds
    }

    def fastest(names) -> str | None:
        present = [name for name in names if name in rounds]
        return min(present, key=lambda name: rounds.seconds(name).median, default=None)

    ours = fastest(OURS)
    for key, names in (("best", TORCH), ("peers", PEERS), ("kernel", ("ort_kernel",))):
        other = fastest(names)
        if ours and other:
            found[key] = {**_figures(rounds.ratio(other, ours)), "ours": ours, "other": other}
    return found


def _figures(s: Spread, scale: float = 1.0) -> dict:
    return {"median": s.median * scale, "q1": s.q1 * scale, "q3": s.q3 * scale, "rounds": s.rounds}
