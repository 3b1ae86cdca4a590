"""Labels of images whose probabilities would not fit on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.models.windows import window_starts


@torch.inference_mode()
def predict_in_bands(
    protocol: SlidingProbabilities, image: Tensor, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """``protocol.predict`` of an image, one row of windows after the other.

    A band, as high as a window and as wide as the image, holds the sums of the probabilities. Rows
    that no further window reaches are labelled and leave it, so that memory on the device grows
    with the image's width only. The sums are those of the whole image but for their rounding.

    Args:
        protocol: with the image's own size as its only scale.
        image: ``[1, 3, H, W]``, uint8, on the host.
        prepare: normalises ``[1, 3, h, W]`` of it and brings it to the device.

    Returns:
        Labels ``[1, H, W]``, uint8, on the host.
    """
    height = image.shape[2]
    band_height = min(protocol.crop[0], height)
    starts = window_starts(height, band_height, protocol.stride[0])
    labels = torch.empty(1, *image.shape[2:], dtype=torch.uint8)
    sums: Tensor | None = None
    for start, following in zip(starts, [*starts[1:], height], strict=True):
        probabilities = protocol.probabilities(prepare(image[:, :, start : start + band_height]))
        if sums is not None:
            probabilities[:, :, : sums.shape[2]] += sums
        finished = following - start
        labels[:, start:following] = probabilities[:, :, :finished].argmax(1).to(torch.uint8)
        # A copy, or the finished rows would stay in memory as well.
        sums = probabilities[:, :, finished:].clone()
    return labels
