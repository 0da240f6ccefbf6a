"""Losses of selected log-probs: supervised, and the policy losses as rows of one table.

All are sums divided by counts of the whole batch (all micro-batches, all ranks), so that the loss of a batch is the
sum of the losses of its parts, however it is cut between documents. A document is one episode's sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Metrics = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class PolicyLossSettings:
    """What the policy losses share. Counts are of the whole batch: trained tokens and trained documents.

    Ratios are clipped to [1 - clip_low, 1 + clip_high]. kl names the estimator of the divergence from the reference
    policy (Schulman's k1, k2, k3), which kl_weight adds to the loss. importance_cap truncates the weight that corrects
    for the rollout engine's own probabilities (None: no correction). max_document_tokens is dr_grpo's constant.
    """

    num_tokens_global: int
    num_documents_global: int
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: str = "k3"
    kl_weight: float = 0.0
    importance_cap: float | None = None
    max_document_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_tokens_global", "num_documents_global"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ValueError(f"clip_low {self.clip_low} must lie in [0, 1] and clip_high {self.clip_high} be >= 0")
        if self.kl not in ("k1", "k2", "k3"):
            raise ValueError(f"kl {self.kl!r} is not one of k1, k2, k3")
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise ValueError(f"importance_cap is {self.importance_cap}, must be positive")


def sft_loss(logprobs: torch.Tensor, num_targets: int) -> torch.Tensor:
    """Mean negative log-prob: the sum over these targets [N] by the count of all targets of the batch."""
    if num_targets < 1:
        raise ValueError(f"num_targets is {num_targets}, must be at least 1")
    return -logprobs.sum() / num_targets


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, kind: str) -> torch.Tensor:
    """Per-token estimate [N] of KL(policy || reference), of tokens drawn from the policy, to be added to a loss.

    As values, k1 and k3 are unbiased and k3 is never negative. As gradients, only k2's is that of the divergence; k1's
    own would be 0 on average (the score function's mean), so k1 is given here with k2's. k3's gradient is that of the
    opposite divergence, KL(reference || policy).
    """
    log_ratio = reference_logprobs - logprobs
    k2 = 0.5 * log_ratio**2
    if kind == "k1":
        return k2 - k2.detach() - log_ratio.detach()
    if kind == "k2":
        return k2
    return log_ratio.exp() - 1 - log_ratio


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """One policy-gradient loss: over which ratio, with which surrogate, averaged how.

    ratio: of each `token`, or of the whole `document` (geometric mean over its tokens, GSPO). surrogate: `clip` takes
    the lesser of the plain and the clipped objective (PPO); `weight` is REINFORCE weighted by the ratio, cut above and
    held constant (CISPO). average: over tokens within a document and then over `documents`; over all `tokens`; or
    over documents of a `constant` length.
    """

    ratio: Literal["token", "document"]
    surrogate: Literal["clip", "weight"]
    average: Literal["documents", "tokens", "constant"]

    def __call__(
        self,
        logprobs: torch.Tensor,
        old_logprobs: torch.Tensor,
        advantages: torch.Tensor,
        documents: torch.Tensor,
        settings: PolicyLossSettings,
        *,
        rollout_logprobs: torch.Tensor | None = None,
        reference_logprobs: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Metrics]:
        """Loss (scalar) and metrics of this part of the batch; `combine_metrics` joins those of several parts.

        All inputs are [N], a document lies whole in one part. logprobs carry the gradient; old_logprobs are those of
        the policy before the first step on this batch (`logprobs.detach()` when there is one step only).
        """
        if logprobs.numel() == 0:
            return logprobs.sum(), {}
        _, document, lengths = torch.unique(documents, return_inverse=True, return_counts=True)
        log_ratio = logprobs - old_logprobs
        if self.ratio == "document":
            log_ratio = (log_ratio.new_zeros(len(lengths)).index_add(0, document, log_ratio) / lengths)[document]
        ratio = log_ratio.exp()
        per_token = -self._objective(ratio, logprobs, advantages, settings)
        low, high = self._cut(ratio.detach(), advantages, settings)
        metrics = _clip_metrics(low, high, document, lengths, settings)
        if rollout_logprobs is not None:
            weight, gap_metrics = _importance(old_logprobs.detach(), rollout_logprobs, settings)
            per_token = per_token * weight
            metrics |= gap_metrics
        if reference_logprobs is not None:
            kl = kl_estimate(logprobs, reference_logprobs, settings.kl)
            per_token = per_token + settings.kl_weight * kl
            metrics["kl"] = kl.detach().sum() / settings.num_tokens_global
        return (per_token / self._divisor(lengths[document], settings)).sum(), metrics

    def _objective(
        self, ratio: torch.Tensor, logprobs: torch.Tensor, advantages: torch.Tensor, settings: PolicyLossSettings
    ) -> torch.Tensor:
        if self.surrogate == "weight":
            return ratio.detach().clamp(max=1 + settings.clip_high) * advantages * logprobs
        clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
        return torch.minimum(ratio * advantages, clipped * advantages)

    def _cut(
        self, ratio: torch.Tensor, advantages: torch.Tensor, settings: PolicyLossSettings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens the bounds act on, below and above, [N] float 0 or 1."""
        if self.surrogate == "weight":
            return torch.zeros_like(ratio), (ratio > 1 + settings.clip_high).to(ratio.dtype)
        low = (ratio < 1 - settings.clip_low) & (advantages < 0)
        high = (ratio > 1 + settings.clip_high) & (advantages > 0)
        return low.to(ratio.dtype), high.to(ratio.dtype)

    def _divisor(self, length: torch.Tensor, settings: PolicyLossSettings) -> torch.Tensor | int:
        if self.average == "documents":
            return length * settings.num_documents_global
        if self.average == "tokens":
            return settings.num_tokens_global
        if settings.max_document_tokens is None:
            raise ValueError("this loss divides by a constant length: set max_document_tokens")
        return settings.num_documents_global * settings.max_document_tokens


#: grpo 2402.03300, dr_grpo 2503.20783, dapo 2503.14476, gspo 2507.18071, cispo 2506.13585 (no lower cut there).
LOSSES = {
    "grpo": PolicyLoss("token", "clip", "documents"),
    "dr_grpo": PolicyLoss("token", "clip", "constant"),
    "dapo": PolicyLoss("token", "clip", "tokens"),
    "gspo": PolicyLoss("document", "clip", "documents"),
    "cispo": PolicyLoss("token", "weight", "tokens"),
}


def _clip_metrics(
    low: torch.Tensor, high: torch.Tensor, document: torch.Tensor, lengths: torch.Tensor, settings: PolicyLossSettings
) -> Metrics:
    """Shares of tokens that are cut, of all tokens of the batch; the extremes are over documents."""
    zeros = low.new_zeros(len(lengths))
    return {
        "clip_ratio/low_mean": low.sum() / settings.num_tokens_global,
        "clip_ratio/low_min": (zeros.index_add(0, document, low) / lengths).min(),
        "clip_ratio/high_mean": high.sum() / settings.num_tokens_global,
        "clip_ratio/high_max": (zeros.index_add(0, document, high) / lengths).max(),
        "clip_ratio/region_mean": (low + high).sum() / settings.num_tokens_global,
    }


def _importance(
    old_logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, settings: PolicyLossSettings
) -> tuple[torch.Tensor, Metrics]:
    """Truncated weight of each token for old policy / rollout engine, and how far the two are apart."""
    log_ratio = old_logprobs - rollout_logprobs
    gap, ratio = log_ratio.abs(), log_ratio.exp()
    metrics = {
        "sampling/logp_diff_mean": gap.sum() / settings.num_tokens_global,
        "sampling/logp_diff_max": gap.max(),
        "sampling/is_ratio_mean": ratio.sum() / settings.num_tokens_global,
        "sampling/is_ratio_min": ratio.min(),
        "sampling/is_ratio_max": ratio.max(),
    }
    if settings.importance_cap is None:
        return torch.ones_like(ratio), metrics
    return ratio.clamp(max=settings.importance_cap), metrics


def combine_metrics(parts: Sequence[Metrics]) -> dict[str, float]:
    """Metrics of a whole batch from those of its parts: means add up (they are by global counts), extremes do not."""
    merged: dict[str, float] = {}
    for part in parts:
        for name, tensor in part.items():
            value = float(tensor)
            if name not in merged:
                merged[name] = value
            elif name.endswith("_min"):
                merged[name] = min(merged[name], value)
            elif name.endswith("_max"):
                merged[name] = max(merged[name], value)
            else:
                merged[name] += value
    return merged
