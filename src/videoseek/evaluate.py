"""`python -m videoseek.evaluate model=DIR data.eval=[FILE.jsonl]`: scores a model on held-out questions.

Every key of a training run is taken, so that a model is asked as it was trained: same prompt, quotas and limits. A
model that lies in a run's folder brings that run's config.yaml along; `recipe=` names another one.

output_dir/
    config.yaml  env.json  summary.json  trajectories/eval_NAME.jsonl  report.html
"""

from __future__ import annotations

import sys

from videoseek.command import FLAGS, parse, recipe_of_model, run_command

USAGE = "python -m videoseek.evaluate model=DIR [data.eval=[FILE.jsonl, ...]] [output_dir=DIR] [key=value ...]"
#: Later keys win: a run's own folder is never the one that is written to by accident.
DEFAULTS = ["output_dir=runs/evaluate", "resume=no"]


def main(arguments: list[str]) -> None:
    flags = [argument for argument in arguments if argument in FLAGS or argument == "-h"]
    rest = [argument for argument in arguments if argument not in flags]
    options, config = parse([*flags, *with_defaults(recipe_of_model(rest))], USAGE)
    # torch and transformers take seconds to import; what is wrong with the arguments is said before.
    from videoseek.runtime import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.stages.evaluation import evaluate

    evaluate(config, only_check=options.dry_run)


def with_defaults(arguments: list[str]) -> list[str]:
    """The arguments after this command's own defaults, without those that they replace."""
    given = {argument.removeprefix("--").partition("=")[0] for argument in arguments}
    return [*(default for default in DEFAULTS if default.partition("=")[0] not in given), *arguments]


if __name__ == "__main__":
    sys.exit(run_command(main))
