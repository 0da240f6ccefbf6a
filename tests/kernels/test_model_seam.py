"""The kernels inside the real decoder: the same outputs and gradients as its dense path, checkpointing included."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kernel_bench.testing import pack, relative_error, trajectory_mask
from videoseek_kernels import TokenMask, build_block_mask, tdam_attention
from videoseek_kernels.dense import padded_attention

pytest.importorskip("transformers")

from videoseek.model import attention  # noqa: E402  (what it imports is looked for first)
from videoseek.model.attention import DecoderAttention, PackedAttention, install_attention  # noqa: E402
from videoseek.model.tiny import build_model, build_tokenizer, tiny_config  # noqa: E402


@pytest.fixture
def mask() -> TokenMask:
    """Two trajectories in one row."""
    return pack([trajectory_mask(90, 2), trajectory_mask(41, 1)])


class DensePath:
    """The decoder's attention by padded documents, on any device."""

    def __init__(self, mask: TokenMask) -> None:
        self.documents = build_block_mask(mask).documents

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return padded_attention(*(x[0].transpose(0, 1) for x in (query, key, value)), self.documents)[None]


def packed(mask: TokenMask, device: str) -> PackedAttention:
    return PackedAttention.build(mask.end, mask.key_class, mask.visible, torch.device(device))


@pytest.mark.parametrize("impl", ["triton", "auto"])
def test_kernels_equal_the_dense_path(impl: str, mask: TokenMask, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is interpreted on the CPU, where auto is the dense path itself."""
    monkeypatch.setattr(attention, "tdam_attention", partial(tdam_attention, impl=impl))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, heads, len(mask), 32, generator=generator).to(device) for heads in (4, 2, 2)]
    upstream = torch.randn(1, len(mask), 4, 32, generator=generator).to(device)
    found = []
    for attend in (packed(mask, device), DensePath(mask.to(device))):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        out = attend.attend(0, q, k, v)
        found.append([out.detach(), *torch.autograd.grad(out, (q, k, v), upstream)])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-5)


def decoder_results(
    attend: Callable[[], DecoderAttention], num_tokens: int, device: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Hidden states, and the gradient of every weight of two random layers under gradient checkpointing."""
    config = tiny_config(build_tokenizer([]))
    config.text_config.num_hidden_layers = 2
    config.text_config.layer_types = config.text_config.layer_types[:2]
    model = install_attention(build_model(config, 0)).to(device, dtype).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    decoder = model.model.language_model
    generator = torch.Generator().manual_seed(1)
    x, upstream = (torch.randn(1, num_tokens, 128, generator=generator).to(device, dtype) for _ in range(2))
    positions = torch.arange(num_tokens, device=device).expand(3, 1, num_tokens)
    hidden = decoder(
        inputs_embeds=x.requires_grad_(),
        position_ids=positions,
        attention_mask={"full_attention": attend()},
        use_cache=False,
    ).last_hidden_state
    hidden.backward(upstream)
    grads = {name: weight.grad for name, weight in decoder.named_parameters() if weight.grad is not None}
    assert len(decoder.layers) == 2 and x.grad is not None
    assert sum("q_proj.weight" in name for name in grads) == 2
    return {"hidden": hidden.detach(), "embeddings": x.grad, **grads}


def check_decoder(mask: TokenMask, device: str, dtype: torch.dtype, bound: float) -> None:
    ours = packed(mask, device)
    mine = decoder_results(lambda: ours, len(mask), device, dtype)
    wanted = decoder_results(lambda: DensePath(mask.to(device)), len(mask), device, dtype)
    assert mine.keys() == wanted.keys()
    for name, tensor in mine.items():
        error = relative_error(tensor.float(), wanted[name].float())
        assert error < bound, f"{name}: off by {error:.1e}"


def test_decoder_trains_on_the_interpreted_kernels(mask: TokenMask, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter is not used on a GPU")
    calls: list[str] = []

    def counted(*arguments: object) -> torch.Tensor:
        calls.append("kernel")
        return tdam_attention(*arguments, impl="triton")

    monkeypatch.setattr(attention, "tdam_attention", counted)
    check_decoder(mask, "cpu", torch.float32, 1e-4)
    assert len(calls) == 4, "two layers, each once more in the backward pass"


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)], ids=["fp32", "bf16"])
def test_decoder_trains_on_a_gpu(dtype: torch.dtype, bound: float) -> None:
    check_decoder(pack([trajectory_mask(900, 3), trajectory_mask(411, 1)]), "cuda", dtype, bound)
