"""What came out of the caches' model."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch

from tools.network_calls import Call, network_calls

# Near the least that shared memory leaves a block of L1: 28 KB for four blocks of loss_bwd_kernel
# on sm_80. Kernels with more blocks at once hardly read anything twice.
L1_BYTES = 8 * 1024
# Of an A100, whose L2 of 40 MB is the smallest: two parts, of which either keeps what its own
# multiprocessors ask for.
L2_BYTES = 20 * 1024 * 1024
SECTOR_BYTES = 32
CLASSES = 19  # of the logits, as Cityscapes has them


class CountsStruct(ctypes.Structure):
    """Of caches.h."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "read",
            "written",
            "handed_on",
            "l2_reads",
            "l2_writes",
            "dram_reads",
            "dram_writes",
        )
    ]


@dataclass(frozen=True)
class Traffic:
    """Of one launch, in bytes."""

    least: int  # the different sectors that it reads, and those that it writes
    handed_on: int  # of these: read, and written by the op's kernel before
    dram: int
    l2: int

    @classmethod
    def of(cls, counts: CountsStruct) -> Traffic:
        return cls(
            *(
                SECTOR_BYTES * sectors
                for sectors in (
                    counts.read + counts.written,
                    counts.handed_on,
                    counts.dram_reads + counts.dram_writes,
                    counts.l2_reads + counts.l2_writes,
                )
            )
        )


def memory_bound(batch: int) -> list[Call]:
    """The calls that are counted, in bfloat16."""
    calls = network_calls(batch, [torch.bfloat16], CLASSES)
    # What those of one image launch, the others launch at a batch of one.
    return [call for call in calls if call.triton_bytes and "one image" not in call.op]
