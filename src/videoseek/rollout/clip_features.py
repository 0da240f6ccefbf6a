"""ClipFeatures: a cache of vision features, one pass of the vision tower per distinct clip."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from videoseek.batches.order import cut_rows
from videoseek.model.policy import Policy
from videoseek.types import Clip
from videoseek.video.errors import VideoError

#: From this number of rows on, a row's result of a matrix product is the same to the last bit for any number of rows;
#: below, libraries choose other kernels (seen with MKL on AVX-512). Sampling pads each pass to this many rows, and an
#: episode does not depend on its company.
LEAST_ROWS = 16


class ClipFeatures:
    """A table of vision features [num_tokens, C] by clip, filled by `encode` and emptied by `clear`.

    Features depend on the weights: clear the table when the vision tower changes.
    """

    def __init__(self, policy: Policy, max_tokens_per_pass: int) -> None:
        """Limits one pass of the vision tower to `max_tokens_per_pass` merged tokens. A larger clip goes alone."""
        self._policy = policy
        self._max_tokens_per_pass = max_tokens_per_pass
        self._features: dict[Clip, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    def get(self, clip: Clip) -> torch.Tensor | None:
        """Returns the features of a clip [num_tokens, C], or None before `encode`."""
        return self._features.get(clip)

    def of(self, clips: Iterable[Clip]) -> list[torch.Tensor]:
        """Returns the features of encoded clips, in their order. Raises KeyError for any other clip."""
        return [self._features[clip] for clip in clips]

    def clear(self, keep: Collection[Clip] = ()) -> None:
        """Drops the features of all clips but `keep`."""
        self._features = {clip: features for clip, features in self._features.items() if clip in keep}

    def encode(self, clips: Iterable[Clip]) -> None:
        """Encodes all clips without features. Raises VideoError for an unreadable clip, after the other clips."""
        for error in self.encode_readable(clips).values():
            raise error

    def encode_readable(self, clips: Iterable[Clip]) -> dict[Clip, VideoError]:
        """Encodes all clips without features. Returns the errors of the unreadable ones, which get no features."""
        # dict.fromkeys keeps the order of the clips, unlike a set. The order decides the passes.
        new_clips = list(dict.fromkeys(clip for clip in clips if clip not in self._features))
        errors: dict[Clip, VideoError] = {}
        for row in cut_rows([clip.num_tokens for clip in new_clips], self._max_tokens_per_pass):
            self._encode_pass([new_clips[index] for index in row], errors)
        return errors

    def _encode_pass(self, clips: Sequence[Clip], errors: dict[Clip, VideoError]) -> None:
        try:
            features = self._policy.encode(clips, LEAST_ROWS).split([clip.num_tokens for clip in clips])
        except VideoError as error:
            if len(clips) == 1:
                errors[clips[0]] = error
                return
            # The error leaves open the damaged clip of the pass. One pass per clip finds the damaged clip.
            for clip in clips:
                self._encode_pass([clip], errors)
            return
        self._features.update(zip(clips, features, strict=True))
