"""What ``torch.compile(model, backend="pspfast")`` does to a graph, in this order."""

from pspfast.rewrite.rules import (
    batch_norm_relu,
    dilated_conv2d,
    folded_conv2d,
    merged_pointwise,
    pointwise_before_upsample,
    pyramid_pool,
    same_size_upsample,
    summed_upsample,
    upsample_concat_conv2d,
    upsample_logits,
)

RULES = (
    same_size_upsample,
    summed_upsample,
    pointwise_before_upsample,
    upsample_concat_conv2d,
    merged_pointwise,
    upsample_logits,
    pyramid_pool,
    folded_conv2d,
    dilated_conv2d,
    batch_norm_relu,
)
