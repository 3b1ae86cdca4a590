"""Two and three processes of uneven batches against one with the whole batch."""

from itertools import product

import pytest
import torch
from processes import run_processes
from synchronized import NormCase, joined, run_norms

from pspfast import backend
from pspfast.ops import batch_norm_relu

# Of the processes; one has nothing, or a single value for each channel.
SIZES = [[(3, 1)], [(2, 0, 4), (1, 1, 5)]]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def make_cases(sizes: tuple[int, ...]) -> list[NormCase]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    cases = []
    for dtype, has_residual, relu in product(DTYPES, (True, False), (True, False)):
        shape = sum(sizes), 19, *((1, 1) if sizes == (1, 1, 5) else (7, 5))
        maps = [
            (random(*shape) + shift).to(dtype).contiguous(memory_format=torch.channels_last)
            # The processes' means differ, and the gradient's mean matters.
            for shift in (torch.arange(shape[0])[:, None, None, None], 0.0, 0.5)
        ]
        weights = random(19).float().to(maps[0]), random(19).float().to(maps[0])
        cases.append(
            NormCase(maps[0], maps[1] if has_residual else None, maps[2], *weights, relu, sizes)
        )
    return cases


@pytest.mark.parametrize("all_sizes", SIZES, ids=str)
def test_equal_one_process_with_the_whole_batch(all_sizes: list[tuple[int, ...]]) -> None:
    cases = [case for sizes in all_sizes for case in make_cases(sizes)]
    results = run_processes(len(all_sizes[0]), run_norms, cases)
    for case, *parts in zip(cases, *results, strict=True):
        for part in parts[1:]:
            # All processes have the same bits.
            assert torch.equal(part["mean"], parts[0]["mean"])
            assert torch.equal(part["var"], parts[0]["var"])
        got, expected = joined(parts), case.run(None)
        assert got.keys() == expected.keys()
        rtol = 8 * torch.finfo(case.x.dtype).eps
        for name, value in expected.items():
            # Sums are rounded in another order.
            atol = 4 * rtol * value.abs().max().item()
            if case.x.dtype == torch.float64:
                rtol, atol = 1e-11, 1e-11
            torch.testing.assert_close(
                got[name], value, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_the_reference_has_no_processes() -> None:
    x, ones = torch.randn(2, 3, 4, 4), torch.ones(3)
    with (
        backend("reference"),
        pytest.raises(ValueError, match=r"^batch_norm_relu: group: expected None, as no kernel"),
    ):
        batch_norm_relu(x, None, None, ones, ones, group=object())  # type: ignore[arg-type]
