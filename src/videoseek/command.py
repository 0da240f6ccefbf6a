"""The common parts of all commands: flags, help from the configuration's fields, and errors as one line."""

from __future__ import annotations

import _thread
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from videoseek.config import TrainConfig, UsageError
from videoseek.config_merge import (
    Key,
    Settings,
    config_keys,
    config_yaml,
    list_recipes,
    load_config,
    load_settings,
    parse_overrides,
)

TRAIN_USAGE = "python -m videoseek.train [recipe=NAME|FILE.yaml] [key=value ...]"
FLAGS = {
    "--help": "show this text",
    "--list-recipes": "show the packaged recipes",
    "--print-config": "show the configuration that would run, as YAML",
    "--dry-run": "check the data, load one batch and show the plan; train nothing",
}


@dataclass(frozen=True)
class Options:
    """Flags of a command, beside its configuration."""

    dry_run: bool = False


def parse(
    arguments: Sequence[str],
    usage: str = TRAIN_USAGE,
    *,
    flags: Sequence[str] = tuple(FLAGS),
    defaults: Sequence[str] = (),
    own_keys: Mapping[str, Key] = {},  # noqa: B006  (never written to)
) -> tuple[Options, TrainConfig]:
    """Parses `flags` and `key=value` arguments in any order. Raises UsageError.

    `defaults` are `key=value` arguments of the command, stronger than a recipe. `--help` also lists the `own_keys` of
    the command. The three informative flags print and raise SystemExit(0).
    """
    given = {"--help"} if wants_help(arguments) else FLAGS.keys() & set(arguments)
    if unknown := sorted(given.difference(flags)):
        raise UsageError(f"{unknown[0]} is no flag of this command; usage: {usage}")
    # The deepspeed launcher passes the rank as an argument. The environment holds the same rank.
    rest = [a for a in arguments if a not in FLAGS and a != "-h" and not a.startswith("--local_rank=")]
    if "--help" in given:
        _show(help_text(usage, {**own_keys, **config_keys(load_settings(TrainConfig(), defaults))}, flags))
    if "--list-recipes" in given:
        _show(recipes_text())
    given_keys = {argument.removeprefix("--").partition("=")[0] for argument in rest}
    config = load_config([*(text for text in defaults if text.partition("=")[0] not in given_keys), *rest])
    if "--print-config" in given:
        _show(config_yaml(config))
    return Options(dry_run="--dry-run" in given), config


def recipe_of_model(arguments: Sequence[str]) -> list[str]:
    """Prepends `recipe=` with the run's config.yaml, if `model=DIR` lies in a run and the arguments name no recipe.

    A model answers well only with the prompt, quotas and limits of its training. A line on stderr names the recipe.
    """
    overrides = parse_overrides(arguments)
    if "recipe" in overrides or "model" not in overrides:
        return list(arguments)
    recipe = Path(overrides["model"]).expanduser().parent / "config.yaml"
    if not recipe.is_file():
        return list(arguments)
    print(f"videoseek: settings of {recipe}", file=sys.stderr)
    return [f"recipe={recipe}", *arguments]


def parse_files(arguments: Sequence[str], defaults: Settings, usage: str) -> tuple[list[str], Settings]:
    """Returns the arguments without `=`, in order, and `defaults` with the `key=value` arguments. Raises UsageError.

    `--help` prints the usage with every key and raises SystemExit(0).
    """
    if wants_help(arguments):
        width = min(shutil.get_terminal_size().columns, 120)
        keys = config_keys(defaults).items()
        _show("\n".join([f"usage: {usage}", "", *(_entry(name, _describe(key), width) for name, key in keys)]) + "\n")
    files = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    return files, load_settings(defaults, [argument for argument in arguments if argument not in files])


def parse_folders(arguments: Sequence[str], usage: str) -> list[Path]:
    """Returns the arguments of a command with folders and without keys. Folder names may contain `=`.

    `--help` prints the usage and raises SystemExit(0). Raises UsageError.
    """
    if wants_help(arguments):
        _show(f"usage: {usage}\n")
    if flags := [argument for argument in arguments if argument.startswith("-")]:
        raise UsageError(f"unknown flag {flags[0]!r}; usage: {usage}")
    if not arguments:
        raise UsageError(f"no folder was given; usage: {usage}")
    return [Path(argument) for argument in arguments]


def wants_help(arguments: Sequence[str]) -> bool:
    """Returns whether `--help` or `-h` is among the arguments."""
    return not {"--help", "-h"}.isdisjoint(arguments)


def run_command(main: Callable[[list[str]], None], arguments: Sequence[str] | None = None) -> int:
    """Runs a command's `main`. Returns the exit code: 0, 2 for wrong usage, 1 for a failed run, 130 for Ctrl-C.

    Errors of the project's own classes and of the system (full disk, missing file) appear as one line, unless
    VIDEOSEEK_TRACEBACK=1. Any other exception is a defect and keeps the traceback.
    """
    sys.unraisablehook = _resend_interrupt
    # By default an OpenMP thread spins while it waits, on the core that the awaited thread needs beside another busy
    # process. The library of torch reads the variable once, at the import of torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        print("videoseek: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output (`| head`) has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        ours = type(error).__module__.startswith("videoseek.") or isinstance(error, OSError)
        if not ours or os.environ.get("VIDEOSEEK_TRACEBACK") == "1":
            raise
        print(f"videoseek: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _resend_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    """Sends a Ctrl-C again after a loss in a destructor or in a C library's callback."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def help_text(usage: str, keys: Mapping[str, Key], flags: Sequence[str]) -> str:
    """Returns usage, flags and every key with its default, grouped by owner."""
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [f"usage: {usage}", "", "Later wins: code defaults, the recipe's bases, the recipe, the command line.", ""]
    lines += [_entry(flag, FLAGS[flag], width) for flag in flags]
    owner = None
    for name, key in keys.items():
        group = name.rpartition(".")[0] or "run"
        if group != owner:
            owner = group
            lines += ["", f"{owner}:"]
        lines.append(_entry(name, _describe(key), width))
    return "\n".join(lines) + "\n"


def recipes_text() -> str:
    """Returns the packaged recipes, each with the first line of its header."""
    recipes = list_recipes()
    widest = max(map(len, recipes), default=0)
    heads = {name: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for name, path in recipes.items()}
    return "".join(f"{name:<{widest}}  {head}\n" for name, head in heads.items())


def _describe(key: Key) -> str:
    default = "null" if key.value is None else key.value
    if isinstance(default, list):
        default = f"[{', '.join(map(str, default))}]"
    elif isinstance(default, bool):
        default = str(default).lower()
    choices = key.limits.get("choices") or key.limits.get("choices_or_file")
    allowed = f"; {'any of' if key.is_list else 'one of'} {' | '.join(map(str, choices))}" if choices else ""
    return f"{key.limits['help']}{allowed} (default {default})"


def _entry(name: str, text: str, width: int) -> str:
    indent = " " * 37
    return textwrap.fill(text, width, initial_indent=f"  {name:<34} ", subsequent_indent=indent)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
    raise SystemExit(0)
