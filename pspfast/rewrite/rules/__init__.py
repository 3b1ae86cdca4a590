"""What ``torch.compile(model, backend="pspfast")`` does to a graph, in this order."""

from pspfast.rewrite.rules import (
    pointwise_before_upsample,
    same_size_upsample,
    upsample_concat_conv2d,
    upsample_logits,
)

RULES = (
    same_size_upsample,
    pointwise_before_upsample,
    upsample_concat_conv2d,
    upsample_logits,
)
