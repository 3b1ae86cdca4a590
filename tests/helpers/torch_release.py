"""Which torch the tests run with, where versions differ."""

import torch

#: Major and minor.
TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])
