"""The CUDA kernels of pyramid_upsample on the emulation: no channels, infinite numbers, offsets
beyond 32 bits."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulated_pyramid_upsample import (
    FORMATS,
    Case,
    Upsample,
    assert_exact_to_rounding,
    concat,
    conv,
    reference,
)


@pytest.fixture
def upsample(emulated: Callable[[str], ctypes.CDLL]) -> Upsample:
    return Upsample(emulated("upsample_maps"))


@FORMATS
def test_first_channels_stay_if_nothing_is_copied(upsample: Upsample, channels_last: bool) -> None:
    case = concat(2, 8, 5, 4, x=8)
    got = upsample.forward(case, torch.randn(case.values_size), torch.float32, channels_last)
    assert got[:, :8].isnan().all()
    assert not got[:, 8:].isnan().any()


@FORMATS
def test_there_may_be_no_first_channels(upsample: Upsample, channels_last: bool) -> None:
    case = concat(2, 8, 5, 4, x=0)
    values, nothing = torch.randn(case.values_size), torch.randn(1)
    got = upsample.forward(case, values, torch.float32, channels_last, copied=nothing)
    assert_exact_to_rounding(got, reference(case, values.double()))


@FORMATS
@pytest.mark.parametrize("align", [False, True])
def test_infinity_stays_where_it_has_weight(
    upsample: Upsample, align: bool, channels_last: bool
) -> None:
    # The middle position lies on the middle source, the others have no weight there.
    case = conv(1, 8, 5, 9, bins=(1, 3), align=align)
    values = torch.randn(case.values_size)
    grad_map = torch.randn(case.map_size)
    values[0, 5, 1, 2, 3] = torch.inf
    grad_map[0, 3, 2, 4] = torch.inf
    ones = values.isinf().double().requires_grad_()
    weights = reference(case, ones)
    weights.backward(grad_map.isinf().double())
    assert ones.grad is not None
    got = upsample.forward(case, values, torch.float32, channels_last)
    assert torch.equal(got.isinf(), weights > 0)
    assert not got.isnan().any()
    got = upsample.backward(case, grad_map, channels_last)
    assert torch.equal(got.isinf(), ones.grad > 0)
    assert not got.isnan().any()


@FORMATS
@pytest.mark.parametrize(
    "case",
    [conv(2, 8, 1, 5), concat(2, 8, 1, 5, x=7), conv(2, 8, 1, 8)],
    ids=["conv", "concat", "vectors"],
)
def test_offsets_beyond_32_bits(
    upsample: Upsample, tmp_path: Path, case: Case, channels_last: bool
) -> None:
    """Image 1, and with channels_last pixel 4 of a row, begin at least 2³¹ elements behind the
    first, in a file that has only what is touched."""
    channels = 2**29
    elements = case.batch * channels * case.width
    flat = torch.from_file(str(tmp_path / "map"), shared=True, size=elements, dtype=torch.bfloat16)
    if channels_last:
        wide = flat.view(case.batch, 1, case.width, channels).movedim(-1, 1)
    else:
        wide = flat.view(case.batch, channels, 1, case.width)
    map_ = wide[:, : case.map_channels]
    values = torch.randn(case.values_size)
    x = torch.randn(case.batch, case.first_channel, 1, case.width).bfloat16()
    problem = upsample.problem(case, torch.bfloat16, channels_last)
    problem[3] = channels  # of the map
    copied = x.movedim(1, -1).contiguous() if channels_last else x
    error = upsample.library.pyramid_upsample(
        problem,
        None,
        None,
        ctypes.c_void_p(copied.data_ptr()),
        ctypes.c_void_p(values.data_ptr()),
        ctypes.c_void_p(flat.data_ptr()),
    )
    assert error == 0
    expected = upsample.forward(case, values, torch.bfloat16, channels_last, copied=x)
    assert torch.equal(map_, expected)
    grad_values = torch.full(case.values_size, torch.nan)
    error = upsample.library.pyramid_upsample_backward(
        problem, ctypes.c_void_p(flat.data_ptr()), ctypes.c_void_p(grad_values.data_ptr())
    )
    assert error == 0
    assert torch.equal(grad_values, upsample.backward(case, expected, channels_last))


@FORMATS
def test_backward_without_first_channels(upsample: Upsample, channels_last: bool) -> None:
    case = concat(2, 8, 5, 4, x=0)
    grad_map, values = torch.randn(case.map_size), torch.zeros(case.values_size).double()
    reference(case, values.requires_grad_()).backward(grad_map.double())
    assert values.grad is not None
    assert_exact_to_rounding(upsample.backward(case, grad_map, channels_last), values.grad, 4)
