"""Which protocol the options choose, and those that make none."""

import pytest

from pspfast import PSPNet
from pspfast.evaluation.evaluate import make_protocol
from pspfast.evaluation.options import EvalConfig
from pspfast.models.multi_scale import SlidingLogits, SlidingProbabilities, WholeImage


def make_model() -> PSPNet:
    return PSPNet(18, classes=5, stem="7x7", head_channels=8, aux_channels=8).eval()


def options(**protocol) -> EvalConfig:
    return EvalConfig("checkpoint", list="list", **protocol)


def test_options_choose_the_protocol() -> None:
    model = make_model()
    assert make_protocol(model, options(), (33, 41)) is model
    whole = make_protocol(model, options(scales=(0.5, 1.0), base_size=60), (33, 41))
    assert whole == WholeImage(model=model, scales=(0.5, 1.0), flip=False, base_size=60)
    semseg = make_protocol(model, options(protocol="semseg", flip=True), (33, 41))
    assert semseg == SlidingProbabilities(
        model=model, flip=True, crop=(33, 41), stride=(22, 28), window_batch=8
    )
    given = options(protocol="slide_logits", crop_size=(30, 34), stride=(9, 8), window_batch=2)
    assert make_protocol(model, given, (33, 41)) == SlidingLogits(
        model=model, crop=(30, 34), stride=(9, 8), window_batch=2
    )


def test_wrong_windows_are_named() -> None:
    with pytest.raises(ValueError, match=r"crop_size: expected sizes 8n\+1.*\[33, 41\], got"):
        make_protocol(make_model(), options(protocol="semseg", crop_size=(32, 42)), (33, 41))
    with pytest.raises(ValueError, match=r"stride: expected at most .*\[33, 41\], got \[34, 5\]"):
        make_protocol(make_model(), options(protocol="semseg", stride=(34, 5)), (33, 41))
    for wrong, message in (
        ({"scales": ()}, "scales: expected positive factors"),
        ({"scales": (1.0, 0.0)}, "scales: expected positive factors"),
        ({"base_size": 0}, "base_size: expected at least 1"),
        ({"window_batch": 0}, "window_batch: expected at least 1"),
        ({"crop_size": (33, 41)}, "crop_size: expected none for whole images"),
        ({"protocol": "semseg", "stride": (0, 3)}, "stride: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            options(**wrong)
