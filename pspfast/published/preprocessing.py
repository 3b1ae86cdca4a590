"""What images go through before a network sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

ChannelOrder = Literal["rgb", "bgr"]


@dataclass(frozen=True)
class Preprocessing:
    """``(image - mean) / std`` of each channel, for values scaled to 0..1.

    Attributes:
        mean: of each channel, in ``channel_order``.
        std: likewise.
        channel_order: ``"rgb"`` or ``"bgr"``, of the channels that the network is given; images
            are in RGB before.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    channel_order: ChannelOrder = "rgb"

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean or not all(s > 0 for s in self.std):
            raise ValueError(
                "Preprocessing: expected a mean and a positive std for each channel, got "
                f"{self.mean} and {self.std}"
            )
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(
                f'Preprocessing: channel_order: expected "rgb" or "bgr", got {self.channel_order!r}'
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, with the range of values that the mean is of."""
        return {**asdict(self), "value_range": [0, 1]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``; a mean of values in another range is scaled."""
        low, high = values.get("value_range", (0, 1))
        if low != 0 or not high > 0:
            raise ValueError(f"Preprocessing: value_range: expected [0, x], got {[low, high]}")
        # Rounded, so that 123.675 of 255 is 0.485.
        mean, std = (tuple(round(v / high, 6) for v in values[name]) for name in ("mean", "std"))
        return cls(mean, std, values.get("channel_order", "rgb"))


#: Of ImageNet, which nearly every published backbone expects.
IMAGENET = Preprocessing()
