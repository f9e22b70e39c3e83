"""Images that Python has: torch data sets, and views by name."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from ssl_zoo.config import ConfigError, bind
from ssl_zoo.data import Views
from ssl_zoo.data.given import PRESETS, Wrapped, as_bytes, given_images, preset

PIXELS = torch.arange(4 * 3 * 5 * 6).remainder(251).to(torch.uint8).view(4, 3, 5, 6)


def as_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "made",
    [
        as_pil,
        lambda image: image,
        lambda image: image.float() / 255,
        lambda image: image.permute(1, 2, 0).numpy(),
        lambda image: image.permute(1, 2, 0).numpy() / np.float32(255),
    ],
    ids=["pil", "tensor", "floats", "array", "array of floats"],
)
def test_however_an_image_is_held_its_bytes_are_the_same(made):
    items = [made(image) for image in PIXELS]
    images = Wrapped(items, "train").fetch(torch.tensor([2, 0]))
    assert torch.equal(torch.stack(images), PIXELS[[2, 0]])


def test_gray_images_have_three_equal_channels():
    gray = PIXELS[0, 0]
    for image in (gray[None], gray.numpy(), Image.fromarray(gray.numpy())):
        assert torch.equal(as_bytes(image), gray.expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.randn(3, 4, 4), "expected 0 to 1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(4, 4), "of shape (4, 4)"),
        ("a.jpg", "found a str"),
    ],
)
def test_what_is_no_image_is_named(image, said):
    with pytest.raises(ValueError, match="image 1 of list") as error:
        Wrapped([PIXELS[0], image], "train").fetch(torch.tensor([0, 1]))
    assert said in str(error.value)


def test_labels_are_read_where_they_are_needed():
    labels = torch.tensor([2, 0, 1, 2])
    pairs = TensorDataset(PIXELS, labels)
    assert Wrapped(pairs, "train", labeled=True).labels.tolist() == [2, 0, 1, 2]
    assert Wrapped(pairs, "train", labeled=True).num_classes == 3
    assert Wrapped(pairs, "pretrain").labels.tolist() == [-1] * 4  # no pass over all images
    assert Wrapped(Subset(pairs, [3, 1]), "test", labeled=True).labels.tolist() == [2, 0]
    with pytest.raises(ConfigError, match="labels are needed"):
        Wrapped(list(PIXELS), "train", labeled=True)


def test_labels_at_hand_are_taken_without_a_pass():
    class AtHand(list):
        targets = (1, 0, 1, 1)

    assert Wrapped(AtHand(PIXELS), "pretrain").labels.tolist() == [1, 0, 1, 1]


def test_a_set_is_known_by_its_pixels_unless_it_draws_them_itself():
    class Drawing(TensorDataset):
        def __getitem__(self, index):
            return torch.rand(3, 5, 6), 0

    labels = torch.zeros(4).long()
    same, other = (Wrapped(TensorDataset(x, labels), "train") for x in (PIXELS, PIXELS.flip(0)))
    assert same.identity == Wrapped(TensorDataset(PIXELS, labels), "test").identity
    assert same.identity != other.identity
    drawn = [Wrapped(Drawing(PIXELS, labels), "train").identity for _ in range(2)]
    assert drawn[0] == drawn[1]
    with pytest.raises(ConfigError, match=r"no images(?s:.*)an empty list"):
        Wrapped([], "train")
    unreadable = Wrapped([np.zeros(3), *PIXELS], "pretrain")  # the loader says what is to be said
    assert len(unreadable.fingerprint) == 5


def test_splits_are_given_by_name():
    splits = {"train": TensorDataset(PIXELS, torch.tensor([0, 1, 0, 1]))}
    assert len(given_images("pretrain", splits=splits)) == 4
    assert given_images("train", splits=splits).num_classes == 2
    with pytest.raises(ConfigError, match="no test images were given"):
        given_images("test", splits=splits)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("size", [32, 96])
def test_presets_make_views_of_a_size(name, size):
    views, clean = (bind(Views, block) for block in preset(name, size))
    images = [torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8) for _ in range(2)]
    index = torch.arange(2)
    made = views(views_needed=2)(images, 0, 0, index)
    assert made[0].shape == made[1].shape == (2, 3, size, size)
    assert all(view.shape[2] < size for view in made[2:])
    assert clean()(images, 0, 0, index)[0].shape == (2, 3, size, size)


def test_images_of_that_size_are_looked_at_whole():
    _, clean = preset("moco_v2", 40, whole=True)
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    seen = bind(Views, clean)()([image], 0, 0, torch.arange(1))[0]
    assert list(clean["ops"]) == ["crop", "normalize"]
    assert torch.allclose(
        bind(Views, clean)().denormalize(0, seen)[0] * 255, image.float(), atol=1e-3
    )


def test_a_preset_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match=r"(?s)no views of this name.*moco_v1, moco_v2"):
        preset("moco_v4", 32)
