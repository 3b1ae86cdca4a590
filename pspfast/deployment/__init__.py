"""Networks for other runtimes: ONNX and ``torch.export`` programs of standard operators."""

from pspfast.deployment.decompositions import decompositions
from pspfast.deployment.export import export

__all__ = ["decompositions", "export"]
