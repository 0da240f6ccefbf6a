"""`python -m videoseek.data VERB ...`: checks, converts, shows, generates and synthesises data."""

from __future__ import annotations

from collections.abc import Callable

from videoseek.command import parse_files, run_command, wants_help
from videoseek.config import UsageError
from videoseek.data_tools.settings import CheckSettings, ConvertSettings, ShowSettings, StatsSettings

VERBS = {
    "check": "check every sample against its video; exit code 1 if one has an error",
    "convert": "convert any readable format to the project's JSONL, sharegpt or parquet",
    "stats": "show durations, clues, calls and tokens as numbers, a picture or a page",
    "show": "show one sample as a page",
    "clueworld": "generate videos with questions and trajectories",
    "synthesize": "make tool trajectories from raw videos with a vision language model's endpoint",
}
#: Verbs with a light `--help`: only the keys, without the heavy libraries of the work.
_SETTINGS: dict[str, CheckSettings | ConvertSettings | StatsSettings | ShowSettings] = {
    "check": CheckSettings(),
    "convert": ConvertSettings(),
    "stats": StatsSettings(),
    "show": ShowSettings(),
}
USAGE = "python -m videoseek.data VERB [FILE ...] [key=value ...]"


def main(arguments: list[str]) -> None:
    if not arguments or wants_help(arguments[:1]):
        print(f"usage: {USAGE}\n\n" + "\n".join(f"  {verb:<11} {line}" for verb, line in VERBS.items()))
        print("\nVERB --help shows its keys.")
        return
    verb, *rest = arguments
    if verb not in VERBS:
        raise UsageError(f"unknown verb {verb!r}; known are {', '.join(VERBS)}")
    if verb in _SETTINGS and wants_help(rest):
        parse_files(["--help"], _SETTINGS[verb], _SETTINGS[verb].usage)
    _main_of(verb)(rest)


def _main_of(verb: str) -> Callable[[list[str]], None]:
    """Imports the module of one verb and returns its `main`. Most of the modules load torch."""
    match verb:
        case "check":
            from videoseek.data_tools.check import main as command
        case "convert":
            from videoseek.data_tools.convert import main as command
        case "stats":
            from videoseek.data_tools.stats import main as command
        case "show":
            from videoseek.data_tools.show import main as command
        case "clueworld":
            from videoseek.data_tools.clueworld import main as command
        case _:
            from videoseek.synthesis.command import main as command
    return command


if __name__ == "__main__":
    raise SystemExit(run_command(main))
