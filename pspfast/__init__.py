"""PSPNet (arXiv 1612.01105) on kernels of its own."""

from importlib.metadata import version

from pspfast._source_folder import built_path

__path__ = built_path(__path__)

from pspfast import flops, ops
from pspfast.backends import backend
from pspfast.deployment import decompositions, export, export_rewritten, rewritten_program
from pspfast.models import PSPNet, optimize_for_inference
from pspfast.rewrite.explain import explain

__version__ = version("pspfast")
__all__ = [
    "PSPNet",
    "backend",
    "decompositions",
    "explain",
    "export",
    "export_rewritten",
    "flops",
    "ops",
    "optimize_for_inference",
    "rewritten_program",
]
