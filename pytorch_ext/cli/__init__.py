"""The command line, `python -m pytorch_ext <command>`: it needs nothing but torch, so it can say what is missing."""

from __future__ import annotations

import argparse
import json

from . import doctor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pytorch_ext", description="lightkernels' command line")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "doctor", help="which implementation of each op answers here, and why the others do not"
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")
    options = parser.parse_args(arguments)
    report = doctor.report()
    print(json.dumps(report, indent=2) if options.json else doctor.text(report))
    return 0
