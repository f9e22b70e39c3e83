"""Every operation against torchvision's, with the parameters that it drew."""

import math

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import TRANSFORMS, ConfigError, bind
from ssl_zoo.data import Views
from ssl_zoo.data.image import Samples
from ssl_zoo.data.image.blur import GaussianBlur
from ssl_zoo.data.image.color import ColorJitter, Grayscale, Normalize, RandomGrayscale, Solarize
from ssl_zoo.data.image.geometry import CenterCrop, HorizontalFlip, RandomResizedCrop, Resize
from ssl_zoo.data.image.transform import GeometricTransform
from ssl_zoo.ops import patches
from ssl_zoo.system import rng


def pictures(n=12, channels=3, height=20, width=17):
    """float32 [n, C, H, W] in [0, 1] with gray, black, white and tied pixels among them."""
    images = rng.uniform("pictures", torch.arange(n * channels * height * width))
    images = images.view(n, channels, height, width)
    images[0::6] = images[0::6, :1]
    images[1::6] = 0.0
    images[2::6] = 1.0
    images[3::6] = (images[3::6] * 4).round() / 4
    return images


def keys(n, name="k"):
    return rng.hashed(name, torch.arange(n))


def jitter(image, params):
    adjust = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for which in params["order"].tolist():
        image = adjust[which](image, params["factor"][which].item())
    return image


def blur(taps):
    def apply(image, params):
        sizes = [taps or 2 * min(6, side - 1) + 1 for side in image.shape[:0:-1]]
        return F.gaussian_blur(image, sizes, [params["sigma"].item()] * 2)

    return apply


def crop(size, mode="bilinear"):
    def apply(image, params):
        image = F.resized_crop(
            image,
            *params["box"].tolist(),
            list(size),
            interpolation=InterpolationMode(mode),
            antialias=True,
        )
        return image.clamp(0, 1)

    return apply


STRENGTHS = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
CASES = {
    "crop-shrink": (RandomResizedCrop(size=7), crop((7, 7))),
    "crop-enlarge": (RandomResizedCrop(size=(32, 24)), crop((32, 24))),
    "crop-same": (
        RandomResizedCrop(size=(20, 17), scale=(0.9, 1.0)),
        crop((20, 17)),
    ),
    "crop-bicubic": (
        RandomResizedCrop(size=(9, 30), interpolation="bicubic"),
        crop((9, 30), "bicubic"),
    ),
    "resize": (Resize(size=9), lambda x, _: F.resize(x, [9], antialias=True)),
    "resize-both": (
        Resize(size=(9, 40)),
        lambda x, _: F.resize(x, [9, 40], antialias=True),
    ),
    "center": (CenterCrop(size=(8, 30)), lambda x, _: F.center_crop(x, [8, 30])),
    "flip": (HorizontalFlip(p=1.0), lambda x, _: F.horizontal_flip(x)),
    "jitter": (ColorJitter(**STRENGTHS), jitter),
    "jitter-strong": (
        ColorJitter(brightness=1.5, contrast=1.5, saturation=1.5, hue=0.5),
        jitter,
    ),
    "hue": (ColorJitter(hue=0.5), jitter),
    "gray": (Grayscale(), lambda x, _: F.rgb_to_grayscale(x, num_output_channels=len(x))),
    "gray-random": (
        RandomGrayscale(p=1.0),
        lambda x, _: F.rgb_to_grayscale(x, num_output_channels=len(x)),
    ),
    "solarize": (Solarize(threshold=0.3, p=1.0), lambda x, _: F.solarize(x, 0.3)),
    "blur": (GaussianBlur(p=1.0), blur(None)),
    "blur-taps": (GaussianBlur(p=1.0, kernel_size=9, sigma=(0.5, 4.0)), blur(9)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_matches_torchvision_sample_by_sample(name, channels):
    op, reference = CASES[name]
    images = pictures(channels=channels)
    params = op.draw(keys(len(images)), images.shape[1:])
    out = op.apply(images.clone(), params)
    for i, image in enumerate(images):
        expected = reference(image, {name: value[i] for name, value in params.items()})
        torch.testing.assert_close(out[i], expected, atol=2e-5, rtol=0)
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6  # each operation keeps to [0, 1]


def test_normalize_matches_torchvision_and_is_undone():
    images, op = pictures(), Normalize(mean=MEAN, std=STD)
    out = op.apply(images.clone(), {})
    torch.testing.assert_close(out, F.normalize(images, MEAN, STD))
    torch.testing.assert_close(op.undo(out), images, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="3 channels, the images have 1"):
        op.apply(images[:, :1], {})


def test_every_registered_operation_is_covered():
    assert {type(op) for op, _ in CASES.values()} | {Normalize} == set(
        TRANSFORMS.module_dict.values()
    )


@pytest.mark.parametrize(
    ("scale", "ratio", "shape"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3), (32, 32)),
        ((0.5, 1.0), (0.5, 2.0), (20, 41)),
        ((1.0, 1.0), (3.0, 4.0), (10, 12)),  # nothing fits: the widest central box
        ((1.0, 1.0), (0.2, 0.3), (10, 12)),  # the tallest
        ((1.0, 1.0), (1.0, 1.0), (7, 5)),
    ],
)
def test_crop_boxes_follow_torchvisions_rule(scale, ratio, shape):
    """torchvision's loop of ten tries, written out for one sample at a time."""
    height, width = shape
    op = RandomResizedCrop(size=8, scale=scale, ratio=ratio)
    boxes = op.draw(keys(200), (3, height, width))["box"].tolist()
    numbers = rng.uniform(keys(200)[:, None], torch.arange(22)).double().tolist()
    for box, u in zip(boxes, numbers, strict=True):
        for area, aspect in zip(u[:10], u[10:20], strict=True):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
            low, high = math.log(ratio[0]), math.log(ratio[1])
            aspect = math.exp(low + (high - low) * aspect)
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                expected = [int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w]
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            expected = [(height - h) // 2, (width - w) // 2, h, w]
        assert box == expected


def test_jitter_draws_every_order_and_the_whole_range():
    op = ColorJitter(brightness=0.4, contrast=2.0, saturation=0.4, hue=0.1)
    params = op.draw(keys(4000), (3, 8, 8))
    orders, counts = params["order"].unique(dim=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 100  # 167 expected
    low, high = params["factor"].min(0).values, params["factor"].max(0).values
    torch.testing.assert_close(low, torch.tensor([0.6, 0.0, 0.6, -0.1]), atol=0.01, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.4, 3.0, 1.4, 0.1]), atol=0.01, rtol=0)
    gray = op.draw(keys(100), (1, 8, 8))["order"]
    assert gray.sort(1).values.unique(dim=0).tolist() == [[0, 1]]  # the rest changes nothing


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_p_is_the_share_of_changed_samples(p):
    op, images = HorizontalFlip(p=p), torch.arange(12000.0).view(2000, 1, 2, 3)
    out = op(images.clone(), keys(len(images)))
    flipped = (out == images.flip(-1)).flatten(1).all(1)
    untouched = (out == images).flatten(1).all(1)
    assert (flipped | untouched).all()
    assert abs((~untouched).float().mean() - p) < 0.03


def test_color_operations_leave_one_channel_alone():
    images = pictures(channels=1)
    for op in (RandomGrayscale(p=1.0), ColorJitter(saturation=1.0, hue=0.5)):
        torch.testing.assert_close(op(images.clone(), keys(12)), images)


# ------------------------------------------------------------------------------------ views

OPS = {
    "crop": {"type": "RandomResizedCrop", "size": 16},
    "jitter": {"type": "ColorJitter", **STRENGTHS, "p": 0.8},
    "gray": {"type": "RandomGrayscale", "p": 0.2},
    "blur": {"type": "GaussianBlur"},
    "solarize": {"type": "Solarize", "p": 0.3},
    "flip": {"type": "HorizontalFlip"},
    "normalize": {"type": "Normalize", "mean": MEAN, "std": STD},
}


SIZES = ((20, 17), (9, 40), (33, 33))


def views_of(ops=OPS, **arguments):
    return bind(Views, {"ops": ops, **arguments})(views_needed=2)


def key_of(seed, epoch, index, view, label):
    return rng.hashed(rng.hashed(seed, epoch, index, view), label)


def raw(n=24, channels=3, height=20, width=17):
    return (pictures(n, channels, height, width) * 255).to(torch.uint8)


def test_a_view_is_its_operations_in_order():
    views, images, index = views_of(count=3), raw(), torch.arange(24)
    before = images.clone()
    for number, view in enumerate(views(images, 5, 2, index)):
        expected = images / 255
        for label, op in views.ops.items():
            expected = op(expected, key_of(5, 2, index, number, label))
        torch.testing.assert_close(view, expected)
        assert view.shape == (24, 3, 16, 16) and view.dtype == torch.float32
    assert torch.equal(images, before)


def test_views_differ_by_seed_epoch_view_and_sample():
    views, images = views_of(), raw(5)[4:].expand(2, -1, -1, -1)
    first, second = views(images, 0, 0, torch.tensor([7, 8]))
    others = [
        second,
        first.flip(0),
        views(images, 1, 0, torch.tensor([7, 8]))[0],
        views(images, 0, 1, torch.tensor([7, 8]))[0],
    ]
    assert all((first - other).abs().mean() > 0.05 for other in others)
    assert torch.equal(first, views(images, 0, 0, torch.tensor([7, 8]))[0])


def test_a_view_does_not_depend_on_the_batch_around_it():
    views, images, index = views_of(), raw(), torch.arange(100, 124)
    together = views(images, 0, 3, index)
    order = rng.permutation(24, "any")
    shuffled = views(images[order], 0, 3, index[order])
    alone = [views(images[i : i + 1], 0, 3, index[i : i + 1]) for i in range(24)]
    for v in range(2):
        torch.testing.assert_close(shuffled[v], together[v][order], atol=1e-5, rtol=0)
        single = torch.cat([a[v] for a in alone])
        torch.testing.assert_close(single, together[v], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["RandomResizedCrop", "ColorJitter", "GaussianBlur"])
def test_parameters_do_not_depend_on_the_batch_to_the_bit(name):
    op = next(op for op, _ in CASES.values() if type(op).__name__ == name)
    params = op.draw(keys(50), (3, 20, 17))
    some = op.draw(keys(50)[[31, 4]], (3, 20, 17))
    for key, value in params.items():
        assert torch.equal(value[[31, 4]], some[key])


def test_views_under_autocast_keep_full_precision():
    views, images = views_of(), raw()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = views(images, 0, 0, torch.arange(24))
    for view, expected in zip(lowered, views(images, 0, 0, torch.arange(24)), strict=True):
        assert torch.equal(view, expected)


@pytest.mark.parametrize("name", [name for name in OPS if name != "normalize"])
def test_any_operation_may_be_followed_by_one_that_overwrites(name):
    certain = {**OPS[name], "p": 1.0} if name != "crop" else OPS[name]
    (plain,) = views_of({name: certain}, count=1)(raw(), 0, 0, torch.arange(24))
    both = {name: certain, "normalize": OPS["normalize"]}
    (out,) = views_of(both, count=1)(raw(), 0, 0, torch.arange(24))
    torch.testing.assert_close(out, F.normalize(plain, MEAN, STD))


def test_a_label_seeds_its_operation_alone():
    images, index = raw(), torch.arange(24)
    less = {name: OPS[name] for name in ("crop", "flip")}
    more = {"crop": OPS["crop"], "same": {"type": "Solarize", "p": 0.0}, "flip": OPS["flip"]}
    renamed = {"crop": OPS["crop"], "mirror": OPS["flip"]}
    expected = views_of(less)(images, 0, 0, index)[0]
    assert torch.equal(views_of(more)(images, 0, 0, index)[0], expected)
    assert not torch.equal(views_of(renamed)(images, 0, 0, index)[0], expected)


def test_operations_of_some_views_make_multi_crop_and_asymmetry():
    ops = {
        "large": {"type": "RandomResizedCrop", "size": 16, "views": [0, 1]},
        "small": {"type": "RandomResizedCrop", "size": 8, "views": [2]},
        "invert": {"type": "Solarize", "threshold": 0.0, "p": 1.0, "views": [1]},
    }
    out = views_of(ops, count=3)(torch.full((2, 1, 20, 20), 51, dtype=torch.uint8), 0, 0, keys(2))
    assert [list(view.shape[2:]) for view in out] == [[16, 16], [16, 16], [8, 8]]
    means = torch.stack([view.mean() for view in out])
    torch.testing.assert_close(means, torch.tensor([0.2, 0.8, 0.2]))


def test_without_a_count_there_are_as_many_views_as_the_method_needs():
    views = bind(Views, {"ops": OPS})
    assert [views(views_needed=n).count for n in (1, 3)] == [1, 3]
    assert views_of(count=5).count == 5


@pytest.mark.parametrize("count", [None, 1])
def test_operations_of_views_that_are_not_made_are_skipped(count):
    ops = {"invert": {"type": "Solarize", "threshold": 0.0, "p": 1.0, "views": [1, 2]}}
    (view,) = bind(Views, {"ops": ops, "count": count})(views_needed=1)(raw(), 0, 0, keys(24))
    assert torch.equal(view, raw() / 255)


def test_images_of_varying_size_are_cropped_one_by_one():
    """To the byte what torchvision makes of a decoded image; the rest is as for a batch."""
    images = [raw(5, 3, h, w)[4] for h, w in SIZES]
    views, index = views_of({"crop": OPS["crop"], "flip": OPS["flip"]}), torch.tensor([4, 0, 9])
    out = views(images, 1, 2, index)
    for v, view in enumerate(out):
        key = key_of(1, 2, index, v, "crop")
        for i, image in enumerate(images):
            box = views.ops["crop"].draw(key[i : i + 1], image.shape)["box"][0]
            expected = F.resized_crop(image, *box.tolist(), [16, 16], antialias=True)[None] / 255
            expected = views.ops["flip"](expected, key_of(1, 2, index[i : i + 1], v, "flip"))
            torch.testing.assert_close(view[i : i + 1], expected)


def test_evaluation_of_images_of_varying_size():
    images = [raw(5, 3, h, w)[4] for h, w in SIZES]
    ops = {"resize": {"type": "Resize", "size": 12}, "crop": {"type": "CenterCrop", "size": 8}}
    (out,) = views_of(ops, count=1)(images, 0, 0, torch.arange(3))
    for view, image in zip(out, images, strict=True):
        expected = F.center_crop(F.resize(image, [12], antialias=True), [8, 8]) / 255
        torch.testing.assert_close(view, expected)


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ({"blur": {"type": "GaussianBlur"}, "crop": OPS["crop"]}, r"ops\.blur \(GaussianBlur\)"),
        ({"resize": {"type": "Resize", "size": 8}}, "it has none of these"),
        ({}, "it has none of these"),
    ],
)
def test_images_of_varying_size_must_be_brought_to_one(ops, message):
    with pytest.raises(ValueError, match=message):
        views_of(ops).ops_until_one_size(0)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        ({"type": "RandomResizedCrop", "size": 0}, r"op\.size: too small"),
        (
            {"type": "RandomResizedCrop", "size": 8, "scale": [0.5, 1.5]},
            r"scale\[1\]: out of range",
        ),
        (
            {"type": "RandomResizedCrop", "size": 8, "scale": [0.9, 0.5]},
            r"scale: not \[low, high\]",
        ),
        (
            {"type": "RandomResizedCrop", "size": 8, "ratio": [0.0, 1.0]},
            r"ratio\[0\]: too small",
        ),
        ({"type": "HorizontalFlip", "p": 1.5}, r"op\.p: out of range"),
        ({"type": "ColorJitter", "hue": 0.6}, r"op\.hue: out of range"),
        ({"type": "ColorJitter", "brightness": -0.1}, r"op\.brightness: too small"),
        ({"type": "GaussianBlur", "kernel_size": 4}, "expected: an odd number"),
        ({"type": "GaussianBlur", "sigma": [0.0, 1.0]}, r"op\.sigma\[0\]: too small"),
        ({"type": "Solarize", "threshold": 128.0}, r"op\.threshold: out of range"),
        ({"type": "Normalize", "mean": [0.5], "std": [0.0]}, r"op\.std\[0\]: too small"),
        ({"type": "Normalize", "mean": [0.5], "std": [0.1, 0.1]}, "1 means and 2 stds"),
        ({"type": "HorizontalFlip", "views": [-1]}, r"op\.views\[0\]: too small"),
    ],
)
def test_bad_values_are_refused_when_the_configuration_is_checked(op, message):
    with pytest.raises(ConfigError, match=message):
        bind(Views, {"ops": {"op": op}}, "data.views")
    with pytest.raises(ConfigError, match=r"^data\.views"):
        bind(Views, {"ops": {"op": op}}, "data.views")


def test_count_is_positive():
    with pytest.raises(ConfigError, match="count: too small"):
        bind(Views, {"ops": {}, "count": 0})


def test_blur_says_when_the_kernel_is_too_wide_for_the_image():
    op = GaussianBlur(kernel_size=23, p=1.0)
    with pytest.raises(ValueError, match=r"kernel_size 23 .* 8 pixels; at most 15"):
        op(pictures(2, 1, 8, 8), keys(2))


# ------------------------------------------------------------------------------------- boxes


def ramp(height, width):
    """uint8 [2, H, W] whose pixels say where they are: rows in channel 0, columns in channel 1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x]).byte()


FLIP = {"type": "HorizontalFlip", "p": 0.5}
MOVES = {
    "crop": {"crop": {"type": "RandomResizedCrop", "size": [16, 12], "scale": [0.3, 0.8]}},
    "mirrored crop": {"crop": {"type": "RandomResizedCrop", "size": 16}, "flip": FLIP},
    "crop of a crop": {
        "flip": FLIP,
        "first": {"type": "RandomResizedCrop", "size": [60, 80], "scale": [0.3, 0.8]},
        "second": {"type": "RandomResizedCrop", "size": 24, "scale": [0.1, 0.4]},
    },
    "resized first": {
        "resize": {"type": "Resize", "size": 45},
        "crop": {"type": "RandomResizedCrop", "size": 16},
    },
    "middle": {
        "resize": {"type": "Resize", "size": [50, 70]},
        "middle": {"type": "CenterCrop", "size": 33},
    },
}


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("name", MOVES)
def test_a_views_box_says_where_its_pixels_come_from(name, varied):
    views = views_of(MOVES[name])
    if varied and not isinstance(views.ops_of(0)[0][1], GeometricTransform):
        pytest.skip("images of varying size are brought to one size first")
    sizes = [(90 + 5 * i * varied, 120 - 7 * i * varied) for i in range(8)]
    images = [ramp(*size) for size in sizes]
    shapes = torch.tensor([image.shape for image in images])
    index = torch.arange(20, 28)
    seen = views(images if varied else torch.stack(images), 3, 1, index)[0] * 255 + 0.5
    box = views.boxes(0, shapes, Samples(3, 1, index))
    expected = patches.cell_centers(box, seen.shape[2:]).mT.view(seen.shape)
    inner = (..., slice(2, -2), slice(2, -2))  # at its border a ramp is no longer straight
    # Filters and bytes blur by fractions of a pixel; half a pixel off would be wrong.
    torch.testing.assert_close(seen[inner], expected[inner], atol=1.2 if varied else 0.3, rtol=0)
    mirrored = box[:, 3] < box[:, 1]
    assert mirrored.any() == ("flip" in MOVES[name]) and not mirrored.all()


def test_a_middle_begins_where_torchvisions_does_padding_included():
    for side in range(4, 24):
        made = CenterCrop(size=13).apply_one(1 + torch.arange(side).expand(1, side, side), {})
        rows, values = made[0, 6].nonzero()[:, 0], made[0, 6].unique()
        start = values[values > 0][0].item() - 1 - rows[0].item()
        box = CenterCrop(size=13).source_box(torch.tensor([[1, side, side]]), {})
        assert box.tolist() == [[start, start, start + 13, start + 13]]


def test_output_shapes_are_what_torchvision_makes():
    for height, width in ((90, 121), (121, 90), (64, 64), (31, 97)):
        shapes = torch.tensor([[3, height, width]])
        for size in (45, [20, 30]):
            made = F.resize(torch.zeros(3, height, width), size).shape
            assert Resize(size=size).output_shapes(shapes).tolist() == [list(made)]
