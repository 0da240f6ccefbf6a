"""Four quadrants, one or several clues with or without need of the tool, brought to target shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from videoseek.synthesis.items import hash_number
from videoseek.synthesis.settings import QUADRANTS

#: Slack below any share that is meant, so that 0.3 of 10 is 3.
_ROUNDING = 1e-9


def balanced(kind_of: Mapping[str, str], shares: Sequence[float], seed: int) -> set[str]:
    """Ids to keep of `kind_of` (id -> quadrant): as many as the target shares allow, all when `shares` is empty.

    Quadrants without any item are left out of the targets; the scarcest of the others decides how many are kept.
    Who is kept within a quadrant depends on the seed and the ids alone, not on who else there is before or after.
    """
    if not shares:
        return set(kind_of)
    count = Counter(kind_of.values())
    targets = {kind: share for kind, share in zip(QUADRANTS, shares, strict=True) if share > 0 and count[kind]}
    total = min((count[kind] / share for kind, share in targets.items()), default=0.0)
    kept: set[str] = set()
    for kind, share in targets.items():
        ids = sorted(
            (id_ for id_, k in kind_of.items() if k == kind), key=lambda id_: hash_number(seed, "balance", id_)
        )
        kept.update(ids[: int(total * share + _ROUNDING)])
    return kept
