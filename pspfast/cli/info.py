"""What ``python -m pspfast info`` prints, for users and bug reports."""

from __future__ import annotations

import importlib
import platform

import torch

from pspfast import __version__, _extension, backends


def report() -> str:
    """Versions, what was built, which backend serves which tensors, and why one is missing."""
    has_triton = "triton" not in backends.MISSING
    triton = importlib.import_module("triton").__version__ if has_triton else "missing"
    lines = [
        f"pspfast      {__version__}",
        f"python       {platform.python_version()} on {platform.machine()}",
        f"torch        {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        f"triton       {triton}",
    ]
    build = _extension.build_info
    if build is None:
        lines.append(f"op library   {_extension.load_error}")
    else:
        cuda = f"CUDA {build['cuda']} for {build['cuda_archs']}" if build["cuda"] else "no CUDA"
        lines += [
            f"op library   for torch {build['least_torch']} and newer; built with torch "
            f"{build['torch']}, {build['compiler']}, {cuda}",
            f"CPU ISAs     built {build['isas']}; torch found "
            f"{torch.backends.cpu.get_cpu_capability()}",
        ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none visible"
    lines += [
        f"GPU          {gpu}",
        f"cpu tensors  {backends.default('cpu')}",
        f"cuda tensors {backends.default('cuda')}",
    ]
    lines += [f"no {name:<9} {reason}" for name, reason in backends.MISSING.items()]
    return "\n".join(lines)
