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
    lines += [f"cpu tensors  {backends.default('cpu')}", *_gpus()]
    lines += [f"no {name:<9} {reason}" for name, reason in backends.MISSING.items()]
    return "\n".join(lines)


def _gpus() -> list[str]:
    """What serves the tensors on each GPU, and why others do not."""
    count = torch.cuda.device_count()
    if count == 0:
        return ["GPU          none visible", f"cuda tensors {backends.default('cuda')}"]
    lines = []
    for index in range(count):
        served = backends.default("cuda", index)
        without = backends.default("cuda", index, False)
        capability = backends.device_capability(index)
        facts = [torch.cuda.get_device_name(index)]
        if capability is not None:
            facts.append("compute capability {}.{}".format(*capability))
        if served == "cuda" and capability is not None:
            assert _extension.build_info is not None
            codes = str(_extension.build_info["cuda_archs"])
            served += f" ({backends.code_for(capability, codes)})"
        if without != served.split()[0]:
            served += f", {without} for ops without CUDA C++ kernels"
        lines.append(f"{f'cuda:{index}':<12} {served}: {', '.join(facts)}")
        for name in ("cuda", "triton"):
            reason = backends.why_not(name, "cuda", index)
            if reason is not None and name not in backends.MISSING:
                lines.append(f"{'':<12} no {name}: {reason}")
    return lines
