"""`python -m videoseek.report RUN_FOLDER`: rewrites RUN_FOLDER/report.html from the run's files."""

from __future__ import annotations

from videoseek.command import parse_folders, run_command
from videoseek.config import UsageError

USAGE = "python -m videoseek.report RUN_FOLDER"


def main(arguments: list[str]) -> None:
    folders = parse_folders(arguments, USAGE)
    if len(folders) != 1:
        raise UsageError(f"one run folder is wanted, got {len(folders)}; usage: {USAGE}")
    # FFmpeg and numpy (for the pictures) would triple the time of --help.
    from videoseek.pages.report import write_report

    print(write_report(folders[0]))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
