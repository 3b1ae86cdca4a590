"""What tests on tensors of more than 2³¹ elements share."""

from collections.abc import Callable

from torch import Tensor

Sparse = Callable[..., Tensor]
# Of bfloat16, which the interpreter truncates.
CLOSE = {"rtol": 1.02 * 2**-7, "atol": 1e-5}


def is_long(*tensors: Tensor) -> bool:
    return all(tensor.numel() > 2**31 for tensor in tensors)
