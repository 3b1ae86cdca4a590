import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pspfast.data import IMAGENET_MEAN, IMAGENET_STD, EvalTransform, TrainTransform

ALMOST_ONE = 1 - 2**-24
BILINEAR = v2.InterpolationMode.BILINEAR


def pair(height, width, seed=0):
    """An image of smooth noise with a label map of random ids."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (3, height // 4 + 1, width // 4 + 1), generator=generator)
    image = F.resize(coarse.float(), [height, width], antialias=False).round().to(torch.uint8)
    label = torch.randint(0, 20, (height, width), generator=generator, dtype=torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(label)


def to_bytes(image):
    """Undo the normalisation: values 0 to 255."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (image * std[:, None, None] + mean[:, None, None]) * 255


def fix_draws(
    monkeypatch, scale=0.0, rotated=0.9, blurred=0.9, flipped=0.9, angle=0.5, y=0.0, x=0.0
):
    """Make the transform draw these numbers; 0.9 is above the probability one half."""
    values = torch.tensor([scale, rotated, blurred, flipped, angle, y, x])
    monkeypatch.setattr(torch, "rand", lambda count: values[:count])


def whole_canvas(image, label, params, crop):
    """Every step on the whole canvas, in order, one library call for each."""
    size, angle = params["size"], params["angle"]
    mean = [round(255 * m) for m in IMAGENET_MEAN]
    image = F.resize(image, size, interpolation=BILINEAR, antialias=False)
    label = F.resize(label, size, interpolation=v2.InterpolationMode.NEAREST)
    if angle:
        image = F.rotate(image, angle, interpolation=BILINEAR, fill=mean)
        label = F.rotate(label, angle, interpolation=v2.InterpolationMode.NEAREST, fill=255)
    if params["blurred"]:
        image = F.gaussian_blur(image, [5, 5], [1.1, 1.1])
    cols = params["cols"]
    if params["flipped"]:
        image, label = F.hflip(image), F.hflip(label)
        cols = (size[1] - cols[1], size[1] - cols[0])  # drawn before the mirror, as uniform
    height, width = crop
    padding = []
    for missing in (max(width - size[1], 0), max(height - size[0], 0)):
        padding.append((missing // 2, missing - missing // 2))
    (left, right), (top, bottom) = padding
    image = F.pad(image, [left, top, right, bottom], fill=mean)
    label = F.pad(label, [left, top, right, bottom], fill=255)
    image = F.crop(image, params["rows"][0], cols[0], height, width)
    return image, F.crop(label, params["rows"][0], cols[0], height, width)


@pytest.mark.parametrize("size", [(61, 83), (40, 30), (97, 20)])
@pytest.mark.parametrize("crop", [(33, 41), (64, 80)])
def test_equals_every_step_on_the_whole_canvas(size, crop):
    image, label = pair(*size)
    transform = TrainTransform(crop, rotate=25.0)
    for seed in range(15):
        torch.manual_seed(seed)
        params = transform.make_params([image, label])
        torch.manual_seed(seed)
        got_image, got_label = transform(image, label)
        want_image, want_label = whole_canvas(image, label, params, crop)
        # One grey level: the rotation's coordinates are rounded relative to another origin.
        difference = (to_bytes(got_image) - want_image).abs()
        assert difference.max() <= 1.01
        assert (difference > 0.01).float().mean() < 0.02
        # For the same reason a coordinate halfway between two labels may fall to either.
        assert (got_label != want_label).float().mean() < 0.01


def test_image_and_label_stay_aligned():
    label = torch.arange(6, dtype=torch.uint8).reshape(2, 3)
    label = label.repeat_interleave(45, 0).repeat_interleave(40, 1)
    image = (label * 40).expand(3, -1, -1)
    transform = TrainTransform((80, 100), rotate=30.0)
    compared = 0
    for seed in range(60):
        torch.manual_seed(seed)
        got, ids = transform(tv_tensors.Image(image), tv_tensors.Mask(label))
        values = to_bytes(got)
        # Labels are 40 apart; bilinear, nearest and blur differ near their edges only.
        around = ids[None].float()
        high = torch.nn.functional.max_pool2d(around, 11, 1, 5)
        low = -torch.nn.functional.max_pool2d(-around, 11, 1, 5)
        within = torch.zeros_like(ids, dtype=torch.bool)
        within[5:-5, 5:-5] = True
        inside = (high == low)[0] & (ids != 255) & within
        expected = ids.float() * 40
        assert (values - expected)[:, inside].abs().max() < 1.01
        ignored = (low == 255)[0] & within
        mean = torch.tensor(IMAGENET_MEAN)[:, None] * 255
        if ignored.any():
            assert (values[:, ignored] - mean).abs().max() < 0.51
        compared += int(inside.sum())
    assert compared > 60 * 80 * 100 / 3


def test_result_types_and_exact_size():
    transform = TrainTransform((57, 65))
    for height, width in ((8, 300), (57, 65), (200, 9), (120, 130)):
        image, label = transform(*pair(height, width))
        assert type(image) is torch.Tensor and type(label) is torch.Tensor
        assert image.shape == (3, 57, 65) and image.dtype == torch.float32
        assert label.shape == (57, 65) and label.dtype == torch.int64


@pytest.mark.parametrize(
    ("draw", "height", "width"), [(0.0, 51, 33), (ALMOST_ONE, 202, 132), (1 / 3, 101, 66)]
)
def test_scale_is_uniform_between_its_ends(monkeypatch, draw, height, width):
    fix_draws(monkeypatch, scale=draw)
    assert TrainTransform((8, 8)).make_params([*pair(101, 66)])["size"] in (
        [height, width],
        [height - 1, width],  # 101 / 2 rounds to the even neighbour
    )


@pytest.mark.parametrize(("draw", "angle"), [(0.0, -10), (0.5, 0), (ALMOST_ONE, 10)])
def test_angle_is_uniform_between_its_ends(monkeypatch, draw, angle):
    fix_draws(monkeypatch, rotated=0.49, angle=draw)
    params = TrainTransform((8, 8)).make_params([*pair(20, 20)])
    assert params["angle"] == pytest.approx(angle, abs=1e-4)


def test_crop_reaches_both_ends(monkeypatch):
    transform = TrainTransform((8, 5), scale=(1, 1))
    image, label = pair(11, 9)
    for draw, rows, cols in ((0.0, (0, 8), (0, 5)), (ALMOST_ONE, (3, 11), (4, 9))):
        fix_draws(monkeypatch, y=draw, x=draw)
        params = transform.make_params([image, label])
        assert (params["rows"], params["cols"]) == (rows, cols)
        assert torch.equal(transform(image, label)[1], label[slice(*rows), slice(*cols)].long())


def test_crop_places_and_probabilities_are_uniform():
    transform = TrainTransform((8, 8), scale=(1, 1), blur=0.3, flip=0.8)
    inputs = [*pair(11, 8)]
    torch.manual_seed(0)
    drawn = [transform.make_params(inputs) for _ in range(4000)]
    # 0.03 is four standard deviations of a share among 4000.
    for start in range(4):
        assert sum(p["rows"][0] == start for p in drawn) / 4000 == pytest.approx(0.25, abs=0.03)
    for name, share in (("blurred", 0.3), ("flipped", 0.8), ("angle", 0.5)):
        assert sum(bool(p[name]) for p in drawn) / 4000 == pytest.approx(share, abs=0.03)


def test_padding_is_even_with_the_odd_pixel_last(monkeypatch):
    fix_draws(monkeypatch)
    image, label = pair(4, 6)
    got_image, got_label = TrainTransform((9, 8), scale=(1, 1), ignore_index=77)(image, label)
    assert torch.equal(got_label[2:6, 1:7], label.long())
    outside = torch.ones(9, 8, dtype=torch.bool)
    outside[2:6, 1:7] = False
    assert (got_label[outside] == 77).all()
    assert (
        to_bytes(got_image)[:, outside].sub(torch.tensor([[124], [116], [104]])).abs().max() < 0.01
    )


def test_rotation_turns_about_the_centre_and_ignores_what_it_uncovers(monkeypatch):
    fix_draws(monkeypatch, rotated=0.0, angle=ALMOST_ONE)
    label = torch.zeros(21, 21, dtype=torch.uint8)
    label[10, 10:] = 1  # from the centre to the right
    image = tv_tensors.Image(torch.zeros(3, 21, 21, dtype=torch.uint8))
    transform = TrainTransform((21, 21), scale=(1, 1), rotate=90)
    upwards = transform(image, tv_tensors.Mask(label))[1]
    assert torch.equal(upwards, torch.rot90(label).long())
    transform = TrainTransform((21, 21), scale=(1, 1), rotate=45)
    turned_image, turned = transform(image, tv_tensors.Mask(label))
    assert turned[10, 10] == 1 and turned[4, 16] == 1  # up and to the right: counter-clockwise
    assert (turned[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    assert to_bytes(turned_image)[:, 0, 0].round().tolist() == [124, 116, 104]


def test_blur_is_a_five_tap_gaussian_with_reflected_borders(monkeypatch):
    fix_draws(monkeypatch, blurred=0.0)
    image, label = pair(12, 10)
    transform = TrainTransform((12, 10), scale=(1, 1))
    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * 1.1**2))
    taps = taps / taps.sum()
    padded = torch.nn.functional.pad(image.float()[None], [2, 2, 2, 2], mode="reflect")
    rows = padded.unfold(2, 5, 1) @ taps
    expected = (rows.unfold(3, 5, 1) @ taps)[0]
    got_image, got_label = transform(image, label)
    assert (to_bytes(got_image) - expected).abs().max() < 0.51
    assert torch.equal(got_label, label.long())


def test_draws_are_as_many_whatever_they_decide(monkeypatch):
    image, label = pair(20, 20)
    states = []
    for flip in (0.0, 1.0):
        torch.manual_seed(3)
        TrainTransform((8, 8), flip=flip, blur=flip)(image, label)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 5)}, r"crop_size: expected sizes of at least 1, got \[0, 5\]"),
        ({"scale": (2.0, 0.5)}, "scale: expected 0 < smallest <= largest"),
        ({"scale": (0.0, 0.5)}, "scale: expected"),
        ({"rotate": -1.0}, "rotate: expected an angle of 0 to 90 degrees, got -1.0"),
        ({"blur": 1.5}, "blur: expected a probability, got 1.5"),
        ({"flip": -0.5}, "flip: expected a probability"),
        ({"ignore_index": -100}, "ignore_index must be a value of an 8-bit label map.*-100"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=f"TrainTransform: {message}"):
        TrainTransform(**{"crop_size": (8, 8), **options})


def test_evaluation_normalises_the_whole_image():
    image, label = pair(13, 17)
    got_image, got_label = EvalTransform()(image, label)
    mean, std = (
        torch.tensor(IMAGENET_MEAN)[:, None, None],
        torch.tensor(IMAGENET_STD)[:, None, None],
    )
    expected = (image.double() / 255 - mean) / std
    assert (got_image - expected).abs().max() < 1e-5 and got_image.dtype == torch.float32
    assert torch.equal(got_label, label.long()) and type(got_label) is torch.Tensor
    assert torch.equal(EvalTransform()(image), got_image)


def test_evaluation_pads_right_and_bottom_to_a_multiple():
    image, label = pair(13, 16)
    got_image, got_label = EvalTransform(size_multiple=8)(image, label)
    assert got_image.shape == (3, 16, 16) and got_label.shape == (16, 16)
    assert torch.equal(got_label[:13], label.long()) and (got_label[13:] == 255).all()
    assert got_image[:, 13:].abs().max() < 0.01
    assert torch.equal(got_image[:, :13], EvalTransform()(image))
    with pytest.raises(ValueError, match="size_multiple must be positive or None, got 0"):
        EvalTransform(size_multiple=0)
