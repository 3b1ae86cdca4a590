import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pspfast
from pspfast import PSPNet
from pspfast.models import PyramidPooling
from pspfast.models.pyramid import Head, PyramidConv2d, PyramidPriors


@pytest.mark.parametrize("align_corners", [True, False])
def test_equals_pooling_level_by_level(align_corners: bool) -> None:
    ppm = PyramidPooling(16, 4, (1, 2, 3, 6), align_corners).eval()
    x = torch.randn(2, 16, 13, 10)
    maps = [x]
    for b, level in zip((1, 2, 3, 6), ppm.features, strict=True):
        prior = level[1:](F.adaptive_avg_pool2d(x, b))
        maps.append(F.interpolate(prior, (13, 10), mode="bilinear", align_corners=align_corners))
    torch.testing.assert_close(ppm(x), torch.cat(maps, 1))


def test_batch_of_one_trains_with_running_statistics_in_the_1x1_level() -> None:
    ppm = PyramidPooling(8, 2, (1, 2)).train()
    bn = ppm.features[0][2]
    nn.init.normal_(bn.running_mean)
    before = bn.running_mean.clone(), bn.running_var.clone()
    x = torch.randn(1, 8, 6, 6)
    got = ppm(x)[:, 8:10, 0, 0]
    bn.eval()
    expected = ppm.features[0](x).flatten(1)
    torch.testing.assert_close(got, expected)
    assert torch.equal(bn.running_mean, before[0])
    assert torch.equal(bn.running_var, before[1])
    # The other level has four values per channel and trains as ever.
    assert ppm.features[1][2].num_batches_tracked == 1


def test_batch_of_two_trains_with_its_own_statistics() -> None:
    ppm = PyramidPooling(8, 2, (1,)).train()
    bn = ppm.features[0][2]
    ppm(torch.randn(2, 8, 6, 6))
    assert bn.num_batches_tracked == 1
    assert not torch.equal(bn.running_mean, torch.zeros(2))


def test_pspnet_trains_on_a_batch_of_one() -> None:
    model = PSPNet(18, classes=3, stem="7x7", head_channels=8, aux_channels=8)
    _, main_loss, aux_loss = model(torch.randn(1, 3, 41, 41), torch.randint(0, 3, (1, 41, 41)))
    (main_loss + aux_loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_converts_to_synchronised_batch_norm() -> None:
    model = PSPNet(18, classes=3, stem="7x7")
    keys = model.state_dict().keys()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert converted.state_dict().keys() == keys
    assert not any(isinstance(m, nn.BatchNorm2d) for m in converted.modules())


def test_converted_pspnet_gives_the_same_numbers() -> None:
    model = PSPNet(18, classes=3, stem="7x7").eval()
    x = torch.randn(2, 3, 41, 41)
    expected = model(x)
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(model)(x), expected)


def test_hooks_are_called_in_every_level_and_in_the_head() -> None:
    model = PSPNet(18, classes=3, stem="7x7").eval()
    called = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _m, _i, _o, name=name: called.append(name))
    model(torch.randn(1, 3, 33, 33))
    names = {name for name, _ in model.named_modules() if not name.startswith("aux")}
    # A list of modules, and what only training uses.
    assert names - set(called) == {"ppm.features", "criterion"}


def test_hooks_on_level_convolutions_see_and_change_outputs() -> None:
    ppm = PyramidPooling(8, 2, (1, 2, 3, 6)).eval()
    shapes = []
    for level in ppm.features:
        level[1].register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    ppm.features[3][1].register_forward_hook(lambda _m, _i, output: torch.full_like(output, -1))
    out = ppm(torch.randn(2, 8, 12, 12))
    assert shapes == [(2, 2, b, b) for b in (1, 2, 3, 6)]
    assert (out[:, -2:] == 0).all()
    assert (out[:, -4:-2] != 0).any()


class Network(nn.Module):
    """The pyramid and the first layers over it, where the concatenation is much larger than x."""

    def __init__(self, channels: int, bins: tuple[int, ...], align_corners: bool) -> None:
        super().__init__()
        self.ppm = PyramidPriors(channels, channels, bins)
        in_channels = channels * (1 + len(bins))
        conv = PyramidConv2d(in_channels, channels, 3, bins, align_corners)
        self.cls = Head(conv, nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.cls(x, self.ppm(x))

    def by_way_of_the_concatenation(self, x: Tensor) -> Tensor:
        ppm = PyramidPooling(x.shape[1], x.shape[1], self.ppm.bins, self.cls[0].align_corners)
        ppm.load_state_dict(self.ppm.state_dict())
        return self.cls(ppm.to(x.dtype)(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), (4, 1)])
def test_head_equals_convolution_of_the_concatenation(
    bins: tuple[int, ...], align_corners: bool, memory_format: torch.memory_format
) -> None:
    head = Network(8, bins, align_corners).double().to(memory_format=memory_format)
    x = torch.randn(2, 8, 13, 10, dtype=torch.float64).contiguous(memory_format=memory_format)
    torch.testing.assert_close(head(x), head.by_way_of_the_concatenation(x))


def test_head_under_autocast_and_compiled() -> None:
    head = Network(8, (1, 2, 3, 6), True)
    x = torch.randn(2, 8, 13, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.bfloat16
        torch.testing.assert_close(
            head(x), head.by_way_of_the_concatenation(x), atol=5e-2, rtol=5e-2
        )
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), head(x))


def largest_allocation(head: Head, x: Tensor) -> int:
    """Bytes of the largest block that a training step asks the allocator for, in any op."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        head(x).square().mean().backward()
    events = profiler.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    assert sizes
    return max(sizes)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_step_makes_nothing_of_the_size_of_the_upsampled_levels(
    memory_format: torch.memory_format,
) -> None:
    head = Network(16, (1, 2, 3, 6), True).to(memory_format=memory_format)
    x = torch.randn(2, 16, 41, 45).contiguous(memory_format=memory_format).requires_grad_()
    levels = 4 * 4 * x.numel()  # of bytes: L R = 4 C
    assert largest_allocation(head, x) < levels // 2
    with pspfast.backend("reference"):
        assert largest_allocation(head, x) > levels
