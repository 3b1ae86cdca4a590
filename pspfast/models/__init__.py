from pspfast.models.inference import optimize_for_inference
from pspfast.models.pspnet import PSPNet
from pspfast.models.pyramid import PyramidPooling

__all__ = ["PSPNet", "PyramidPooling", "optimize_for_inference"]
