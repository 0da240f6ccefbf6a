"""Patch rows equal those of the library's own processor, whose layout the released vision tower was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from videoseek.video.patches import MEAN, STD, patchify


def noise(num_frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (140, 224)], ids=str)
def test_pair_of_equal_frames_matches_the_image_processor(size) -> None:
    image = noise(1, *size)[0]
    processor = Qwen2VLImageProcessorPil(do_resize=False)
    expected = processor(images=[np.asarray(image)], return_tensors="pt", input_data_format="channels_last")
    rows = patchify(torch.stack([image, image]))
    assert rows.dtype == torch.float32 and rows.shape == expected["pixel_values"].shape
    torch.testing.assert_close(rows, expected["pixel_values"].float(), atol=2e-6, rtol=0)


def test_every_value_is_where_the_layout_says() -> None:
    frames = noise(6, 56, 84)
    rows = patchify(frames).view(3, 2, 3, 2, 2, 3, 2, 14, 14)  # t, block y, block x, y, x, channel, frame, row, column
    rng = np.random.default_rng(0)
    for t, by, bx, y, x, c, f, i, j in zip(*(rng.integers(0, n, 300) for n in rows.shape), strict=True):
        pixel = frames[2 * t + f, (2 * by + y) * 14 + i, (2 * bx + x) * 14 + j, c]
        assert rows[t, by, bx, y, x, c, f, i, j] == pytest.approx((float(pixel) / 255 - MEAN[c]) / STD[c], abs=1e-5)


def test_pairs_are_independent() -> None:
    frames = noise(4, 28, 56)
    assert torch.equal(patchify(frames), torch.cat([patchify(frames[:2]), patchify(frames[2:])]))


def test_input_is_left_alone() -> None:
    frames = noise(2, 28, 28)
    before = frames.clone()
    patchify(frames)
    assert torch.equal(frames, before)


@pytest.mark.parametrize(
    "frames",
    [noise(3, 28, 28), noise(2, 28, 42), noise(2, 28, 28).float(), noise(2, 28, 28)[0], noise(2, 28, 28)[..., :1]],
    ids=["odd_count", "half_block", "float", "no_time", "one_channel"],
)
def test_other_shapes_are_refused_with_the_shape(frames) -> None:
    with pytest.raises(ValueError, match="frames"):
        patchify(frames)
