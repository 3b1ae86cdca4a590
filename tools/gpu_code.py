"""Puts the machine code of all GPU kernels into tables: ``python -m tools.gpu_code``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import triton
from tqdm import tqdm

from tools.cuda_launches import CudaLaunch
from tools.machine_code import (
    DTYPES,
    MachineCode,
    checked,
    compile_cuda,
    noted_launches,
    nvcc_knows,
)
from tools.network_calls import Call, network_calls
from tools.network_calls.boxes import box_calls
from tools.occupancy import CHIPS, resident_blocks, warp_share
from tools.report import table, with_section, write_whole

SECTION = "gpu_code"
# Chips have them from this compute capability on.
DESCRIPTORS_SINCE = 90
HEADER = (
    "op",
    "kernel",
    "type",
    "layout",
    "registers",
    "threads",
    "stack",
    "spilled",
    "shared",
    "blocks",
    "warps",
    "load",
    "store",
)


@dataclass(frozen=True)
class Row:
    """A kernel on all chips; ``cells`` are those of HEADER behind the layout, and more."""

    op: str
    kernel: str
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...]
    cells: tuple[str, ...]

    def texts(self) -> list[str]:
        return [self.op, self.kernel, ", ".join(self.dtypes), ", ".join(self.layouts), *self.cells]


def on_chips(values: Sequence[str]) -> str:
    """One value where all chips have the same."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def widest(code: MachineCode, accesses: Sequence[int], unit: str) -> str:
    """Bits of the widest of a thread's accesses; none where the chip's unit has them all."""
    return "box" if not accesses and unit in code.sass else str(max(accesses))


def resources(code: MachineCode, dynamic_shared: int) -> list[str]:
    shared = code.static_shared + dynamic_shared
    blocks = resident_blocks(code.arch, code.registers, code.threads, shared, code.tensor_columns)
    stored, loaded = code.spill_bytes
    return [
        str(code.registers),
        str(code.threads),
        str(code.stack),
        f"{stored} + {loaded}" if stored + loaded else "0",
        f"{code.static_shared} + {dynamic_shared}",
        str(blocks),
        f"{warp_share(code.arch, blocks, code.threads):.0%}",
        widest(code, code.global_loads, "UTMALDG"),
        widest(code, code.global_stores, "UTMASTG"),
    ]


def cells_of(
    codes: Sequence[MachineCode], dynamic_shared: Sequence[int], more: str
) -> tuple[str, ...]:
    """Of one kernel on every chip."""
    columns = zip(*map(resources, codes, dynamic_shared), strict=True)
    return *map(on_chips, columns), more


def bytes_an_element(call: Call, moved: int | None) -> str:
    return "few" if moved is None else f"{moved / call.elements:.2f} {call.element}"


def layout(call: Call) -> str:
    return "channels_last" if call.channels_last else "contiguous"


def cuda_kernel(launch: CudaLaunch) -> str:
    """Its name and template arguments, element types as T."""
    # A kernel that is no template has no arguments.
    match = re.search(r"(\w+)(<.*?>)?\(", launch.kernel)
    assert match is not None
    arguments = re.sub(r"float|__half|__nv_bfloat16", "T", match[2] or "")
    return f"`{match[1]}{arguments}`"


def cuda_rows(calls: Iterable[Call]) -> Iterator[Row]:
    for call in calls:
        if call.cuda is None:
            continue
        for launch, moved in zip(call.cuda(), call.cuda_bytes, strict=True):
            codes = [
                code
                for arch in CHIPS
                for code in compile_cuda(launch.stem, arch)
                if code.name == launch.kernel
            ]
            assert [code.threads for code in codes] == [launch.threads] * len(CHIPS), launch
            cells = cells_of(
                codes, [launch.shared_bytes] * len(CHIPS), bytes_an_element(call, moved)
            )
            yield Row(call.op, cuda_kernel(launch), (DTYPES[call.dtype],), (layout(call),), cells)


def triton_rows(calls: Iterable[Call], chips: Iterable[int] = CHIPS) -> Iterator[Row]:
    for call in calls:
        with noted_launches() as launches:
            call.triton()
            taken = launches.taken()
        for i, launch in enumerate(taken):
            codes = [launch.compiled(arch) for arch in chips]
            name = launch.kernel.__name__
            if call.triton_bytes:
                kernel = f"`{name}`"
                more = bytes_an_element(call, call.triton_bytes[i])
            else:
                kernel = f"`{name}` {launch.args['BLOCK_M']}×{launch.args['BLOCK_N']}"
                more = on_chips([", ".join(c.tensor_core_instructions) or "none" for c in codes])
            cells = cells_of(codes, [code.dynamic_shared for code in codes], more)
            yield Row(call.op, kernel, (DTYPES[call.dtype],), (layout(call),), cells)


def merged(rows: Iterable[Row]) -> list[Row]:
    """Types, and then layouts, in one row where all else is the same."""

    def united(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(first + second))

    by_type: dict[tuple, Row] = {}
    for row in rows:
        key = (row.op, row.kernel, row.layouts, row.cells)
        dtypes = united(by_type[key].dtypes, row.dtypes) if key in by_type else row.dtypes
        by_type[key] = Row(row.op, row.kernel, dtypes, row.layouts, row.cells)
    by_layout: dict[tuple, Row] = {}
    for row in by_type.values():
        key = (row.op, row.kernel, row.dtypes, row.cells)
        layouts = united(by_layout[key].layouts, row.layouts) if key in by_layout else row.layouts
        by_layout[key] = Row(row.op, row.kernel, row.dtypes, layouts, row.cells)
    return sorted(by_layout.values(), key=lambda row: row.op)


def section(progress: bool = True) -> str:
    """All of it between the markers."""
    progress_of = partial(tqdm, disable=not progress, unit="call")
    cuda: list[Row] = []
    memory_bound: list[Row] = []
    convolutions: list[Row] = []
    for call in progress_of(network_calls()):
        cuda += cuda_rows([call])
        (memory_bound if call.triton_bytes else convolutions).extend(triton_rows([call]))
    with_boxes = [arch for arch in CHIPS if arch >= DESCRIPTORS_SINCE]
    convolutions += triton_rows(progress_of(list(box_calls())), with_boxes)
    release = re.search(r"release [\d.]+", checked("nvcc", "--version"))
    assert release is not None
    moved = (*HEADER, "bytes an element")
    return "\n\n".join(
        [
            "### CUDA",
            f"nvcc {release[0]}.",
            table(moved, [row.texts() for row in merged(cuda)]),
            "### Triton",
            f"Triton {triton.__version__}.",
            table(moved, [row.texts() for row in merged(memory_bound)]),
            "### Triton's convolutions",
            "Every tile that tuning chooses among; M×N results are a program's.\n"
            "`_conv_box_kernel`, which needs tensor descriptors, has its values of sm_90 / sm_100.",
            table((*HEADER, "tensor cores"), [row.texts() for row in merged(convolutions)]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_code", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/GPU.md"))
    options = parser.parse_args(arguments)
    try:
        # What is wrong with the page shows before the minutes of compiling.
        with_section(options.output.read_text(), SECTION, "")
        for arch in CHIPS:
            if not nvcc_knows(arch):
                raise ValueError(f"nvcc: expected one on PATH that knows sm_{arch}, got none")
        page = with_section(options.output.read_text(), SECTION, section())
        write_whole(options.output, page.encode())
    except (OSError, ValueError) as error:
        parser.error(f"{options.output}: {error}")


if __name__ == "__main__":
    main()
