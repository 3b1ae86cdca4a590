import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pspfast import PSPNet
from pspfast.models import PyramidPooling


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


def test_hooks_on_level_convolutions_are_called() -> None:
    ppm = PyramidPooling(8, 2, (1, 2, 3, 6))
    shapes = []
    for level in ppm.features:
        level[1].register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape)))
    ppm(torch.randn(2, 8, 12, 12))
    assert shapes == [(2, 2, b, b) for b in (1, 2, 3, 6)]
