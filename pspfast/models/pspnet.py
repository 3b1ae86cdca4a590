"""PSPNet (arXiv 1612.01105), a drop-in for semseg's ``PSPNet``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pspfast.backends import is_transformed
from pspfast.models.losses import check_target, is_fused, upsampled_loss
from pspfast.models.pyramid import PyramidConv2d, PyramidPriors, make_head
from pspfast.models.recompute import recompute_normalized_maps
from pspfast.models.resnet import (
    BlockDilation,
    DilatedConv2d,
    Dilation,
    Stem,
    check_choice,
    make_backbone,
)
from pspfast.ops import upsample_argmax
from pspfast.published.mixin import Pretrained


class PSPNet(Pretrained):
    """Pyramid Scene Parsing Network on a dilated ResNet.

    Constructor names, state_dict keys and shapes, and the forward contract are semseg's; its
    checkpoints load with ``load_state_dict`` once ``module.`` is stripped from their keys.

    Args:
        layers: ResNet depth: 18, 34, 50, 101 or 152.
        bins: b of each pyramid level.
        dropout: probability that ``Dropout2d`` drops a channel before a classifier.
        classes: K, at least 2.
        zoom_factor: 1, 2, 4 or 8; logits come at ``zoom_factor / 8`` of the image's resolution.
        use_ppm: whether the pyramid pooling module is used.
        criterion: loss module ``(logits [N, K, h, w], target [N, h, w]) -> scalar``; the default is
            ``nn.CrossEntropyLoss(ignore_index=255)``.
        pretrained: False, or the path of ImageNet weights in semseg's or torchvision's layout.
        stem: ``"deep"`` (64-64-128 channels, semseg), ``"deep_narrow"`` (32-32-64, mmseg v1c) or
            ``"7x7"`` (torchvision).
        dilation: ``"uniform"`` (semseg) or ``"contracted"``, where the first block of a dilated
            stage dilates by half (mmseg, CSAIL, torchvision).
        align_corners: of every bilinear interpolation.
        aux_channels: width of the auxiliary head.
        head_channels: width of the head, O.
        ppm_channels: R, the channels of a pyramid level; the default is those of ``layer4`` over
            the number of levels, which must divide them then.
        block_dilation: which 3×3 convolutions of a dilated ResNet-18 or 34 block dilate: ``"both"``
            or the ``"first"`` (mmseg).
        output_stride: 8, or 32, where dilated stages stride as well (mmseg's D32).
        aux: whether there is an auxiliary head; without, its loss is 0.
        in_channels: of the images.

    Raises:
        ValueError: an argument is outside its range, or ``pretrained`` does not fit.
        FileNotFoundError: ``pretrained`` names no file.

    Examples:
        >>> model = PSPNet(18, classes=21, head_channels=64)
        >>> images, labels = torch.randn(2, 3, 65, 65), torch.randint(0, 21, (2, 65, 65))
        >>> predicted, main_loss, aux_loss = model(images, labels)
        >>> (main_loss + 0.4 * aux_loss).backward()
        >>> model.eval()(images).shape, model.predict(images).shape
        (torch.Size([2, 21, 65, 65]), torch.Size([2, 65, 65]))
    """

    def __init__(
        self,
        layers: int = 50,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        classes: int = 2,
        zoom_factor: int = 8,
        use_ppm: bool = True,
        criterion: nn.Module | None = None,
        pretrained: bool | str | Path = False,
        *,
        stem: Stem = "deep",
        dilation: Dilation = "uniform",
        align_corners: bool = True,
        aux_channels: int = 256,
        head_channels: int = 512,
        ppm_channels: int | None = None,
        block_dilation: BlockDilation = "both",
        output_stride: int = 8,
        aux: bool = True,
        in_channels: int = 3,
    ) -> None:
        given = dict(locals())
        super().__init__()
        # Plain values, from which the same network can be made elsewhere.
        no_options = ("self", "__class__", "criterion", "pretrained")
        self.options = {name: value for name, value in given.items() if name not in no_options}
        self.options["bins"] = tuple(bins)
        # Features of stride 32 are not at any zoomed resolution.
        zoom_factors = (8,) if output_stride == 32 else (1, 2, 4, 8)
        check_choice("zoom_factor", zoom_factor, zoom_factors)
        widths = {"in_channels": in_channels, "head_channels": head_channels}
        widths |= {"aux_channels": aux_channels}
        if ppm_channels is not None:
            widths["ppm_channels"] = ppm_channels
        for name, got, least in (("classes", classes, 2), *((*item, 1) for item in widths.items())):
            if got < least:
                raise ValueError(f"PSPNet: {name}: expected at least {least}, got {got}")
        if pretrained is True:
            raise ValueError(
                "PSPNet: pretrained: expected False or the path of a file of ImageNet weights, "
                "got True; no file is downloaded or looked for"
            )
        self._classes = classes
        self.zoom_factor = zoom_factor
        self.use_ppm = use_ppm
        self.align_corners = align_corners
        self.output_stride = output_stride
        self.in_channels = in_channels
        self.criterion = nn.CrossEntropyLoss(ignore_index=255) if criterion is None else criterion

        stages, channels = make_backbone(
            layers,
            stem,
            dilation,
            block_dilation=block_dilation,
            output_stride=output_stride,
            in_channels=in_channels,
        )
        self.layer0, self.layer1, self.layer2, self.layer3, self.layer4 = stages
        if pretrained:
            from pspfast.published.families.classifier import load_imagenet_weights

            load_imagenet_weights(stages, pretrained)

        conv: nn.Conv2d
        if use_ppm:
            if not bins or (ppm_channels is None and channels % len(bins)):
                raise ValueError(
                    f"PSPNet: bins: expected a number of levels that divides {channels}, "
                    f"the channels of layer4, or ppm_channels, got {tuple(bins)}"
                )
            reduction = ppm_channels or channels // len(bins)
            self.ppm: nn.Module = PyramidPriors(channels, reduction, bins)
            fused = channels + len(bins) * reduction
            conv = PyramidConv2d(fused, head_channels, 3, bins, align_corners)
        else:
            conv = DilatedConv2d(channels, head_channels)
        self.cls: nn.Module = make_head(conv, classes, dropout)
        self.aux: nn.Module | None = None
        if aux:
            conv = DilatedConv2d(channels // 2, aux_channels)
            self.aux = make_head(conv, classes, dropout)

    def forward(
        self, x: Tensor, y: Tensor | None = None, *, upsample: bool = True
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Logits in evaluation; labels and losses in training.

        Args:
            x: images ``[N, in_channels, H, W]``, normalised; any H and W. At sizes 8n+1 the numbers
                are semseg's, which takes no others. With ``align_corners`` features lie on every
                eighth pixel only at these sizes: others are padded with zeros, the mean colour, at
                the bottom and right, and the logits are cropped. Without it nothing is padded.
            y: labels ``[N, h, w]``, needed in training; h = floor((H - 1) z / 8) + 1 with
                z = ``zoom_factor``, so h = H for the default of 8, and w likewise. Labels of larger
                images are brought there by ``y[:, :: 8 // z, :: 8 // z]``.
            upsample: False leaves the logits of evaluation at the resolution of the features, for
                :func:`pspfast.ops.upsample_argmax` and ``upsample_softmax``.

        Returns:
            In evaluation logits ``[N, K, h, w]``. In training ``(labels [N, h, w], main_loss,
            aux_loss)``; the auxiliary loss is not weighted yet (semseg adds 0.4 of it). Where the
            criterion is an ``nn.CrossEntropyLoss`` that takes the mean, losses and labels come from
            :func:`pspfast.ops.upsample_cross_entropy`, which gives 0 where no pixel counts.

        Raises:
            ValueError: x has another shape; or the criterion has an ``ignore_index`` and y another
                shape, or a value that is neither a class nor ``ignore_index``. Values are looked
                at on the CPU only, where that costs no synchronisation.
        """
        self._check_images("x", x)
        size = [(s - 1) * self.zoom_factor // 8 + 1 for s in x.shape[2:]]
        if self.training:
            check_target(y, (x.shape[0], *size), x, self.zoom_factor, self.classes, self.criterion)

        x = self._prepare(x)
        padded = [(s - 1) * self.zoom_factor // 8 + 1 for s in x.shape[2:]]
        with recompute_normalized_maps(self):
            x = self.layer2(self.layer1(self.layer0(x)))
            x_aux = self.layer3(x)
            x = self.layer4(x_aux)
            logits = self.cls(x, self.ppm(x)) if self.use_ppm else self.cls(x)
            aux_logits = self.aux(x_aux) if self.training and self.aux is not None else None
        if not self.training:
            return self._zoom(logits, padded, size) if upsample else logits
        assert y is not None
        criterion = self.criterion
        if is_fused(criterion, y):
            loss = upsampled_loss(criterion, y, padded, self.align_corners)
            main_loss, labels = loss(logits, return_argmax=True)
            labels = labels[:, : size[0], : size[1]].long()
            aux_loss = main_loss.new_zeros(()) if aux_logits is None else loss(aux_logits)
            return labels, main_loss, aux_loss
        logits = self._zoom(logits, padded, size)
        main_loss = criterion(logits, y)
        aux_loss = main_loss.new_zeros(())
        if aux_logits is not None:
            aux_loss = criterion(self._zoom(aux_logits, padded, size), y)
        return logits.argmax(1), main_loss, aux_loss

    @property
    def classes(self) -> int:
        """K: that of the classifier, which may have been replaced."""
        *_, classifier = self.cls.children()
        return getattr(classifier, "out_channels", self._classes)

    def predict(self, images: Tensor) -> Tensor:
        """Labels at the images' own size, computed in evaluation mode whatever the mode is now.

        Args:
            images: ``[N, 3, H, W]``, normalised as in training.

        Returns:
            Labels ``[N, H, W]`` in int64, each in 0 … K-1; an ordinary tensor, which can be the
            target of a training step.

        Raises:
            ValueError: the images have another shape.
        """
        with torch.inference_mode():
            labels = self._predict(images)
        return labels.long()

    def _predict(self, images: Tensor) -> Tensor:
        """The same in the smallest type for K, of no use to autograd in inference mode."""
        self._check_images("images", images)
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            padded = self._prepare(images)
            logits = self(padded, upsample=False)
        finally:
            for module in training:
                module.training = True
        if self.zoom_factor in (2, 4):
            # The resolution between, at which forward returns logits.
            logits = self._interpolate(
                logits, [(s - 1) * self.zoom_factor // 8 + 1 for s in padded.shape[2:]]
            )
        labels = upsample_argmax(logits, padded.shape[2:], align_corners=self.align_corners)
        return labels[:, : images.shape[2], : images.shape[3]]

    def _prepare(self, x: Tensor) -> Tensor:
        """Padded, and in the memory format that the kernels read without a copy; layers keep it."""
        x = self._pad(x)
        # torch.func.vmap has no memory formats but the contiguous one.
        return x if is_transformed() else x.contiguous(memory_format=torch.channels_last)

    def _pad(self, x: Tensor) -> Tensor:
        """Pads to a size at which the corners of the features are aligned with pixels."""
        bottom, right = (-(s - 1) % self.output_stride for s in x.shape[2:])
        if not self.align_corners or not (bottom or right):
            return x
        return F.pad(x, (0, right, 0, bottom))

    def _zoom(self, logits: Tensor, padded: list[int], size: list[int]) -> Tensor:
        """Interpolates to the padded image's resolution and cuts the padding off."""
        if self.zoom_factor != 1:
            logits = self._interpolate(logits, padded)
        return logits[:, :, : size[0], : size[1]]

    def _interpolate(self, logits: Tensor, size: list[int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)

    def _check_images(self, name: str, images: Tensor) -> None:
        if torch.jit.is_tracing():
            raise RuntimeError(
                "PSPNet: torch.jit.trace: TorchScript is not supported; use pspfast.export, or "
                "torch.export"
            )
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            expected = f"[N, {self.in_channels}, H, W]"
            raise ValueError(f"PSPNet: {name}: expected {expected}, got {tuple(images.shape)}")
