"""`python -m videoseek.evaluate model=DIR data.eval=[FILE.jsonl]`: scores a model on held-out questions.

The command takes every key of a training run, so that prompt, quotas and limits match the training. A model in a run's
folder brings that run's config.yaml; `recipe=` names another one.

output_dir/
    config.yaml  env.json  summary.json  trajectories/eval_NAME.jsonl  report.html
"""

from __future__ import annotations

from videoseek.command import FLAGS, parse, recipe_of_model, run_command

USAGE = "python -m videoseek.evaluate model=DIR [data.eval=[FILE.jsonl, ...]] [output_dir=DIR] [key=value ...]"
#: These values win over the run's own recipe, so that no evaluation writes to the run's folder by accident.
DEFAULTS = ["output_dir=runs/evaluate", "resume=no"]


def main(arguments: list[str]) -> None:
    flags = [argument for argument in arguments if argument in FLAGS or argument == "-h"]
    rest = [argument for argument in arguments if argument not in flags]
    options, config = parse([*flags, *with_defaults(recipe_of_model(rest))], USAGE)
    # torch and transformers take seconds to import, so errors in the arguments come first.
    from videoseek.runtime import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.stages.pipeline import evaluate

    evaluate(config, only_check=options.dry_run)


def with_defaults(arguments: list[str]) -> list[str]:
    """Puts this command's own defaults before the arguments, except those that the arguments replace."""
    given = {argument.removeprefix("--").partition("=")[0] for argument in arguments}
    return [*(default for default in DEFAULTS if default.partition("=")[0] not in given), *arguments]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
