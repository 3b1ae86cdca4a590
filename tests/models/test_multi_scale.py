"""Protocols against the published procedures: one window at a time, in numpy's float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pspfast import PSPNet, backend
from pspfast.data import IMAGENET_MEAN, IMAGENET_STD, EvalTransform
from pspfast.models.multi_scale import SlidingLogits, SlidingProbabilities, WholeImage

CLASSES = 5
MEAN, STD = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)


def make_model(**options) -> PSPNet:
    model = PSPNet(18, classes=CLASSES, stem="7x7", head_channels=8, aux_channels=8, **options)
    # So that classes differ in probability, and pixels in their class.
    torch.nn.init.normal_(model.cls[-1].weight, std=3)
    return model.eval()


def make_image(height: int, width: int) -> Tensor:
    """Pixels ``[3, H, W]``, uint8."""
    coarse = 128 + 80 * torch.randn(1, 3, height // 6, width // 6)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return smooth[0].clamp(0, 255).byte()


def resize(maps: np.ndarray, size: tuple[int, int], align_corners: bool = False) -> np.ndarray:
    """``[H, W, C]``, as OpenCV does where the corners are not aligned."""
    nchw = torch.from_numpy(np.ascontiguousarray(maps.transpose(2, 0, 1)))[None]
    resized = F.interpolate(nchw, size, mode="bilinear", align_corners=align_corners)
    return resized[0].numpy().transpose(1, 2, 0)


def logits(model: PSPNet, pixels: np.ndarray) -> np.ndarray:
    """Of ``[H, W, 3]`` in 0 to 255, upsampled to their size: ``[H, W, K]``."""
    image = torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1)).float()[None]
    with torch.no_grad(), backend("reference"):
        out = model(image)[0].double().numpy().transpose(1, 2, 0)
    return resize(out, pixels.shape[:2], model.align_corners)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(2, keepdims=True))
    return powers / powers.sum(2, keepdims=True)


def semseg(model, pixels, scales, flip, base_size, crop, stride) -> np.ndarray:
    height, width, _ = pixels.shape
    prediction = np.zeros((height, width, CLASSES))
    for scale in scales:
        new_h = new_w = round(scale * base_size)
        if height > width:
            new_w = round(new_h / float(height) * width)
        else:
            new_h = round(new_w / float(width) * height)
        prediction += semseg_scale(
            model, resize(pixels, (new_h, new_w)), flip, crop, stride, (height, width)
        )
    return prediction / len(scales)


def semseg_scale(model, image, flip, crop, stride, size) -> np.ndarray:
    ori_h, ori_w, _ = image.shape
    pad_h, pad_w = max(crop[0] - ori_h, 0), max(crop[1] - ori_w, 0)
    half_h, half_w = int(pad_h / 2), int(pad_w / 2)
    padding = ((half_h, pad_h - half_h), (half_w, pad_w - half_w))
    image = np.stack(
        [np.pad(image[..., c], padding, constant_values=MEAN[c]) for c in range(3)], axis=2
    )
    new_h, new_w, _ = image.shape
    grid_h = int(np.ceil(float(new_h - crop[0]) / stride[0]) + 1)
    grid_w = int(np.ceil(float(new_w - crop[1]) / stride[1]) + 1)
    prediction, count = np.zeros((new_h, new_w, CLASSES)), np.zeros((new_h, new_w, 1))
    for index_h in range(grid_h):
        for index_w in range(grid_w):
            e_h = min(index_h * stride[0] + crop[0], new_h)
            e_w = min(index_w * stride[1] + crop[1], new_w)
            s_h, s_w = e_h - crop[0], e_w - crop[1]
            window = image[s_h:e_h, s_w:e_w]
            output = softmax(logits(model, window))
            if flip:
                output = (output + softmax(logits(model, window[:, ::-1]))[:, ::-1]) / 2
            prediction[s_h:e_h, s_w:e_w] += output
            count[s_h:e_h, s_w:e_w] += 1
    prediction /= count
    return resize(prediction[half_h : half_h + ori_h, half_w : half_w + ori_w], size)


def mmseg(model, pixels, scales, flip, base_size, crop=None, stride=None) -> np.ndarray:
    height, width, _ = pixels.shape
    predictions = []
    for scale in scales:
        factor = scale * base_size / max(height, width)
        size = int(height * factor + 0.5), int(width * factor + 0.5)
        image = resize(pixels, size)
        for flipped in (False, True) if flip else (False,):
            view = image[:, ::-1] if flipped else image
            output = logits(model, view) if crop is None else mmseg_slide(model, view, crop, stride)
            output = output[:, ::-1] if flipped else output
            predictions.append(softmax(resize(output, (height, width), model.align_corners)))
    return sum(predictions) / len(predictions)


def mmseg_slide(model, image, crop, stride) -> np.ndarray:
    height, width, _ = image.shape
    predictions, count = np.zeros((height, width, CLASSES)), np.zeros((height, width, 1))
    for h_idx in range(max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1):
        for w_idx in range(max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1):
            y2 = min(h_idx * stride[0] + crop[0], height)
            x2 = min(w_idx * stride[1] + crop[1], width)
            y1, x1 = max(y2 - crop[0], 0), max(x2 - crop[1], 0)
            predictions[y1:y2, x1:x2] += logits(model, image[y1:y2, x1:x2])
            count[y1:y2, x1:x2] += 1
    return predictions / count


def assert_same(
    protocol: WholeImage | SlidingProbabilities, image: Tensor, expected: np.ndarray
) -> None:
    images = EvalTransform()(image)[None]
    probabilities = protocol.probabilities(images)
    probabilities = probabilities / probabilities.sum(1, keepdim=True)
    np.testing.assert_allclose(probabilities[0].permute(1, 2, 0), expected, atol=1e-4)
    labels = protocol.predict(images)[0].numpy()
    assert (labels == expected.argmax(2)).mean() > 0.999
    assert expected.std(axis=(0, 1)).max() > 0.01


def pixels_of(image: Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).double().numpy()


@pytest.mark.parametrize(
    ("size", "base_size", "scales", "flip", "stride"),
    [
        # Padded in both directions, in one, in none; 7 rows of padding are not even.
        ((34, 50), 50, (0.5, 1.0, 1.75), True, (22, 28)),
        ((50, 34), 60, (0.8, 1.5), False, (22, 28)),
        ((40, 40), 45, (1.2,), True, (33, 17)),
    ],
)
def test_semseg(size, base_size, scales, flip, stride) -> None:
    model, image, crop = make_model(), make_image(*size), (33, 41)
    protocol = SlidingProbabilities(
        model=model,
        scales=scales,
        flip=flip,
        base_size=base_size,
        crop=crop,
        stride=stride,
        window_batch=3,
    )
    expected = semseg(model, pixels_of(image), scales, flip, base_size, crop, stride)
    assert_same(protocol, image, expected)


@pytest.mark.parametrize(
    ("options", "crop"),
    [
        ({"zoom_factor": 4, "align_corners": False}, (34, 40)),
        ({"zoom_factor": 1}, (33, 41)),
        ({"align_corners": False}, (34, 40)),
    ],
    ids=str,
)
def test_semseg_with_other_models(options, crop) -> None:
    model, image, stride = make_model(**options), make_image(44, 52), (22, 28)
    protocol = SlidingProbabilities(
        model=model, scales=(1.0,), flip=True, crop=crop, stride=stride, window_batch=8
    )
    expected = semseg(model, pixels_of(image), (1.0,), True, 52, crop, stride)
    assert_same(protocol, image, expected)


@pytest.mark.parametrize("align_corners", [True, False])
def test_whole(align_corners: bool) -> None:
    model, image = make_model(align_corners=align_corners), make_image(36, 50)
    protocol = WholeImage(model=model, scales=(0.75, 1.5), flip=True, base_size=54)
    assert_same(protocol, image, mmseg(model, pixels_of(image), (0.75, 1.5), True, 54))


@pytest.mark.parametrize("align_corners", [True, False])
def test_slide_logits(align_corners: bool) -> None:
    """At the smaller scale a window is higher than the image."""
    model, image = make_model(align_corners=align_corners), make_image(40, 54)
    scales, crop, stride = (0.7, 1.2), (30, 34), (19, 23)
    protocol = SlidingLogits(
        model=model, scales=scales, flip=True, crop=crop, stride=stride, window_batch=4
    )
    expected = mmseg(model, pixels_of(image), scales, True, 54, crop, stride)
    assert_same(protocol, image, expected)


@pytest.mark.parametrize(
    ("protocol", "batches"),
    [
        # 2 and 12 windows of two scales, in batches across them.
        (SlidingProbabilities, [5, 5, 4]),
        # 1 and 6 windows of two scales, the image as it is and mirrored.
        (SlidingLogits, [1, 1, 5, 1, 5, 1]),
    ],
)
def test_batches_change_nothing(protocol, batches: list[int]) -> None:
    model = make_model()
    images = EvalTransform()(torch.stack([make_image(50, 70), make_image(50, 70)]))
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    windows = {"crop": (33, 41), "stride": (22, 28)}
    labels = [
        protocol(
            model=model, scales=(0.5, 1.0), flip=True, window_batch=window_batch, **windows
        ).predict(images)
        for window_batch in (5, 1, 100)
    ]
    assert seen[: 2 * len(batches)] == 2 * batches
    assert labels[0].shape == (2, 50, 70)
    assert not torch.equal(labels[0][0], labels[0][1])
    for other in labels[1:]:
        assert (other == labels[0]).double().mean() > 0.999
