from pspfast.ops.batch_norm_relu import batch_norm_relu
from pspfast.ops.dilated_conv2d import dilated_conv2d
from pspfast.ops.pyramid_concat import pyramid_concat
from pspfast.ops.pyramid_conv2d import pyramid_conv2d
from pspfast.ops.pyramid_pool import pyramid_pool
from pspfast.ops.upsample_argmax import upsample_argmax
from pspfast.ops.upsample_concat_conv2d import upsample_concat_conv2d
from pspfast.ops.upsample_cross_entropy import upsample_cross_entropy
from pspfast.ops.upsample_softmax import upsample_softmax

__all__ = [
    "batch_norm_relu",
    "dilated_conv2d",
    "pyramid_concat",
    "pyramid_conv2d",
    "pyramid_pool",
    "upsample_argmax",
    "upsample_concat_conv2d",
    "upsample_cross_entropy",
    "upsample_softmax",
]
