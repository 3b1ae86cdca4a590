"""A trained model that labels images of files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pspfast.model_files import TrainedModel, eval_transform
from pspfast.models import optimize_for_inference
from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.models.windows import Size, semseg_stride
from pspfast.prediction.bands import predict_in_bands


class Segmenter:
    """Images of one size ``[3, H, W]``, uint8 on the host, to labels ``[H, W]`` likewise.

    Args:
        trained: the model.
        device: where it runs.
        crop_size: (H, W) of windows that slide over an image; None labels it at once.
        window_batch: windows that the network is given at a time.

    Raises:
        ValueError: the model's images have no three channels, or it cannot have such windows.
    """

    def __init__(
        self,
        trained: TrainedModel,
        device: torch.device,
        crop_size: Size | None = None,
        window_batch: int = 1,
    ) -> None:
        self.device = device
        self.transform = eval_transform(trained)
        self.model = optimize_for_inference(trained.model.to(device))
        self.windows: SlidingProbabilities | None = None
        if crop_size:
            self.windows = SlidingProbabilities(
                model=self.model,
                crop=crop_size,
                stride=semseg_stride(crop_size),
                window_batch=window_batch,
            )

    def __call__(self, images: Sequence[Tensor]) -> list[NDArray[np.uint8]]:
        batch = torch.stack([*images])
        if self.windows is None:
            labels = self.model.predict(self._prepare(batch)).to(torch.uint8).cpu()
            return [*labels.numpy()]
        parts = batch.split(1)
        return [predict_in_bands(self.windows, part, self._prepare)[0].numpy() for part in parts]

    def _prepare(self, images: Tensor) -> Tensor:
        return self.transform(images.to(self.device))
