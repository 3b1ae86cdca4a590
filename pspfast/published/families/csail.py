"""CSAIL's semantic-segmentation-pytorch: an encoder's file and a decoder's."""

from __future__ import annotations

from collections.abc import Sequence

from pspfast.published.families.classifier import renamed_backbone
from pspfast.published.found import Found
from pspfast.published.reading import WeightsFile
from pspfast.published.shapes import infer_backbone, infer_heads

_HEADS = {"ppm": "ppm.features", "conv_last": "cls", "cbr_deepsup": "aux"}


def is_decoder(file: WeightsFile) -> bool:
    """Whether a file has the keys of one of its decoders."""
    return any(key.startswith(("conv_last.", "ppm_last_conv.", "fpn_in.")) for key in file.weights)


def convert(files: Sequence[WeightsFile]) -> Found:
    """Encoder and decoder, in either order.

    Raises:
        ValueError: they are not one of each, or the decoder is another than ``ppm`` and
            ``ppm_deepsup``.
    """
    paths = tuple(file.path for file in files)
    name = " and ".join(map(str, paths))
    decoders = [file for file in files if is_decoder(file)]
    encoders = [file for file in files if file not in decoders]
    if len(decoders) != 1 or len(encoders) != 1:
        count = f"{len(decoders)} decoder{'s' * (len(decoders) != 1)}"
        raise ValueError(
            f"{name}: expected CSAIL's encoder and its decoder, two files, got {count} among "
            f"{len(files)}"
        )
    (encoder,), (decoder,) = encoders, decoders
    if "ppm.0.1.weight" not in decoder.weights:
        kind = "UPerNet" if "fpn_in.0.0.weight" in decoder.weights else "another decoder"
        raise ValueError(f"{decoder.path}: expected the decoder ppm or ppm_deepsup, got {kind}")
    weights = renamed_backbone(encoder.weights)
    for key, value in decoder.weights.items():
        module, _, rest = key.partition(".")
        if module == "conv_last_deepsup":
            weights[f"aux.4.{rest}"] = value
        else:
            weights[f"{_HEADS.get(module, module)}.{rest}"] = value
    found = Found("CSAIL's semantic-segmentation-pytorch", paths, weights)
    options = infer_backbone(found.name, weights) | infer_heads(found.name, weights)
    del options["levels"]
    found.note("shapes", **options)
    found.note("CSAIL", bins=(1, 2, 3, 6), align_corners=False, dilation="contracted")
    found.note("CSAIL", block_dilation="both")
    found.sources["preprocessing"] = "CSAIL"
    if options["classes"] == 150:
        found.class_list, found.label_ids = "ade20k", "ade20k"
        found.sources["class_names"] = "the number of classes, as CSAIL's published files have"
    return found
