"""From files of weights to a network: recognise them, settle the options, load strictly."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from pspfast.published import own
from pspfast.published.families import classifier, csail, mmseg, semseg
from pspfast.published.found import Found
from pspfast.published.reading import WeightsFile, others_in, read_weights

T = TypeVar("T", bound=Any)

_COMPILE = "compile it with torch.compile(model, backend='pspfast') instead"
# Keys of other networks that come under the name of a PSPNet or near it.
_OTHERS = (
    (
        r"decoder\.psp\.blocks\.",
        "the PSPNet of segmentation_models_pytorch, another network (fusion of 1×1, levels first); "
        + _COMPILE,
    ),
    (r"decode_head\.(lateral|fpn)_convs\.", f"an UPerNet; {_COMPILE}"),
    (r"fpn_in\.", f"CSAIL's UPerNet decoder; {_COMPILE}"),
    (r"(segformer\.|decode_head\.(linear_fuse|fusion_conv))", f"a SegFormer; {_COMPILE}"),
    (r"classifier\.0\.convs\.", f"torchvision's DeepLabV3; {_COMPILE}"),
    (r"backbone\.bb_\d", "a PSPNet of PaddleSeg, which is not read"),
    (r"pretrained\.conv1\.", "a network of torch-encoding, which is not read"),
)
# What neither shapes nor PSPNet's defaults may decide: a wrong one loads and costs accuracy.
_NO_TRACE = ("align_corners", "dilation", "bins", "block_dilation")
_ADVICE = {
    "align_corners": "True (semseg) or False (mmsegmentation, CSAIL)",
    "dilation": "'uniform' (semseg) or 'contracted' (mmsegmentation, CSAIL, torchvision)",
    "block_dilation": "'both' (CSAIL, pspfast) or 'first' (mmsegmentation)",
    "bins": "one number for each level, as (1, 2, 3, 6)",
}


def find(source: str | Path | Sequence[str | Path], revision: str | None = None) -> Found:
    """What a file, CSAIL's two, a folder or a repository of the Hub holds.

    Raises:
        FileNotFoundError: there is no such file or repository.
        ValueError: it is damaged, or of another network.
    """
    if not isinstance(source, (str, Path)):
        if len(source) == 2:
            return csail.convert([read_weights(Path(path)) for path in source])
        if len(source) != 1:
            raise ValueError(
                f"from_pretrained: source: expected one file, or CSAIL's two, got {len(source)}"
            )
        source = source[0]
    return _recognise(read_weights(_locate(source, revision)))


def _locate(source: str | Path, revision: str | None) -> Path:
    path = Path(source)
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(
                f"{path}: expected a folder with model.safetensors{others_in(path)}"
            )
        return file
    is_name = isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source)
    is_file_name = path.suffix in (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar")
    if path.exists() or not is_name or is_file_name:
        return path
    from pspfast.published.hub import download

    return download(str(source), revision)


def _recognise(file: WeightsFile) -> Found:
    for family in (own, semseg, mmseg, classifier):
        if family.recognise(file):
            return family.convert(file)
    for pattern, what in _OTHERS:
        if any(re.match(pattern, key) for key in file.weights):
            raise ValueError(f"{file.path}: expected a PSPNet, got {what}")
    if csail.is_decoder(file):
        raise ValueError(
            f"{file.path}: this is the decoder of CSAIL's two files; expected the encoder, too: "
            "[encoder, decoder]"
        )
    keys = ", ".join(list(file.weights)[:4])
    raise ValueError(
        f"{file.path}: expected weights of a PSPNet or a ResNet classifier, got "
        f"{len(file.weights)} tensors of another network: {keys}"
    )


def load(cls: type[T], found: Found, options: Mapping[str, Any]) -> T:
    """A network in evaluation mode; see ``PSPNet.from_pretrained``.

    Args:
        cls: PSPNet, or a subclass with its constructor.
        found: of ``find``.
        options: those that the user gives.
    """
    classes = found.options.get("classes")
    chosen = settle_options(found, options)
    if "criterion" not in chosen:
        chosen["criterion"] = nn.CrossEntropyLoss(ignore_index=found.ignore_index)
    try:
        model = cls(**chosen)
    except ValueError as error:
        raise ValueError(f"{found.name}: {error}") from error
    take_weights(model, found, "from_pretrained")
    model.preprocessing, model.origin = found.preprocessing, found.report()
    if model.classes == classes:
        model.class_names, model.palette = names_of(found)
    return model.eval()


def settle_options(found: Found, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of PSPNet: those given, then those found; notes in ``found`` which were given.

    Raises:
        ValueError: one contradicts the shapes of the weights, or must be given.
    """
    free = {"classes", "aux"}
    for name, value in options.items():
        shape = found.options.get(name, value)
        if found.sources.get(name) == "shapes" and name not in free and shape != value:
            raise ValueError(
                f"from_pretrained: {name}: expected {shape} as {found.name} has, got {value}"
            )
        found.sources[name] = "given"
    chosen = {**found.options, **options}
    if found.is_backbone and "classes" not in chosen:
        raise ValueError(
            f"from_pretrained: classes: {found.name} is a classifier of images; give the number of "
            "classes of the segmentation, classes=…"
        )
    for name in _NO_TRACE:
        is_needed = {"bins": chosen.get("use_ppm", True)}
        is_needed["block_dilation"] = chosen["layers"] < 50 and not found.is_backbone
        if name not in chosen and is_needed.get(name, True):
            raise ValueError(
                f"from_pretrained: {name}: {found.name} does not tell it; give {name}: "
                f"{_ADVICE[name]}"
            )
    found.options = {name: value for name, value in chosen.items() if name != "criterion"}
    return chosen


def take_weights(model: Any, found: Found, user: str) -> None:
    """Loads the weights strictly, but for heads that start anew, of which a warning tells.

    Args:
        model: a PSPNet.
        found: of ``find``.
        user: who loads, for messages.

    Raises:
        ValueError: the weights are of another network; nothing is loaded then.
    """
    expected, weights = model.state_dict(), dict(found.weights)
    classes = weights["cls.4.weight"].shape[0] if "cls.4.weight" in weights else None
    anew = []
    if found.is_backbone:
        anew = [name for name in expected if not name.startswith("layer")]
    elif classes != model.classes:
        anew = [name for name in expected if name.startswith(("cls.4.", "aux.4."))]
    if not any(name.startswith("aux.") for name in weights):
        anew += [name for name in expected if name.startswith("aux.") and name not in anew]
    if model.aux is None:
        weights = {name: value for name, value in weights.items() if not name.startswith("aux.")}
    kept = {name: value for name, value in weights.items() if name not in anew}
    problem = differences({k: v for k, v in expected.items() if k not in anew}, kept)
    if problem:
        raise ValueError(f"{user}: {found.name} is of another network; {problem}")
    model.load_state_dict(kept, strict=False)
    if found.is_backbone:
        warnings.warn(f"{user}: {found.name} is a backbone: the heads start anew", stacklevel=4)
    elif anew:
        layers = ", ".join(sorted({name.rpartition(".")[0] for name in anew}))
        reason = f"{found.name} has {classes} classes, this network {model.classes}"
        if classes == model.classes:
            reason = f"{found.name} has no auxiliary head"
        warnings.warn(f"{user}: {reason}: layers that start anew: {layers}", stacklevel=4)


def differences(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Which keys and shapes differ; nothing where none do. Files from before torch 0.4.1 lack a
    counter of BatchNorm that plays no part in inference."""
    missing = [k for k in expected if k not in got and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in got if k not in expected]
    shapes = [
        f"{k}: expected {tuple(expected[k].shape)}, got {tuple(got[k].shape)}"
        for k in expected
        if k in got and expected[k].shape != got[k].shape
    ]
    if not (missing or unexpected or shapes):
        return ""
    return (
        f"missing keys: {_listing(missing)}; unexpected keys: {_listing(unexpected)}; "
        f"other shapes: {_listing(shapes)}"
    )


def names_of(found: Found) -> tuple[Any, Any]:
    """Names and colours of the classes; none where they are unknown, or the built-in lists are
    wanted and the ``train`` extra is not installed."""
    if found.class_names or found.class_list is None:
        return found.class_names, found.palette
    try:
        from pspfast.data import CLASSES
    except ModuleNotFoundError:
        return None, None
    classes = CLASSES[found.class_list]
    return classes.names, classes.palette


def _listing(items: list[str], shown: int = 8) -> str:
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return (", ".join(items[:shown]) + more) or "none"
