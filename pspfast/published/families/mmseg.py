"""mmsegmentation's PSPNet, files of its versions 0.x and 1.x."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pspfast.published.families.mmseg_config import read_config
from pspfast.published.found import Found
from pspfast.published.preprocessing import Preprocessing
from pspfast.published.reading import WeightsFile
from pspfast.published.shapes import infer_backbone, infer_heads

_NAMES = (
    (r"backbone\.stem\.", "layer0."),
    (r"backbone\.conv1\.", "layer0.0."),
    (r"backbone\.bn1\.", "layer0.1."),
    (r"backbone\.", ""),
    (r"decode_head\.psp_modules\.(\d+)\.1\.conv\.", r"ppm.features.\1.1."),
    (r"decode_head\.psp_modules\.(\d+)\.1\.bn\.", r"ppm.features.\1.2."),
    (r"decode_head\.bottleneck\.conv\.", "cls.0."),
    (r"decode_head\.bottleneck\.bn\.", "cls.1."),
    (r"decode_head\.conv_seg\.", "cls.4."),
    (r"auxiliary_head\.convs\.0\.conv\.", "aux.0."),
    (r"auxiliary_head\.convs\.0\.bn\.", "aux.1."),
    (r"auxiliary_head\.conv_seg\.", "aux.4."),
)
_PUBLISHED = {150: "ade20k", 21: "voc2012", 19: "cityscapes"}
# strides and dilations of the stages, D8 and D32.
_STRIDES = {((1, 2, 1, 1), (1, 1, 2, 4)): 8, ((1, 2, 2, 2), (1, 1, 2, 4)): 32}


def recognise(file: WeightsFile) -> bool:
    """Whether a file has such keys."""
    return "decode_head.psp_modules.0.1.conv.weight" in file.weights


def convert(file: WeightsFile) -> Found:
    """Weights by other names, and what the configuration in the file says.

    Raises:
        ValueError: the backbone is another, or the configuration is of a network that PSPNet is
            not.
    """
    found = Found("mmsegmentation's PSPNet", (file.path,), _renamed(file.weights))
    options = infer_backbone(found.name, found.weights) | infer_heads(found.name, found.weights)
    levels = options.pop("levels")
    found.note("shapes", **options)
    text, classes, palette = _meta(file.meta)
    config = read_config(text)
    _take_config(found, config, levels)
    # All of mmsegmentation's ResNets contract, and none but D32 strides further.
    found.note("mmsegmentation", dilation="contracted", block_dilation="first", output_stride=8)
    if levels == 4:
        found.note("mmsegmentation", bins=(1, 2, 3, 6))
    if classes is not None and len(classes) == options["classes"]:
        found.class_names, found.sources["class_names"] = classes, "the file"
        if palette is not None and len(palette) == len(classes):
            found.palette = palette
    else:
        found.class_list = _PUBLISHED.get(options["classes"])
        found.sources["class_names"] = "the number of classes, as published files have"
    found.sources.setdefault("preprocessing", "mmsegmentation")
    return found


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        if key.startswith("data_preprocessor."):
            continue
        for pattern, name in _NAMES:
            new, count = re.subn(f"^{pattern}", name, key)
            if count:
                key = new
                break
        renamed[key] = value
    return renamed


def _meta(
    contents: Mapping[str, Any],
) -> tuple[str, tuple[str, ...] | None, tuple[tuple[int, int, int], ...] | None]:
    """The configuration's text, the class names and the palette, of either version."""
    meta = contents.get("meta")
    if not isinstance(meta, Mapping):
        return "", None, None
    text = meta.get("cfg", meta.get("config", ""))
    inner = meta.get("dataset_meta")
    named = inner if isinstance(inner, Mapping) else {k.lower(): v for k, v in meta.items()}
    classes, palette = named.get("classes"), named.get("palette")
    names = None
    if isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes):
        names = tuple(classes)
    colours = None
    if isinstance(palette, (list, tuple)) and all(map(_is_colour, palette)):
        colours = tuple((int(r), int(g), int(b)) for r, g, b in palette)
    return text if isinstance(text, str) else "", names, colours


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


def _take_config(found: Found, config: dict[str, Any], levels: int) -> None:
    source = "the file's configuration"
    model = _dict(config, "model")
    backbone, head = _dict(model, "backbone"), _dict(model, "decode_head")
    if isinstance(align := head.get("align_corners"), bool):
        found.note(source, align_corners=align)
    strides = tuple(map(_tuple, (backbone.get("strides"), backbone.get("dilations"))))
    if all(strides):
        if strides not in _STRIDES:
            raise ValueError(
                f"{found.name}: output_stride: expected strides and dilations of the stages as of "
                f"D8 or D32, got {strides[0]} and {strides[1]}"
            )
        found.note(source, output_stride=_STRIDES[strides])
    if isinstance(contracts := backbone.get("contract_dilation"), bool):
        found.note(source, dilation="contracted" if contracts else "uniform")
    if backbone.get("style") == "caffe":
        raise ValueError(
            f"{found.name}: expected blocks that stride in their 3×3 convolution, got style caffe"
        )
    if (bins := _tuple(head.get("pool_scales"))) and len(bins) == levels:
        found.note(source, bins=bins)
    if isinstance(dropout := head.get("dropout_ratio"), float):
        found.note(source, dropout=dropout)
    _take_preprocessing(found, config, model)
    for section in (_dict(model, "test_cfg"), config):
        crop = _tuple(section.get("crop_size"))
        if found.crop_size is None and crop and len(crop) == 2:
            found.crop_size = (crop[0], crop[1])
    # Labels of ADE20K's files are 0 for ignored pixels, then the classes.
    if found.options["classes"] == 150 and _has(config, "reduce_zero_label"):
        found.label_ids = "ade20k"


def _has(section: Any, name: str) -> bool:
    """Whether a setting is True anywhere in a configuration."""
    if isinstance(section, dict):
        return section.get(name) is True or any(_has(value, name) for value in section.values())
    return isinstance(section, (list, tuple)) and any(_has(value, name) for value in section)


def _take_preprocessing(found: Found, config: dict[str, Any], model: dict[str, Any]) -> None:
    """``model.data_preprocessor`` of 1.x, ``img_norm_cfg`` of 0.x."""
    for values, flips in (
        (_dict(model, "data_preprocessor"), "bgr_to_rgb"),
        (_dict(config, "img_norm_cfg"), "to_rgb"),
    ):
        mean, std = values.get("mean"), values.get("std")
        if not (_are_numbers(mean) and _are_numbers(std)):
            continue
        order = "rgb" if values.get(flips, True) else "bgr"
        found.preprocessing = Preprocessing.from_dict(
            {"mean": mean, "std": std, "channel_order": order, "value_range": (0, 255)}
        )
        found.sources["preprocessing"] = "the file's configuration"
        return


def _dict(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = section.get(name)
    return value if isinstance(value, dict) else {}


def _tuple(value: Any) -> tuple[int, ...]:
    is_ints = isinstance(value, (list, tuple)) and all(type(item) is int for item in value)
    return tuple(value) if is_ints else ()


def _are_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)
