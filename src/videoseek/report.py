"""`python -m videoseek.report OUTPUT_DIR`: writes OUTPUT_DIR/report.html anew from what the run left there."""

from __future__ import annotations

from pathlib import Path

from videoseek.command import run_command
from videoseek.config import UsageError
from videoseek.pages.report import write_report

USAGE = "usage: python -m videoseek.report OUTPUT_DIR"


def main(arguments: list[str]) -> None:
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return
    if len(arguments) != 1:
        raise UsageError(f"one output folder is wanted, got {len(arguments)} arguments; {USAGE}")
    print(write_report(Path(arguments[0])))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
