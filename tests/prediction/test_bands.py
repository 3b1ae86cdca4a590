"""Images in bands against the same windows over the whole image."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pspfast import PSPNet
from pspfast.data import EvalTransform
from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.prediction.bands import predict_in_bands

CLASSES, CROP, STRIDE = 5, (33, 41), (22, 28)


@pytest.fixture(scope="module")
def protocol() -> SlidingProbabilities:
    torch.manual_seed(0)
    model = PSPNet(18, classes=CLASSES, stem="7x7", head_channels=8, aux_channels=8)
    # So that classes differ in probability, and pixels in their class.
    torch.nn.init.normal_(model.cls[-1].weight, std=3)
    return SlidingProbabilities(model=model.eval(), crop=CROP, stride=STRIDE, window_batch=2)


def make_image(height: int, width: int) -> Tensor:
    """Pixels ``[1, 3, H, W]``, uint8."""
    torch.manual_seed(height)
    coarse = 128 + 80 * torch.randn(1, 3, 6, 6)
    return F.interpolate(coarse, (height, width), mode="bilinear").clamp(0, 255).byte()


@pytest.mark.parametrize(
    "size",
    [
        (33, 41),  # one window
        (20, 30),  # smaller than one
        (90, 30),  # narrower than one
        (20, 90),  # lower than one
        (77, 60),  # windows at whole strides
        (78, 60),  # the last one almost a stride further
        (56, 60),  # the last one row further
    ],
)
def test_labels_of_the_whole_image(protocol: SlidingProbabilities, size: tuple[int, int]) -> None:
    image, prepare = make_image(*size), EvalTransform()
    labels = predict_in_bands(protocol, image, prepare)
    assert (labels.shape, labels.dtype) == ((1, *size), torch.uint8)
    with torch.no_grad():
        probabilities = protocol.probabilities(prepare(image))
    first, second = probabilities.topk(2, 1).values.unbind(1)
    # Elsewhere rounding may decide.
    clear = first - second > 1e-4
    assert clear.double().mean() > 0.99
    expected = probabilities.argmax(1)
    assert len(expected.unique()) > 1
    assert torch.equal(labels[clear].long(), expected[clear])


class LargestTensor(TorchDispatchMode):
    """Elements of the largest floating tensor that an operator returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.is_floating_point():
                self.elements = max(self.elements, value.numel())
        return result


def test_memory_does_not_grow_with_the_height(protocol: SlidingProbabilities) -> None:
    width, largest = 60, []
    for height in (77, 33 + 22 * 10):
        with LargestTensor() as mode:
            predict_in_bands(protocol, make_image(height, width), EvalTransform())
        largest.append(mode.elements)
    assert largest[0] == largest[1] < CLASSES * height * width
    with LargestTensor() as mode:
        protocol.predict(EvalTransform()(make_image(height, width)))
    assert mode.elements >= CLASSES * height * width, "that measures nothing"
