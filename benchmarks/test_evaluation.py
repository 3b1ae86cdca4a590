"""semseg's evaluation, windows at six scales with mirror images, of CamVid at half its size."""

from itertools import cycle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pspfast
from benchmarks.semseg_evaluation import SemsegPSPNet18, evaluate
from pspfast.data import EvalTransform, list_file_samples, read_image
from pspfast.models.multi_scale import SlidingProbabilities
from pspfast.models.windows import semseg_stride
from tools.camvid import camvid_folder
from tools.camvid_model import train_for_an_epoch

CLASSES, SCALES = 11, (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# 15 windows an image: at twice both sizes a round takes four times as long, and there are 16.
BASE_SIZE, CROP = 240, 241
# A round is an image, and takes the peer seconds; the model that is trained before warms up.
IMAGES, WARMUP_ROUNDS = 20, 0


@pytest.fixture(scope="module")
def camvid() -> Path:
    return camvid_folder()


@pytest.fixture(scope="module")
def model(camvid, device) -> pspfast.PSPNet:
    return train_for_an_epoch(camvid, device)[0]


def test_semseg_protocol(compare, record_row, camvid, model, device) -> None:
    files = [image for image, _ in list_file_samples(camvid / "val.txt")[::5][:IMAGES]]
    assert len(files) == IMAGES
    transform = EvalTransform()
    crop = (CROP, CROP)
    protocol = SlidingProbabilities(
        model=pspfast.optimize_for_inference(model),
        scales=SCALES,
        flip=True,
        base_size=BASE_SIZE,
        crop=crop,
        stride=semseg_stride(crop),
        window_batch=8,
    )
    semseg: nn.Module = SemsegPSPNet18(model.state_dict()).to(device)
    labels: dict[str, list[Tensor]] = {"ours": [], "semseg": []}
    mine, theirs = cycle(files), cycle(files)

    def ours() -> None:
        image = transform(read_image(next(mine))).to(device)
        labels["ours"].append(protocol.predict(image[None])[0].cpu())

    def peer() -> None:
        image = read_image(next(theirs)).permute(1, 2, 0).float().numpy()
        predicted = evaluate(semseg, image, CLASSES, CROP, BASE_SIZE, SCALES)
        labels["semseg"].append(torch.from_numpy(predicted))

    compare(ours, {"semseg": peer}, IMAGES, WARMUP_ROUNDS)
    got, expected = (torch.stack(of_images) for of_images in labels.values())
    same = (got == expected).double().mean().item()
    assert len(got) == IMAGES
    assert expected.unique().numel() >= 4  # an epoch teaches the large classes
    assert same >= 0.999
    record_row(f"same labels as semseg's for {100 * same:.4f} % of the pixels of {IMAGES} images")
