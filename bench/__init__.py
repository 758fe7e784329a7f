"""Benchmarks: `python -m bench` runs them all, `pytest bench/bench_<op>.py` one op's."""
