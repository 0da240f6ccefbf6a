"""`python -m videoseek.train recipe=sft_rl`: runs a recipe's stages in order, then scores and reports them.

Reading order of one RL step: `stages/grpo`, `stages/harvest`, `rollout/native`, `rewards/trajectory_guided`,
`algorithms/losses`.
"""

from __future__ import annotations

import os
import sys

from videoseek.command import parse, run_command
from videoseek.plan import describe


def main(arguments: list[str]) -> None:
    options, config = parse(arguments)
    if os.environ.get("RANK", "0") == "0":
        print(describe(config), file=sys.stderr, flush=True)
    # torch, transformers and deepspeed take seconds to import; the banner must not wait for them.
    from videoseek.runtime import choose_accelerator

    choose_accelerator(config.device)
    from videoseek.stages.pipeline import run

    run(config, only_plan=options.dry_run)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
