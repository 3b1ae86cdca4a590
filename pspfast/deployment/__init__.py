"""Networks for other runtimes: ONNX and ``torch.export`` programs of standard operators."""

from pspfast.deployment.decompositions import decompositions
from pspfast.deployment.export import export
from pspfast.deployment.rewritten import export_rewritten, rewritten_program

__all__ = ["decompositions", "export", "export_rewritten", "rewritten_program"]
