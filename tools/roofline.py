"""The time that a device needs at least for counted operators: a model, not a measurement."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tools.operator_costs import Cost


@dataclass(frozen=True)
class Chip:
    """Published peaks of an SXM module: dense tensor-core FLOP/s of convolutions and products, and
    bytes/s of its memory."""

    name: str
    tf32: float
    bf16: float
    bandwidth: float


# NVIDIA's data sheets: A100 80GB SXM (2.04 TB/s), H100 SXM (3.35 TB/s), H200 SXM (4.8 TB/s, and the
# rates of an H100), HGX B200 (8 TB/s). All but the first state rates with sparsity, which are twice
# the dense ones.
CHIPS = (
    Chip("A100", 156e12, 312e12, 2.04e12),
    Chip("H100", 494.5e12, 989.5e12, 3.35e12),
    Chip("H200", 494.5e12, 989.5e12, 4.8e12),
    Chip("B200", 1125e12, 2250e12, 8.0e12),
)


def least_seconds(costs: Iterable[Cost], flops_per_second: float, bandwidth: float) -> float:
    """The sum over launches of what takes longer, arithmetic or memory."""
    return sum(max(cost.flops / flops_per_second, cost.bytes / bandwidth) for cost in costs)
