"""How many blocks of a kernel a multiprocessor holds at once, from what the chip has."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Chip:
    """What a multiprocessor has, and how it is lent; memory in bytes."""

    # "Technical Specifications per Compute Capability", CUDA C++ Programming Guide.
    shared: int
    shared_of_block: int
    registers: int = 64 * 1024
    warps: int = 64
    blocks: int = 32
    # cuda_occupancy.h of the CUDA toolkit.
    partitions: int = 4  # each with its share of the registers
    registers_step: int = 256  # of a warp
    shared_step: int = 128
    shared_of_system: int = 1024  # of every block
    # "Tensor Memory", PTX ISA.
    tensor_columns: int = 512


CHIPS = {
    80: Chip(shared=164 * 1024, shared_of_block=163 * 1024),
    90: Chip(shared=228 * 1024, shared_of_block=227 * 1024),
    100: Chip(shared=228 * 1024, shared_of_block=227 * 1024),
}


def _rounded_up(size: int, step: int) -> int:
    return -(-size // step) * step


def resident_blocks(
    arch: int, registers: int, threads: int, shared: int, tensor_columns: int = 0
) -> int:
    """Blocks at once on a multiprocessor of sm_<arch>.

    Args:
        registers: of a thread.
        threads: of a block.
        shared: static and dynamic bytes of a block, without the system's.
        tensor_columns: of tensor memory, of a block.
    """
    chip = CHIPS[arch]
    if shared > chip.shared_of_block:
        return 0
    warps = -(-threads // WARP)
    registers_of_warp = _rounded_up(registers * WARP, chip.registers_step)
    fitting_warps = chip.registers // chip.partitions // registers_of_warp * chip.partitions
    limits = [
        chip.blocks,
        min(chip.warps, fitting_warps) // warps,
        chip.shared // _rounded_up(shared + chip.shared_of_system, chip.shared_step),
    ]
    if tensor_columns:
        limits.append(chip.tensor_columns // tensor_columns)
    return min(limits)


def warp_share(arch: int, blocks: int, threads: int) -> float:
    """Of the warps that a multiprocessor can hold."""
    return blocks * -(-threads // WARP) / CHIPS[arch].warps
