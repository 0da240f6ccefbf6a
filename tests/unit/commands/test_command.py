"""What the user sees: help, lists, one-line errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from videoseek import evaluate
from videoseek.command import Options, parse, run_command
from videoseek.config import UsageError
from videoseek.config_merge import config_keys, list_recipes, load_config
from videoseek.metrics import RunError

SRC = Path(__file__).parents[3] / "src"


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["recipe=nowhere", "seed=x", "--help"]])
def test_help_names_every_key_with_default_and_choices(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = shown(capsys, *arguments)
    lines = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert lines >= config_keys().keys() | {"--dry-run", "--print-config", "--list-recipes"}
    assert "one of off | spans | turns | isolated | reference (default spans)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_help_wraps_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, shown(capsys, "--help").splitlines())) <= 80


def test_list_recipes_shows_name_and_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(line.split(maxsplit=1) for line in shown(capsys, "--list-recipes").splitlines())
    assert rows.keys() == list_recipes().keys()
    assert all(purpose.endswith(".") for purpose in rows.values())


def test_print_config_is_a_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(shown(capsys, "--print-config", "seed=5", "sft.steps=11"))
    config = load_config([f"recipe={tmp_path / 'shown.yaml'}"])
    assert (config.seed, config.sft.steps) == (5, 11)


def test_flags_and_keys_may_come_in_any_order() -> None:
    options, config = parse(["seed=4", "--dry-run", "--recipe", "sft"])
    assert options == Options(dry_run=True)
    assert (config.seed, config.stages) == (4, ["sft"])
    assert parse([])[0] == Options(dry_run=False)


def test_the_deepspeed_launchers_rank_is_no_key() -> None:
    assert parse(["--local_rank=1", "seed=4"])[1].seed == 4


def fail(error: BaseException) -> int:
    def main(arguments: list[str]) -> None:
        raise error

    return run_command(main, [])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("seed must be a number"), 2, "videoseek: seed must be a number\n"),
        (RunError("row 3 is broken"), 1, "videoseek: row 3 is broken\n"),
        (OSError(28, "No space left on device", "x"), 1, "videoseek: [Errno 28] No space left on device: 'x'\n"),
        (KeyboardInterrupt(), 130, "videoseek: interrupted\n"),
    ],
    ids=["usage", "run", "disk full", "ctrl-c"],
)
def test_errors_that_a_user_can_mend_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert fail(error) == code
    assert capsys.readouterr().err == line


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSEEK_TRACEBACK", "1")
    with pytest.raises(UsageError):
        fail(UsageError("x"))


def test_success_and_the_process_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["train", "seed=1"])
    assert run_command(seen.append) == 0
    assert seen == [["seed=1"]]


PROGRAM = """
import sys
from videoseek.command import parse, run_command
sys.exit(run_command(lambda arguments: print(parse(arguments)[1].seed)))
"""


def run_program(argument: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, argument],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("argument", "code", "out", "err"),
    [
        ("seed=3", 0, "3\n", ""),
        ("sead=3", 2, "", "videoseek: unknown key 'sead' on the command line; the closest are"),
        ("seed=x", 2, "", "videoseek: seed must be a whole number, got 'x' on the command line"),
    ],
)
def test_a_real_process_ends_with_the_expected_code(argument: str, code: int, out: str, err: str) -> None:
    done = run_program(argument)
    assert (done.returncode, done.stdout) == (code, out), done.stderr
    assert done.stderr.startswith(err)
    assert done.stderr.count("\n") == (1 if err else 0)


def test_broken_pipe_is_not_an_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run_program("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


LOSES_AN_INTERRUPT = """
import signal, sys, time
from videoseek.command import run_command

# Python takes over SIGINT's default action only; a shell's background job starts with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Owner:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def main(arguments):
    Owner()
    for _ in range(200):
        time.sleep(0.1)

sys.exit(run_command(main))
"""


def test_an_interrupt_that_falls_into_a_destructor_still_ends_the_run() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSES_AN_INTERRUPT],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert (done.returncode, done.stderr) == (130, "videoseek: interrupted\n")


def test_evaluate_shows_and_takes_its_own_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "writes (default runs/evaluate)" in " ".join(capsys.readouterr().out.split())
    assert parse([], defaults=evaluate.DEFAULTS)[1].output_dir == "runs/evaluate"
    assert parse(["output_dir=elsewhere"], defaults=evaluate.DEFAULTS)[1].output_dir == "elsewhere"
