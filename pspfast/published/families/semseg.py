"""semseg's PSPNet, whose keys are this project's: ``layer0 … layer4 ppm cls aux``."""

from __future__ import annotations

from pspfast.published.found import Found
from pspfast.published.reading import WeightsFile
from pspfast.published.shapes import infer_backbone, infer_heads

_PUBLISHED = {150: "ade20k", 21: "voc2012", 19: "cityscapes"}


def recognise(file: WeightsFile) -> bool:
    """Whether a file has such keys."""
    return {"layer0.0.weight", "cls.0.weight", "cls.4.weight"} <= file.weights.keys()


def convert(file: WeightsFile) -> Found:
    """The weights as they are.

    semseg has one architecture of three depths; a network of other widths with these keys is this
    project's, and its weights alone do not tell its conventions.
    """
    found = Found("a state_dict of pspfast", (file.path,), file.weights)
    options = infer_backbone(found.name, file.weights)
    options |= infer_heads(found.name, file.weights)
    levels = options.pop("levels")
    found.note("shapes", **options)
    is_semseg = (
        options["stem"] == "deep"
        and options["layers"] >= 50
        and options["head_channels"] == 512
        and (options["aux_channels"], options["in_channels"]) == (256, 3)
        and levels in (0, 4)
    )
    if not is_semseg:
        if levels == 4:
            found.note("the usual levels", bins=(1, 2, 3, 6))
        return found
    found.family = "semseg's PSPNet"
    found.note("semseg", bins=(1, 2, 3, 6), align_corners=True, dilation="uniform")
    found.sources["preprocessing"] = "semseg"
    found.sources["class_names"] = "the number of classes, as semseg's published files have"
    found.class_list = _PUBLISHED.get(options["classes"])
    side = 713 if found.class_list == "cityscapes" else 473
    found.crop_size = (side, side)
    return found
