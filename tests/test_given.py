"""Images that Python has: torch data sets, and views by name."""

import io
import random
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_loader import assert_same, data_of
from torch.utils.data import Dataset, Subset, TensorDataset

from ssl_zoo.config import ConfigError, Part, bind
from ssl_zoo.data import InMemory, Splits, Views
from ssl_zoo.data.given import (
    PRESETS,
    Wrapped,
    apart,
    as_bytes,
    dataset_block,
    given_images,
    preset,
    shows_whole,
)
from ssl_zoo.data.image import decode
from ssl_zoo.data.image.decode import BadImage

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


# What is shared with the processes that read, and what a data set draws.


class Opens(Dataset):
    """Of a file that it opens when it is first asked, and keeps open."""

    def __init__(self, path):
        self.path, self.file = path, None

    def __len__(self):
        return 4

    def __getitem__(self, index):
        self.file = self.file or open(self.path, "rb")  # noqa: SIM115
        self.file.seek(index * 3 * 5 * 6)
        pixels = bytearray(self.file.read(3 * 5 * 6))
        return torch.frombuffer(pixels, dtype=torch.uint8).view(3, 5, 6), index % 2


def test_what_this_process_reads_opens_no_file_in_the_users_data_set(tmp_path):
    (tmp_path / "pixels").write_bytes(PIXELS.numpy().tobytes())
    inner = Opens(tmp_path / "pixels")
    images = Wrapped(Subset(inner, [3, 1, 0]), "train", labeled=True)
    assert images.labels.tolist() == [1, 1, 0]
    held = TensorDataset(PIXELS[[3, 1, 0]], images.labels)
    assert images.identity == Wrapped(held, "train", labeled=True).identity
    assert not shows_whole(dataset_block(Subset(inner, [0])), 5)
    assert inner.file is None
    assert torch.equal(images.fetch(torch.tensor([1]))[0], PIXELS[1])


def test_a_copy_to_read_from_shares_what_is_large():
    class Holds(Dataset):
        def __init__(self):
            self.images, self.paths, self.few = PIXELS, ["a"] * 5000, {"open": {}}

    mine = Holds()
    copied = apart(mine)
    assert copied is not mine and copied.few["open"] is not mine.few["open"]
    assert copied.images is mine.images and copied.paths is mine.paths
    mine.lock = threading.Lock()
    assert apart(mine) is mine


class Draws(Dataset):
    """A crop, as torchvision's transforms draw one, and noise from the other generators."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
        return torch.tensor(drawn).view(3, 1, 1).expand(3, 12, 12)


def test_what_a_data_set_draws_depends_on_neither_workers_nor_a_resume():
    def batches(workers, start=0):
        data = data_of(dataset=dataset_block(Draws()), batch_size=4, workers=workers)
        return list(data.batches(start, 8, "cpu"))

    before = torch.get_rng_state(), random.getstate()
    alone = batches(0)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    for workers in (1, 3):
        assert_same(alone, batches(workers))
    assert_same(alone[5:], batches(2, start=5))
    seen = torch.cat([batch.views[0].flatten(1) for batch in alone])
    assert len(seen.unique(dim=0)) == 32  # of each image and epoch its own


# Ready sets.


def test_two_ready_sets_of_one_name_stay_apart():
    def a_set(images):
        return InMemory(images, torch.zeros(4).long(), 1, "train")

    mine = {"train": a_set(PIXELS), "test": a_set(PIXELS.flip(0))}
    clean = Part(Views, ops={})
    for made in (given_images, lambda split, splits: splits[split]):
        splits = Splits(dataset=Part(made, splits=mine), clean=clean, workers=0)
        for name, expected in (("train", PIXELS), ("test", PIXELS.flip(0))):
            [(images, _, _)] = splits.clean_batches(name, "cpu")
            assert torch.equal((images * 255).round().byte(), expected)
    assert splits.split("train") is mine["train"] and mine["test"].split == "train"


def test_ready_sets_of_equal_images_are_held_once():
    def made(split):
        return InMemory(PIXELS, torch.zeros(4).long(), 1, "train")

    splits = Splits(dataset=Part(made), clean=Part(Views, ops={}), workers=0)
    assert splits.split("pretrain") is splits.split("train")


# What an image is.


def test_pil_images_are_decoded_as_files_are():
    deep = np.array([[0, 128, 129, 300], [32767, 32768, 65406, 65535]], np.uint16)
    assert as_bytes(Image.fromarray(deep))[0].tolist() == [[0, 0, 1, 1], [127, 128, 254, 255]]
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 0, 255))
    assert as_bytes(clear).tolist() == [[[255, 0]]] * 3
    assert as_bytes(clear, 1).tolist() == [[[255, 0]]]
    for mode, said in (("F", "floating-point numbers"), ("I", "integers of 32 bits")):
        with pytest.raises(ValueError, match=f"image 0 of list: its pixels are {said}"):
            Wrapped([Image.new(mode, (2, 2))], "train").fetch(torch.tensor([0]))
    data = io.BytesIO()
    clear.save(data, format="png")
    opened = Image.open(data)
    assert torch.equal(as_bytes(opened), torch.tensor([[[255, 0]]] * 3, dtype=torch.uint8))
    assert decode.AS_USUAL.background == 255


# Labels.


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "dog", "cat", "dog"], "targets = ['cat', 'dog'"),
        (torch.zeros(4, 8).long(), "targets = tensor"),
        ([0.5, 1.7, 0.0, 1.0], "targets = [0.5, 1.7"),
        ([[1], [2, 3], [], [1]], "targets = [[1], [2, 3]"),
        ([0, 1], "targets = [0, 1]"),
    ],
    ids=["words", "rows", "floats", "lists", "too few"],
)
def test_what_is_no_class_number_is_unknown_and_refused_where_it_is_needed(labels, said):
    class AtHand(list):
        targets = labels

    assert Wrapped(AtHand(PIXELS), "pretrain").labels.tolist() == [-1] * 4
    with pytest.raises(ConfigError, match=r"(?s)labels are needed.*4 integers") as error:
        Wrapped(AtHand(PIXELS), "train", labeled=True)
    assert said in str(error.value)


@pytest.mark.parametrize("label", ["cat", 1.7, torch.tensor(1.7), None])
def test_an_items_label_that_is_no_class_number_is_refused(label):
    with pytest.raises(ConfigError, match=r"(?s)item 1 has .*a class number, an integer"):
        Wrapped([(PIXELS[0], 0), (PIXELS[1], label)], "train", labeled=True)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda x: np.array(x, np.uint8)])
def test_integers_of_any_kind_are_class_numbers(kind):
    class AtHand(list):
        targets = kind([1, 0, 1, 2])

    assert Wrapped(AtHand(PIXELS), "train", labeled=True).labels.tolist() == [1, 0, 1, 2]


# Images that cannot be read.


class Torn(Dataset):
    """Two of its images cannot be had, one by an error of the system and one of its own."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        if index == 3:
            raise OSError("torn")
        if index == 5:
            raise ValueError("of no\nkind")
        return PIXELS[index % 4].repeat(1, 3, 3), index % 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_given_image_that_cannot_be_read_is_skipped_as_a_file_is(workers):
    given = {"dataset": dataset_block(Torn()), "batch_size": 4, "workers": workers}
    data = data_of(**given, max_bad=2)
    seen = torch.cat([batch.index for batch in data.batches(0, 8, "cpu")])
    assert not {3, 5} & set(seen.tolist())
    assert data.splits.unreadable == {
        "pretrain": {"3": "image 3 of Torn: torn", "5": "image 5 of Torn: of no\\nkind"}
    }
    with pytest.raises(ValueError, match=r"image [35] of Torn: .*data\.max_bad"):
        list(data_of(**given).batches(0, 4, "cpu"))
    labeled = Wrapped(Torn(), "train", labeled=True)
    assert labeled.labels.tolist() == [0, 1, 0, -1, 0, -1, *[0, 1] * 5]
    with pytest.raises(BadImage):
        labeled.fetch(torch.tensor([3]))
