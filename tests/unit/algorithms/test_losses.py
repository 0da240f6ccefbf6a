from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from videoseek.algorithms.losses import LOSSES, LossInputs, PolicyLossSettings, combine_metrics, kl_estimate, sft_loss

# Two documents: tokens 0-1 with advantage 1, token 2 with advantage -2.
OLD = torch.log(torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64))
RATIOS = torch.tensor([1.0, 1.5, 0.5], dtype=torch.float64)
ADVANTAGES = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64)
DOCUMENTS = torch.tensor([0, 0, 1])
SETTINGS = PolicyLossSettings(
    num_tokens_global=3, num_documents_global=2, clip_low=0.2, clip_high=0.3, max_document_tokens=4
)


def run(name: str, settings: PolicyLossSettings = SETTINGS, **extra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and its gradient by the log-probs."""
    logprobs = (OLD + RATIOS.log()).requires_grad_()
    loss, _ = LOSSES[name](LossInputs(logprobs, OLD, ADVANTAGES, DOCUMENTS, **extra), settings)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.detach(), gradient


# Objectives of the tokens: 1 * 1; min(1.5, 1.3) * 1; min(0.5 * -2, 0.8 * -2).
CLIPPED = [1.0, 1.3, -1.6]
BY_HAND = {
    "grpo": (-((1.0 + 1.3) / 2 - 1.6) / 2, [-1 / 4, 0, 0]),
    "dr_grpo": (-sum(CLIPPED) / (2 * 4), [-1 / 8, 0, 0]),
    "dapo": (-sum(CLIPPED) / 3, [-1 / 3, 0, 0]),
    # Geometric mean of the first document's ratios: sqrt(1.5), inside the bounds; the second's 0.5 is cut.
    "gspo": (-(math.sqrt(1.5) - 1.6) / 2, [-math.sqrt(1.5) / 4, -math.sqrt(1.5) / 4, 0]),
    "cispo": (
        -(math.log(0.5) + 1.3 * math.log(0.75) + 0.5 * -2 * math.log(0.25)) / 3,
        [-1 / 3, -1.3 / 3, 0.5 * 2 / 3],
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_equal_hand_computed_values(name: str) -> None:
    loss, gradient = run(name)
    expected_loss, expected_gradient = BY_HAND[name]
    assert loss.item() == pytest.approx(expected_loss, abs=1e-12)
    torch.testing.assert_close(gradient, torch.tensor(expected_gradient, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_at_ratio_one_is_reinforce(name: str) -> None:
    logprobs = OLD.clone().requires_grad_()
    loss, metrics = LOSSES[name](LossInputs(logprobs, logprobs.detach(), ADVANTAGES, DOCUMENTS), SETTINGS)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    divisors = {"documents": torch.tensor([4.0, 4.0, 2.0]), "tokens": torch.full((3,), 3.0), "constant": 8}
    torch.testing.assert_close(gradient, -ADVANTAGES / divisors[LOSSES[name].average])
    assert combine_metrics([metrics])["clip_ratio/region_mean"] == 0


# Log-ratios near enough to 0 that no token stands on a bound, where no derivative exists.
@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].surrogate == "clip"])
@pytest.mark.parametrize("kl", ["k2", "k3"])  # k1's gradient is not its value's
def test_gradients_are_those_of_the_value(name: str, kl: str) -> None:
    generator = torch.Generator().manual_seed(1)
    old = -torch.rand(9, generator=generator, dtype=torch.float64) * 3
    logprobs = (old + 0.6 * torch.randn(9, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(9, generator=generator, dtype=torch.float64)
    documents = torch.tensor([4, 4, 4, 0, 0, 7, 7, 7, 7])
    settings = PolicyLossSettings(9, 3, kl=kl, kl_weight=0.3, importance_cap=1.1, max_document_tokens=5)

    def value(x: torch.Tensor) -> torch.Tensor:
        inputs = LossInputs(x, old, advantages, documents, rollout_logprobs=old + 0.2, reference_logprobs=old - 0.3)
        return LOSSES[name](inputs, settings)[0]

    assert torch.autograd.gradcheck(value, logprobs)


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_is_the_sum_of_its_parts(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    documents = torch.tensor([0] * 5 + [1] + [2] * 3 + [3] * 7)
    size = len(documents)
    old, noise, reference, rollout = (-torch.rand(4, size, generator=generator, dtype=torch.float64)).unbind()
    advantages = torch.randn(4, generator=generator, dtype=torch.float64)[documents]
    settings = PolicyLossSettings(size, 4, kl_weight=0.1, importance_cap=1.2, max_document_tokens=7)

    def total(cuts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
        logprobs = (old + noise).requires_grad_()
        losses, metrics = [], []
        for cut in cuts:
            rows = torch.isin(documents, torch.tensor(cut, dtype=documents.dtype))
            tensors = (logprobs, old, advantages, documents, rollout, reference)
            loss, metric = LOSSES[name](LossInputs(*(tensor[rows] for tensor in tensors)), settings)
            losses.append(loss)
            metrics.append(metric)
        loss = torch.stack(losses).sum()
        return loss.detach(), torch.autograd.grad(loss, logprobs)[0], combine_metrics(metrics)

    whole = total([[0, 1, 2, 3]])
    for cuts in ([[0], [1], [2], [3]], [[3, 1], [0, 2]], [[0, 1, 2], [], [3]]):
        parts = total(cuts)
        torch.testing.assert_close(parts[0], whole[0])
        torch.testing.assert_close(parts[1], whole[1])
        assert parts[2] == pytest.approx(whole[2])


def test_clip_metrics_count_what_the_bounds_cut() -> None:
    _, metrics = LOSSES["dapo"](LossInputs(OLD + RATIOS.log(), OLD, ADVANTAGES, DOCUMENTS), SETTINGS)
    assert combine_metrics([metrics]) == pytest.approx(
        {
            "clip_ratio/low_mean": 1 / 3,
            "clip_ratio/low_min": 0.0,
            "clip_ratio/high_mean": 1 / 3,
            "clip_ratio/high_max": 0.5,
            "clip_ratio/region_mean": 2 / 3,
        }
    )


def test_bounds_that_do_not_act_are_not_counted() -> None:
    _, metrics = LOSSES["dapo"](LossInputs(OLD + RATIOS.log(), OLD, -ADVANTAGES, DOCUMENTS), SETTINGS)
    assert combine_metrics([metrics])["clip_ratio/region_mean"] == 0
    _, metrics = LOSSES["cispo"](LossInputs(OLD + RATIOS.log(), OLD, ADVANTAGES, DOCUMENTS), SETTINGS)
    assert combine_metrics([metrics])["clip_ratio/low_mean"] == 0


def test_the_importance_weight_is_truncated_and_constant() -> None:
    rollout = OLD - torch.tensor([math.log(1.5), math.log(4.0), math.log(0.5)], dtype=torch.float64)
    settings = replace(SETTINGS, importance_cap=2.0)
    _, plain = run("dapo")
    _, weighted = run("dapo", settings, rollout_logprobs=rollout)
    torch.testing.assert_close(weighted, plain * torch.tensor([1.5, 2.0, 0.5], dtype=torch.float64))
    _, uncorrected = run("dapo", rollout_logprobs=rollout)
    torch.testing.assert_close(uncorrected, plain)


def test_a_document_ratio_gets_one_importance_weight_for_the_document() -> None:
    """GSPO: the geometric mean of the token weights, sqrt(1.5 * 4.0), truncated; and 0.5 for the single token."""
    rollout = OLD - torch.tensor([math.log(1.5), math.log(4.0), math.log(0.5)], dtype=torch.float64)
    _, plain = run("gspo")
    _, weighted = run("gspo", replace(SETTINGS, importance_cap=10.0), rollout_logprobs=rollout)
    torch.testing.assert_close(weighted, plain * torch.tensor([6**0.5, 6**0.5, 0.5], dtype=torch.float64))
    _, truncated = run("gspo", replace(SETTINGS, importance_cap=2.0), rollout_logprobs=rollout)
    torch.testing.assert_close(truncated, plain * torch.tensor([2.0, 2.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_a_log_ratio_beyond_the_exponential_stays_finite(name: str, gap: float) -> None:
    """In float32 exp(89) is infinite: without a bound the minimum of plain and clipped objective has a NaN gradient."""
    logprobs = torch.tensor([-1.0, -1.0, -1.0 + gap], requires_grad=True)
    old = torch.full((3,), -1.0)
    settings = replace(SETTINGS, importance_cap=2.0, kl_weight=0.1)
    inputs = LossInputs(
        logprobs, old, ADVANTAGES.float() * torch.tensor([1.0, 0.0, 1.0]), DOCUMENTS, rollout_logprobs=old - gap,
        reference_logprobs=old,
    )  # fmt: skip
    loss, metrics = LOSSES[name](inputs, settings)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert torch.isfinite(loss) and bool(torch.isfinite(gradient).all())
    assert all(math.isfinite(value) for value in combine_metrics([metrics]).values())


def test_the_rollout_gap_is_reported() -> None:
    rollout = OLD - torch.tensor([math.log(1.5), 0.0, math.log(0.5)], dtype=torch.float64)
    _, metrics = LOSSES["grpo"](LossInputs(OLD, OLD, ADVANTAGES, DOCUMENTS, rollout_logprobs=rollout), SETTINGS)
    gap = {name: value for name, value in combine_metrics([metrics]).items() if name.startswith("sampling/")}
    assert gap == pytest.approx(
        {
            "sampling/logp_diff_mean": (math.log(1.5) + math.log(2)) / 3,
            "sampling/logp_diff_max": math.log(2),
            "sampling/is_ratio_mean": 3.0 / 3,
            "sampling/is_ratio_min": 0.5,
            "sampling/is_ratio_max": 1.5,
        }
    )


@pytest.mark.parametrize(("kind", "expected"), [("k1", math.log(2)), ("k2", math.log(2) ** 2 / 2), ("k3", 0.193147)])
def test_kl_estimates_equal_hand_computed_values(kind: str, expected: float) -> None:
    # k3 = 1/2 - 1 - log(1/2)
    estimate = kl_estimate(torch.log(torch.tensor([0.5])), torch.log(torch.tensor([0.25])), kind)
    assert estimate.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_expected_gradient_of_the_estimate_is_that_of_a_divergence(kind: str) -> None:
    """Over the whole distribution, as sampling weighs it: the tokens' probabilities are held constant."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(8, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    expected = (logprobs.detach().exp() * kl_estimate(logprobs, reference, kind)).sum()
    divergence = (logprobs.exp() * (logprobs - reference)).sum()
    opposite = (reference.exp() * (reference - logprobs)).sum()
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(opposite if kind == "k3" else divergence, logits)
    torch.testing.assert_close(gradient, expected_gradient)
    assert kind == "k2" or expected.item() == pytest.approx(divergence.item())


def test_kl_is_added_under_the_same_average_and_logged() -> None:
    reference = OLD - 0.5
    logprobs = OLD.clone()
    plain, _ = LOSSES["dapo"](LossInputs(logprobs, OLD, ADVANTAGES, DOCUMENTS), SETTINGS)
    settings = replace(SETTINGS, kl="k1", kl_weight=0.2)
    inputs = LossInputs(logprobs, OLD, ADVANTAGES, DOCUMENTS, reference_logprobs=reference)
    with_kl, metrics = LOSSES["dapo"](inputs, settings)
    assert (with_kl - plain).item() == pytest.approx(0.2 * 0.5)
    assert metrics["kl"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_part_gives_zero_and_keeps_the_graph(name: str) -> None:
    logprobs = torch.zeros(0, requires_grad=True)
    empty = torch.zeros(0)
    loss, metrics = LOSSES[name](LossInputs(logprobs, empty, empty, empty.long()), SETTINGS)
    loss.backward()
    assert loss.item() == 0 and metrics == {}


def test_sft_loss_is_the_mean_over_the_whole_batch() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -6.0])
    assert sft_loss(logprobs, 3).item() == pytest.approx(3.0)
    assert (sft_loss(logprobs[:1], 3) + sft_loss(logprobs[1:], 3)).item() == pytest.approx(3.0)
    assert sft_loss(logprobs[:0], 3).item() == 0
    with pytest.raises(ValueError, match="num_targets is 0"):
        sft_loss(logprobs, 0)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_tokens_global": 0}, "num_tokens_global is 0"),
        ({"num_documents_global": 0}, "num_documents_global is 0"),
        ({"clip_low": 1.5}, "clip_low 1.5"),
        ({"clip_high": -0.1}, "clip_high -0.1"),
        ({"kl": "k4"}, "kl 'k4' is not one of k1, k2, k3"),
        ({"importance_cap": 0.0}, "importance_cap is 0.0"),
    ],
)
def test_bad_settings_are_named(changes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SETTINGS, **changes)


@pytest.mark.parametrize("name", ["old_logprobs", "advantages", "documents", "rollout_logprobs", "reference_logprobs"])
def test_inputs_of_unequal_length_are_named(name: str) -> None:
    inputs = LossInputs(OLD, OLD, ADVANTAGES, DOCUMENTS, rollout_logprobs=OLD, reference_logprobs=OLD)
    with pytest.raises(ValueError, match=rf"{name} has shape \(2,\), must be \(3,\) as logprobs"):
        replace(inputs, **{name: OLD[:2]})


def test_dr_grpo_needs_its_constant() -> None:
    with pytest.raises(ValueError, match="set max_document_tokens"):
        run("dr_grpo", replace(SETTINGS, max_document_tokens=None))
