"""A training step makes the host wait for the device nowhere."""

from collections.abc import Callable

import pytest
import torch
from small_runs import variant
from torch import Tensor
from waits import waits, watched

from pspfast.config import Config
from pspfast.scores import make_confusion
from pspfast.training.trainer import Trainer, train


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2, "checkpoint_activations": True}, {"precision": "bf16"}],
    ids=["plain", "accumulated and checkpointed", "bf16"],
)
def test_a_step_waits_for_nothing(
    config: Config, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[str]] = []
    monkeypatch.setattr(Trainer, "_step", watched(Trainer._step, found))
    train(variant(config, epochs=1, **changes))
    assert found == [[]] * 3


def masked_confusion(values: Tensor) -> Tensor:
    return torch.bincount(values[values > 3], minlength=5)


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (lambda x: x.sum().item(), ["item", "_local_scalar_dense"]),
        (lambda x: bool(x.any()), ["__bool__", "_local_scalar_dense"]),
        (lambda x: x.nonzero(), ["nonzero"]),
        (lambda x: x[x > 3], ["index"]),
        (lambda x: x.cpu(), ["cpu"]),
        (lambda x: x.tolist(), ["tolist"]),
        (masked_confusion, ["index", "bincount"]),
        (lambda x: x[x.argsort()], []),
        (lambda x: x + torch.tensor([1]), ["lift_fresh"]),
    ],
)
def test_waiting_is_found(read: Callable[[Tensor], object], names: list[str]) -> None:
    values = torch.arange(5)
    with waits() as reads:
        read(values)
    assert [name for name in reads.found if name != "is_nonzero"] == names


def test_confusion_matrix_counts_pairs() -> None:
    predicted, labels = torch.randint(7, (2, 3, 50, 40)).unbind()
    labels[labels == 6] = 255
    confusion = make_confusion(7, 255, torch.device("cpu"))
    for i in range(3):
        confusion.update(predicted[i : i + 1].to(torch.uint8), labels[i : i + 1].to(torch.uint8))
    expected = torch.zeros(7, 7, dtype=torch.long)
    for p, label in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
        if label != 255:
            expected[label, p] += 1
    assert torch.equal(confusion.compute(), expected)
