from pspfast.models.pspnet import PSPNet
from pspfast.models.pyramid import PyramidPooling

__all__ = ["PSPNet", "PyramidPooling"]
