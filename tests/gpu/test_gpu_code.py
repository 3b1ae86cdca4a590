"""tools/gpu_code.py, and what it reads machine code with."""

import ctypes
import inspect
import re
from pathlib import Path

import pytest
import triton
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime.autotuner import Autotuner

from tools.gpu_code import SECTION, Row, main, merged, on_chips, widest
from tools.machine_code import LAUNCHERS, MachineCode, checked
from tools.occupancy import CHIPS, Chip, resident_blocks
from tools.report import with_section

BEGIN, END = f"<!-- {SECTION} -->", f"<!-- /{SECTION} -->"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/GPU.md"
# NVIDIA's own, which needs no GPU.
HEADER = Path(triton.__file__).parent / "backends/nvidia/include/cuda_occupancy.h"
ORACLE = """
#include "cuda_occupancy.h"
extern "C" int resident_blocks(
    int major, int registers, int threads, int shared, int of_block, int of_sm) {
  cudaOccDeviceProp device;
  device.computeMajor = major;
  device.computeMinor = 0;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = 2048;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 49152;
  device.sharedMemPerBlockOptin = of_block;
  device.sharedMemPerMultiprocessor = of_sm;
  device.reservedSharedMemPerBlock = 1024;
  device.numSms = 100;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = 0;
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = shared;
  cudaOccDeviceState state;
  state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
  cudaOccResult result;
  const auto error = cudaOccMaxActiveBlocksPerMultiprocessor(
      &result, &device, &kernel, &state, threads, shared);
  return error ? -error : result.activeBlocksPerMultiprocessor;
}
"""


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("occupancy")
    source, library = folder / "oracle.cpp", folder / "oracle.so"
    source.write_text(ORACLE)
    checked("g++", "-w", f"-I{HEADER.parent}", "-shared", "-fPIC", source, "-o", library)
    return ctypes.CDLL(str(library))


@given(
    arch=st.sampled_from(list(CHIPS)),
    registers=st.integers(16, 255),
    warps=st.integers(1, 16),
    shared=st.integers(0, 227 * 1024),
)
def test_occupancy(oracle: ctypes.CDLL, arch: int, registers: int, warps: int, shared: int) -> None:
    chip: Chip = CHIPS[arch]
    # Blocks of whole partitions, as all of ours are or are smaller than.
    threads = 32 * (warps if warps < 4 else warps // 4 * 4)
    expected = oracle.resident_blocks(
        arch // 10, registers, threads, shared, chip.shared_of_block, chip.shared
    )
    assert resident_blocks(arch, registers, threads, shared) == expected


def test_tensor_memory_limits_blocks() -> None:
    assert [resident_blocks(100, 32, 128, 0, columns) for columns in (0, 128, 256, 512)] == [
        16,
        4,
        2,
        1,
    ]


def code_of(sass: str) -> MachineCode:
    code = MachineCode("kernel", 90, 32, 128, 0, 0, 0, 0, 0, "", b"")
    code.__dict__["sass"] = sass
    return code


def test_reads_machine_code() -> None:
    code = code_of(
        """
        /*0000*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0010*/                   LDGSTS.E.BYPASS.LTC128B.64 [R9], desc[UR4][R2.64] ;
        /*0020*/                   LDG.E.U16 R8, desc[UR4][R2.64] ;
        /*0030*/                   STL.64 [R1], R4 ;
        /*0040*/                   HFMA2.MMA R0, -RZ, RZ, 0, 0 ;
        /*0050*/                   LDL R4, [R1] ;
        /*0060*/                   HGMMA.64x256x16.F32 R24, gdesc[UR8], R24 ;
        /*0070*/              @!P0 BRA 0x50 ;
        /*0080*/                   STG.E [R2.64], R4 ;
        /*0090*/                   BRA 0x90 ;
        """
    )
    assert code.global_loads == [128, 64, 16]
    assert code.global_stores == [32]
    assert code.spill_bytes == (8, 4)
    assert code.tensor_core_instructions == ["HGMMA.64x256x16.F32"]
    (loop,) = code.innermost_loops
    assert [line.split()[0] for line in loop] == ["LDL", "HGMMA.64x256x16.F32"]


def test_widest_access() -> None:
    code = code_of("        /*0000*/                   UTMALDG.4D [UR8], [UR4] ;")
    assert widest(code, [32, 128], "UTMALDG") == "128"
    assert widest(code, code.global_loads, "UTMALDG") == "box"
    with pytest.raises(ValueError):
        widest(code, code.global_stores, "UTMASTG")


def test_one_value_where_chips_agree() -> None:
    assert on_chips(["1", "1", "1"]) == "1"
    assert on_chips(["1", "2", "1"]) == "1 / 2 / 1"


def test_equal_rows_are_one() -> None:
    def row(dtype: str, layout: str, cell: str) -> Row:
        return Row("op", "kernel", (dtype,), (layout,), (cell,))

    rows = [row(d, x, "1" if d == "fp32" else "2") for x in "ab" for d in ("fp32", "fp16", "bf16")]
    assert merged([*rows, row("fp32", "c", "3")]) == [
        Row("op", "kernel", ("fp32",), ("a", "b"), ("1",)),
        Row("op", "kernel", ("fp16", "bf16"), ("a", "b"), ("2",)),
        row("fp32", "c", "3"),
    ]


def test_leaves_other_sections() -> None:
    page = f"before\n\n{BEGIN}\n\nold\n\n{END}\n\n<!-- other -->after\n"
    assert with_section(page, SECTION, "new") == page.replace("old", "new")
    assert with_section(f"{BEGIN}\n{END}", SECTION, "new") == f"{BEGIN}\n\nnew\n\n{END}"


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_refuses_a_page_without_markers(
    tmp_path: Path, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "GPU.md"
    output.write_text(page)
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(output)])
    assert f"{output}: expected one {BEGIN} and one {END} behind it" in capsys.readouterr().err
    assert output.read_text() == page


def test_page_has_every_kernel() -> None:
    cuda = {
        name
        for source in (ROOT / "csrc/cuda").iterdir()
        for name in re.findall(r"(\w+_kernel)\(const", source.read_text())
    }
    triton_kernels = {
        (value.fn if isinstance(value, Autotuner) else value).__name__
        for module in LAUNCHERS
        for name, value in inspect.getmembers(module)
        if name.endswith("_kernel")
    }
    assert len(cuda) >= 12 and len(triton_kernels) >= 11
    listed = set(re.findall(r"`(\w+_kernel)\b", PAGE.read_text()))
    assert listed == cuda | triton_kernels
