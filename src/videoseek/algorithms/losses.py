"""Losses of selected log-probs: the supervised loss, and the policy losses as rows of one table.

Every loss is a sum divided by counts of the whole batch (all micro-batches, all ranks). The loss of a batch is the sum
of the losses of its parts, for any cut between documents. A document is one episode's sampled tokens.

Legend: N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch

Metrics = dict[str, torch.Tensor]

#: Log-ratios beyond this are far outside every clipping bound. verl clamps at the same value.
_MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class PolicyLossSettings:
    """Settings of all policy losses. The counts are the trained tokens and documents of the whole batch.

    Ratios are clipped to [1 - clip_low, 1 + clip_high]. kl names the estimator of the divergence from the reference
    policy (Schulman's k1, k2, k3), and kl_weight the weight. importance_cap truncates the importance weight of the
    current policy over the rollout engine (None: no correction). max_document_tokens is dr_grpo's constant.
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
    """Returns the negative sum of the targets' log-probs [N], divided by the number of targets of the batch."""
    if num_targets < 1:
        raise ValueError(f"num_targets is {num_targets}, must be at least 1")
    return -logprobs.sum() / num_targets


def kl_estimate(logprobs: torch.Tensor, reference_logprobs: torch.Tensor, kind: str) -> torch.Tensor:
    """Returns the estimate [N] of KL(policy || reference) at each token, for tokens drawn from the policy.

    Values: k1 and k3 are unbiased, and k3 is at least 0. Gradients: k2 has the gradient of the divergence. k1's own
    gradient is 0 on average (the mean of the score function): k1 carries k2's gradient here. k3 has the gradient of the
    opposite divergence, KL(reference || policy).
    """
    log_ratio = _bounded(reference_logprobs - logprobs)
    k2 = 0.5 * log_ratio**2
    if kind == "k1":
        return k2 - k2.detach() - log_ratio.detach()
    if kind == "k2":
        return k2
    return log_ratio.exp() - 1 - log_ratio


@dataclass(frozen=True, slots=True, eq=False)
class LossInputs:
    """The trained tokens of one part of the batch, [N] each. A part holds whole documents.

    logprobs carry the gradient. old_logprobs are of the policy before the first update on the batch: with a single
    update, `logprobs.detach()`. documents holds the index of each token's document, advantages the document's
    advantage. rollout_logprobs are of the rollout engine at sampling. reference_logprobs are of the KL term's reference
    policy. Raises ValueError for unequal shapes.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    documents: torch.Tensor
    rollout_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            tensor = getattr(self, item.name)
            if tensor is not None and tensor.shape != self.logprobs.shape:
                expected = tuple(self.logprobs.shape)
                raise ValueError(f"{item.name} has shape {tuple(tensor.shape)}, must be {expected} as logprobs")


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """One policy-gradient loss: its probability ratio, its surrogate objective and its average.

    ratio: of each `token`, or of the whole `document` (geometric mean over its tokens, GSPO). surrogate: `clip` takes
    the minimum of the plain and the clipped objective (PPO). `weight` is REINFORCE weighted by the ratio, clipped above
    and held constant (CISPO). average: `documents` is a mean over the tokens of a document and then over documents,
    `tokens` a mean over all tokens, `constant` divides by documents of a constant length.
    """

    ratio: Literal["token", "document"]
    surrogate: Literal["clip", "weight"]
    average: Literal["documents", "tokens", "constant"]

    def __call__(self, inputs: LossInputs, settings: PolicyLossSettings) -> tuple[torch.Tensor, Metrics]:
        """Returns the loss (scalar) and the metrics of a part of the batch. `combine_metrics` joins several parts.

        The loss of an empty part is 0 with a gradient: its rank takes part in the backward pass.
        """
        logprobs, advantages = inputs.logprobs, inputs.advantages
        if logprobs.numel() == 0:
            return logprobs.sum(), {}
        _, document, lengths = torch.unique(inputs.documents, return_inverse=True, return_counts=True)
        log_ratio = logprobs - inputs.old_logprobs
        if self.ratio == "document":
            log_ratio = _document_means(log_ratio, document, lengths)
        ratio = _bounded(log_ratio).exp()
        per_token = -self._objective(ratio, logprobs, advantages, settings)
        low, high = self._clipped(ratio.detach(), advantages, settings)
        metrics = _clip_metrics(low, high, document, lengths, settings)
        if inputs.rollout_logprobs is not None:
            gap = inputs.old_logprobs.detach() - inputs.rollout_logprobs
            metrics |= _gap_metrics(gap, settings)
            # A ratio of the whole document gets one weight per document. Token weights would undo the average.
            gap = _document_means(gap, document, lengths) if self.ratio == "document" else gap
            if settings.importance_cap is not None:
                per_token = per_token * _bounded(gap).exp().clamp(max=settings.importance_cap)
        if inputs.reference_logprobs is not None:
            kl = kl_estimate(logprobs, inputs.reference_logprobs, settings.kl)
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

    def _clipped(
        self, ratio: torch.Tensor, advantages: torch.Tensor, settings: PolicyLossSettings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns which tokens the lower and the upper bound clip, two [N] of 0.0 or 1.0."""
        if self.surrogate == "weight":  # has no lower bound
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


#: grpo 2402.03300, dr_grpo 2503.20783, dapo 2503.14476, gspo 2507.18071, cispo 2506.13585 (without a lower bound).
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
    """Returns the fraction of clipped tokens of the batch. `_min` and `_max` are over documents."""
    zeros = low.new_zeros(len(lengths))
    return {
        "clip_ratio/low_mean": low.sum() / settings.num_tokens_global,
        "clip_ratio/low_min": (zeros.index_add(0, document, low) / lengths).min(),
        "clip_ratio/high_mean": high.sum() / settings.num_tokens_global,
        "clip_ratio/high_max": (zeros.index_add(0, document, high) / lengths).max(),
        "clip_ratio/region_mean": (low + high).sum() / settings.num_tokens_global,
    }


def _gap_metrics(gap: torch.Tensor, settings: PolicyLossSettings) -> Metrics:
    """Returns metrics of the log-prob gap [N] between the old policy and the rollout engine."""
    ratio = _bounded(gap).exp()
    return {
        "sampling/logp_diff_mean": gap.abs().sum() / settings.num_tokens_global,
        "sampling/logp_diff_max": gap.abs().max(),
        "sampling/is_ratio_mean": ratio.sum() / settings.num_tokens_global,
        "sampling/is_ratio_min": ratio.min(),
        "sampling/is_ratio_max": ratio.max(),
    }


def _document_means(values: torch.Tensor, document: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Returns for every token [N] the mean over its document."""
    return (values.new_zeros(len(lengths)).index_add(0, document, values) / lengths)[document]


def _bounded(log_ratio: torch.Tensor) -> torch.Tensor:
    """Clamps log-ratios to +-20: the exponential of 88 overflows, and 0 * inf in a clipped branch is NaN."""
    return log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def combine_metrics(parts: Sequence[Metrics]) -> dict[str, float]:
    """Joins the metrics of a batch's parts: adds means (divided by global counts), and joins extremes as extremes."""
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
