from pspfast.ops.pyramid_pool import pyramid_pool

__all__ = ["pyramid_pool"]
