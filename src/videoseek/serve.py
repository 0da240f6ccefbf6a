"""`python -m videoseek.serve model=DIR port=8100 vllm_python=PYTHON`: runs a worker of vLLM for `rollout.servers`.

The environment variable VIDEOSEEK_WORKER_TOKEN holds the token that trainers must know too.
"""

from __future__ import annotations

from dataclasses import dataclass

from videoseek.command import parse_files, run_command
from videoseek.config import UsageError, option

USAGE = "python -m videoseek.serve model=DIR port=NUMBER [host=ADDRESS] [vllm_python=PYTHON] [options=[NAME=VALUE, ..]]"


@dataclass(frozen=True)
class ServeSettings:
    """The keys of the command."""

    model: str = option("tiny", "tiny, or a folder of a Qwen2.5-VL model: the trainer's own starting model")
    host: str = option("127.0.0.1", "address to listen at; a trainer on another machine needs one that it can reach")
    port: int = option(8100, "port to listen at", at_least=1, at_most=65535)
    vllm_python: str | None = option(None, "interpreter of the environment with vLLM (null: this one)")
    options: list[str] = option([], "arguments of vLLM's engine, as NAME=VALUE")


def main(arguments: list[str]) -> None:
    files, settings = parse_files(arguments, ServeSettings(), USAGE)
    if files:
        raise UsageError(f"unknown argument {files[0]!r}; usage: {USAGE}")
    # The imports below take seconds: errors in the arguments come first.
    from videoseek.model.load import model_folder
    from videoseek.runtime import say
    from videoseek.serving.client import WorkerError
    from videoseek.serving.launch import LocalPlace, parse_options, shared_token

    address = f"{settings.host}:{settings.port}"
    options = parse_options(settings.options)
    place = LocalPlace(settings.vllm_python, model_folder(settings.model), options, shared_token(), address=address)
    try:
        say(f"a worker of vLLM starts at {place.start()}; Ctrl-C ends it")
        place.wait()
        raise WorkerError(f"the worker ended: {place.ending()}")
    finally:
        place.stop()


if __name__ == "__main__":
    raise SystemExit(run_command(main))
