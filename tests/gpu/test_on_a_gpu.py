"""What only a GPU shows: CUDA graphs, streams, a second device, and determinism."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pspfast
from pspfast import backends
from pspfast.ops import (
    batch_norm_relu,
    dilated_conv2d,
    pyramid_concat,
    pyramid_conv2d,
    pyramid_pool,
    upsample_argmax,
    upsample_concat_conv2d,
    upsample_cross_entropy,
    upsample_softmax,
)

# torch reads it once, at the first product of matrices, and is deterministic with it only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

BINS = (1, 2, 3, 6)
SIZE = (25, 33)
BATCH, CLASSES = 2, 21


def on_a_gpu(backend: str) -> Any:
    reason = backends.MISSING.get(backend) or "there is no GPU"
    if torch.cuda.is_available():
        reason = "" if backend == "auto" else backends.why_not(backend, "cuda") or ""
    return pytest.param(backend, marks=pytest.mark.skipif(bool(reason), reason=reason))


pytestmark = pytest.mark.parametrize(
    "backend", [on_a_gpu(name) for name in ("auto", "cuda", "triton")], indirect=True
)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Chosen for the test, which computes in float32, not in TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with pspfast.backend(request.param):
        yield
    torch.backends.cudnn.allow_tf32 = before


def mean_of_squares(x: Tensor) -> Tensor:
    return x.square().mean()


def cross_entropy(logits: Tensor) -> Tensor:
    pixels = torch.arange(BATCH * SIZE[0] * SIZE[1], device=logits.device).view(BATCH, *SIZE)
    target = torch.where(pixels % 5 == 4, 255, pixels % CLASSES)
    return upsample_cross_entropy(logits, target)


def labels_and_loss(logits: Tensor) -> Tensor:
    """Labels as numbers, which have no gradient, and probabilities added to a buffer."""
    detached = logits.detach()
    out = torch.zeros(BATCH, CLASSES, *SIZE, device=logits.device)
    probabilities = upsample_softmax(detached, SIZE, out=out)
    return upsample_argmax(detached, SIZE) + mean_of_squares(probabilities) + 0 * logits.sum()


@dataclass(frozen=True)
class Task:
    """A function of tensors of these shapes, all of which get a gradient."""

    function: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]


LOGITS = (BATCH, CLASSES, 4, 5)
TASKS = {
    "pyramid_pool": Task(lambda x: pyramid_pool(x, BINS), ((BATCH, 16, 12, 9),)),
    "pyramid_concat": Task(
        lambda x, priors: pyramid_concat(x, priors, BINS), ((BATCH, 16, 12, 9), (BATCH, 8, 50))
    ),
    "pyramid_conv2d": Task(
        lambda x, priors, weight: pyramid_conv2d(x, priors, weight, BINS),
        ((BATCH, 16, 12, 9), (BATCH, 8, 50), (32, 48, 3, 3)),
    ),
    "upsample_concat_conv2d": Task(
        lambda x, small, weight: upsample_concat_conv2d([x, small], weight, relu=True),
        ((BATCH, 16, 12, 9), (BATCH, 8, 6, 5), (32, 24, 3, 3)),
    ),
    "dilated_conv2d": Task(
        lambda x, weight, bias: dilated_conv2d(x, weight, bias, dilation=2, relu=True),
        ((BATCH, 16, 12, 9), (32, 16, 3, 3), (32,)),
    ),
    "batch_norm_relu": Task(
        lambda x, weight, bias, residual: batch_norm_relu(x, None, None, weight, bias, residual),
        ((BATCH, 16, 12, 9), (16,), (16,), (BATCH, 16, 12, 9)),
    ),
    "upsample_cross_entropy": Task(cross_entropy, (LOGITS,)),
    "upsample_argmax and upsample_softmax": Task(labels_and_loss, (LOGITS,)),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def inputs_of(task: Task, seed: int, device: str = "cuda") -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in task.shapes]
    channels_last = torch.channels_last
    return [
        (t.contiguous(memory_format=channels_last) if t.dim() == 4 else t).to(device)
        for t in tensors
    ]


def results(task: Task, inputs: list[Tensor]) -> list[Tensor]:
    """The output, then the gradient of every input."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = task.function(*leaves)
    return [output.detach(), *torch.autograd.grad(mean_of_squares(output), leaves)]


def train_step(model: nn.Module, images: Tensor, target: Tensor) -> list[Tensor]:
    """The labels, both losses, and the gradient of every parameter."""
    labels, main_loss, aux_loss = model(images, target)
    grads = torch.autograd.grad(main_loss + 0.4 * aux_loss, list(model.parameters()))
    return [labels, main_loss.detach(), aux_loss.detach(), *grads]


def make_model(device: str = "cuda") -> pspfast.PSPNet:
    torch.manual_seed(0)
    model = pspfast.PSPNet(18, classes=CLASSES, dropout=0.0)
    return model.to(device, memory_format=torch.channels_last).train()


def batch_of(seed: int, device: str = "cuda") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 65, 49, generator=generator)
    target = torch.randint(CLASSES, (BATCH, 65, 49), generator=generator)
    return images.to(device), target.to(device)


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    assert all(map(torch.equal, got, expected))


def assert_close(got: list[Tensor], expected: list[Tensor], bound: float = 1e-3) -> None:
    """As far as the order of cuDNN's sums, which it chooses anew, goes."""
    for one, other in zip(got, expected, strict=True):
        if one.dtype == torch.int64:
            assert (one == other).double().mean() > 0.999
        else:
            assert (one - other).norm() <= bound * other.norm() + 1e-6


# Of a training step: BatchNorm over few values makes thousands of a rounding.
STEP_BOUND = 1e-2


def captured(
    function: Callable[..., list[Tensor]], inputs: list[Tensor]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """The function as a CUDA graph, of other inputs of the same shapes."""
    static = [tensor.clone() for tensor in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Kernels are compiled, tuned and chosen, and libraries make their workspaces.
        for _ in range(3):
            function(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(*static)

    def replay(inputs: list[Tensor]) -> list[Tensor]:
        for to, from_ in zip(static, inputs, strict=True):
            to.copy_(from_)
        graph.replay()
        return [output.clone() for output in outputs]

    return replay


@every_task
def test_cuda_graph(backend: None, task: Task) -> None:
    replay = captured(lambda *inputs: results(task, list(inputs)), inputs_of(task, seed=0))
    for seed in (1, 2):
        inputs = inputs_of(task, seed)
        assert_close(replay(inputs), results(task, inputs))


def test_cuda_graph_of_a_training_step(backend: None) -> None:
    model = make_model()
    replay = captured(lambda *batch: train_step(model, *batch), list(batch_of(0)))
    for seed in (1, 2):
        batch = batch_of(seed)
        assert_close(replay(list(batch)), train_step(model, *batch), STEP_BOUND)


def test_cuda_graph_of_inference(backend: None) -> None:
    model = make_model().eval()
    replay = captured(lambda images: [model.predict(images)], [batch_of(0)[0]])
    images, _ = batch_of(1)
    assert_close(replay([images]), [model.predict(images)])


def on_another_stream(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> list[Tensor]:
    """Inputs are made there as well, behind work that takes long: what runs on a stream of its own
    would read NaN."""
    stream = torch.cuda.Stream()
    late = [torch.full_like(t, torch.nan) if t.is_floating_point() else t * 0 for t in inputs]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # cycles: more than 20 ms
        for to, from_ in zip(late, inputs, strict=True):
            to.copy_(from_)
        outputs = function(*late)
    stream.synchronize()
    return outputs


@every_task
def test_non_default_stream(backend: None, task: Task) -> None:
    inputs = inputs_of(task, seed=0)
    # Tuning and timing synchronise: the second run shows what is ordered by the stream alone.
    expected = results(task, inputs)
    got = on_another_stream(lambda *late: results(task, list(late)), inputs)
    assert_close(got, expected)


def test_training_step_on_a_non_default_stream(backend: None) -> None:
    model, batch = make_model(), batch_of(0)
    expected = train_step(model, *batch)
    got = on_another_stream(lambda *late: train_step(model, *late), list(batch))
    assert_close(got, expected, STEP_BOUND)


two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")


@two_devices
@every_task
def test_second_device(backend: None, task: Task) -> None:
    """While the first is the current one."""
    with torch.cuda.device(0):
        got = results(task, inputs_of(task, seed=0, device="cuda:1"))
        assert torch.cuda.current_device() == 0
        expected = results(task, inputs_of(task, seed=0, device="cuda:0"))
    assert all(tensor.device == torch.device("cuda:1") for tensor in got)
    assert_close([tensor.to("cuda:0") for tensor in got], expected)


@two_devices
def test_training_step_on_a_second_device(backend: None) -> None:
    with torch.cuda.device(0):
        got = train_step(make_model("cuda:1"), *batch_of(0, "cuda:1"))
        assert torch.cuda.current_device() == 0
        expected = train_step(make_model("cuda:0"), *batch_of(0, "cuda:0"))
    assert_close([tensor.to("cuda:0") for tensor in got], expected, STEP_BOUND)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """What has no deterministic kernel raises an error."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@every_task
def test_determinism(backend: None, deterministic: None, task: Task) -> None:
    inputs = inputs_of(task, seed=0)
    assert_same(results(task, inputs), results(task, inputs))


def test_determinism_of_a_training_step(backend: None, deterministic: None) -> None:
    """Of all gradients but the stem's: they come through torch's pooling, which may add in any
    order."""
    model, batch = make_model(), batch_of(0)
    is_compared = [True] * 3 + [
        not name.startswith("layer0") for name, _ in model.named_parameters()
    ]
    first, second = (
        [t for t, keep in zip(train_step(model, *batch), is_compared, strict=True) if keep]
        for _ in range(2)
    )
    assert_same(first, second)
