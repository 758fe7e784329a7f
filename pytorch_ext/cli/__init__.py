"""The command line, `python -m pytorch_ext <command>`: it needs nothing but torch, so it can say what is missing."""

from __future__ import annotations

import argparse
import json
import sys

from . import doctor, gpu_budget


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pytorch_ext", description="lightkernels' command line")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "doctor", help="which implementation of each op answers here, and why the others do not"
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.add_argument(
        "--gpu-budget", action="store_true", help="registers, occupancy and so on of every GPU kernel (in a clone)"
    )
    options = parser.parse_args(arguments)
    if options.gpu_budget:
        try:
            print(gpu_budget.text())
        except FileNotFoundError as error:
            print(f"doctor --gpu-budget: {error}", file=sys.stderr)
            return 1
        return 0
    report = doctor.report()
    print(json.dumps(report, indent=2) if options.json else doctor.text(report))
    return 0
