"""docs/GPU.md's tables of blocks, waves and bytes: the bars, and the tool still counts that."""

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.cuda_launches import COMPILE, CudaLaunch
from tools.machine_code import ROOT, checked
from tools.network_calls.call import pointers
from tools.traffic.__main__ import columns, main, name_of
from tools.traffic.counts import CountsStruct, Traffic, memory_bound
from tools.traffic.cuda import cuda_traffic

PAGE = ROOT / "docs/GPU.md"
LANGUAGES = ("cuda", "triton")
ENOUGH = 2 * 132  # blocks, for each multiprocessor of an H100
DRAM, L2 = 1.5, 3.0
# They add few sums: of a channel each, or of the blocks before them.
SMALL = {
    "add_cells_kernel",
    "add_segments_kernel",
    "add_sums_kernel",
    "mean_kernel",
    "mean_loss_kernel",
    "merge_moments_kernel",
    "merge_statistics_kernel",
}


def page_rows(language: str) -> list[dict[str, str]]:
    """Of a table, by column."""
    section = f"traffic_{language}"
    made = PAGE.read_text().split(f"<!-- {section} -->")[1].split(f"<!-- /{section} -->")[0]
    lines = [line.strip("| ").split(" | ") for line in made.splitlines() if line.startswith("| ")]
    return [dict(zip(columns(language), line, strict=True)) for line in lines[2:]]


def numbers(cell: str) -> list[float]:
    """Of all batches; one where they have the same."""
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_bars(language: str) -> None:
    rows = page_rows(language)
    assert len(rows) > 20
    for row in rows:
        kernel = row["kernel"].strip("`")
        if kernel in SMALL:
            continue
        assert min(numbers(row["blocks"])) >= ENOUGH, row
        assert max(numbers(row["DRAM"])) <= DRAM, row
        assert max(numbers(row["L2"])) <= L2, row


def test_page_is_what_the_tool_counts() -> None:
    of_page = {row["layout"]: row for row in page_rows("cuda") if row["op"] == "upsample_argmax"}
    calls = [call for call in memory_bound(1) if call.op == "upsample_argmax"]
    assert len(calls) == len(of_page) == 2
    for call in calls:
        assert call.cuda is not None
        (launch,) = launches = call.cuda()
        (traffic,) = cuda_traffic(launches)
        row = of_page["channels_last" if call.channels_last else "contiguous"]
        assert row["kernel"] == f"`{name_of(launch)}`"
        assert numbers(row["blocks"])[0] == launch.blocks
        assert row["DRAM"].split(" / ")[0] == f"{traffic.dram / traffic.least:.2f}"
        assert row["L2"].split(" / ")[0] == f"{traffic.l2 / traffic.least:.2f}"
        # Every sector of the call's tensors, and of no other.
        assert traffic.least == pytest.approx(call.cuda_bytes[0], rel=1e-3)


def test_counts_a_copy_of_64_floats() -> None:
    arguments = (*pointers(2), ctypes.c_int(-1))
    launch = CudaLaunch("harness", "copy_all_but", 1, 64, 0, "copy_all_but_one", arguments)
    size = 2 * 64 * 4
    assert cuda_traffic([launch]) == [Traffic(size, 0, size, size)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("caches") / "caches.so"
    checked(*COMPILE, "-shared", "-fPIC", ROOT / "tools/traffic/caches.cpp", "-o", library)
    loaded = ctypes.CDLL(str(library))
    loaded.make_caches.restype = ctypes.c_void_p
    return loaded


def counted(caches: ctypes.CDLL, requests: Sequence[str | tuple[str, list[int]]]) -> list[int]:
    """What an L1 of two sectors and an L2 of four make of ``"launch"``, ``"block"`` and
    ``(verb, sectors)``: the fields of Counts, of the last launch."""
    made = ctypes.c_void_p(caches.make_caches(ctypes.c_int64(64), ctypes.c_int64(128)))
    for request in requests:
        if isinstance(request, str):
            {"launch": caches.begin_launch, "block": caches.begin_block}[request](made)
            continue
        verb, sectors = request
        addresses = (ctypes.c_uint64 * len(sectors))(*(32 * s + 4 for s in sectors))
        size = (ctypes.c_int64(len(sectors)), ctypes.c_int64(4))
        caches.access_all(made, addresses, *size, ctypes.c_bool(verb == "write"))
    counts = CountsStruct()
    caches.get_counts(made, ctypes.byref(counts))
    caches.delete_caches(made)
    return [getattr(counts, name) for name, _ in CountsStruct._fields_]


# Different sectors that were read, and written; those read that an earlier launch wrote; reads and
# writes of L2; and of DRAM.
@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        # Threads of a warp that read the same.
        ([("read", [0, 0, 1, 0])], [2, 0, 0, 2, 0, 2, 0]),
        # Again, from L1.
        ([("read", [0, 1]), ("read", [0, 1])], [2, 0, 0, 2, 0, 2, 0]),
        # From L2: by another block, or after two other sectors.
        ([("read", [0]), "block", ("read", [0])], [1, 0, 0, 2, 0, 1, 0]),
        ([("read", [0]), ("read", [1, 2]), ("read", [0])], [3, 0, 0, 4, 0, 3, 0]),
        # From DRAM again, after four others.
        ([("read", [0]), ("read", [1, 2, 3, 4]), ("read", [0])], [5, 0, 0, 6, 0, 6, 0]),
        # Twice to L2 and once to DRAM; twice after four others.
        ([("write", [0]), ("write", [0])], [0, 1, 0, 0, 2, 0, 1]),
        ([("write", [0]), ("read", [1, 2, 3, 4]), ("write", [0])], [4, 1, 0, 4, 2, 4, 2]),
        # What was written and what was read is in L2.
        ([("write", [0]), ("read", [0])], [1, 1, 0, 1, 1, 0, 1]),
        ([("read", [0]), ("write", [0])], [1, 1, 0, 1, 1, 1, 1]),
        # A launch begins with empty caches, and knows what was handed on to it.
        ([("write", [0, 1]), "launch", ("read", [0, 2])], [2, 0, 1, 2, 0, 2, 0]),
    ],
)
def test_caches(
    caches: ctypes.CDLL, requests: list[str | tuple[str, list[int]]], expected: list[int]
) -> None:
    assert counted(caches, ["launch", *requests]) == expected


def test_refuses_a_page_without_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "GPU.md"
    output.write_text("a page\n")
    with pytest.raises(SystemExit, match="2"):
        main(["--output", str(output)])
    assert f"{output}: expected one <!-- traffic_cuda -->" in capsys.readouterr().err
    assert output.read_text() == "a page\n"
