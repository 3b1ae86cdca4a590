from pspfast.ops.pyramid_concat import pyramid_concat
from pspfast.ops.pyramid_conv2d import pyramid_conv2d
from pspfast.ops.pyramid_pool import pyramid_pool

__all__ = ["pyramid_concat", "pyramid_conv2d", "pyramid_pool"]
