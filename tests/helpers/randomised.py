"""Networks whose BatchNorms do something, and how far results are apart."""

from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def randomised(model: M) -> M:
    """Running statistics and affine parameters that differ from the identity."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest value."""
    return ((got.double() - expected.double()).abs().max() / expected.double().abs().max()).item()
