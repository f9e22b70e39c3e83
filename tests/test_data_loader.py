"""Batches: the same by any number of workers and processes and after any resume."""

import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, rgb_to_grayscale
from torchvision.utils import save_image

from ssl_zoo import config, experiment
from ssl_zoo.config import ConfigError, bind
from ssl_zoo.data import Data, InMemory, Sampler, Splits, loader, view_grid
from ssl_zoo.data.image import Samples
from ssl_zoo.system import distributed, rng

SYNTHETIC = {"type": "Synthetic", "num_samples": 50, "size": 12}
NORMALIZE = {"type": "Normalize", "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
VIEWS = {
    "ops": {
        "crop": {"type": "RandomResizedCrop", "size": 8},
        "jitter": {"type": "ColorJitter", "brightness": 0.4, "hue": 0.1, "p": 0.8},
        "flip": {"type": "HorizontalFlip"},
        "normalize": NORMALIZE,
    }
}
CLEAN = {"ops": {"resize": {"type": "Resize", "size": [8, 8]}, "normalize": NORMALIZE}}


def data_of(run_seed=0, **arguments):
    block = {"dataset": SYNTHETIC, "views": VIEWS, "clean": CLEAN, "batch_size": 16, **arguments}
    return bind(Data, block, "data")(run_seed=run_seed, views_needed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ImageFolder of 2 classes, 12 + 6 JPEGs of varying size."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shape = (3, 16 + 3 * i, 24 - 2 * i)
                image = rng.uniform(split, i, torch.arange(shape[0] * shape[1] * shape[2]))
                image = (image.view(shape) + label) / 2
                save_image(image, root / split / name / f"{i}.JPEG")
    return {"type": "ImageFolder", "root": str(root)}


def assert_same(some, others):
    some, others = list(some), list(others)
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.label, b.label)
        for view, other in zip(a.views, b.views, strict=True):
            assert torch.equal(view, other)


# ---------------------------------------------------------------------------------- sampler


@pytest.mark.parametrize(
    ("n", "batch", "world", "drop_last", "steps", "seen"),
    [
        (50, 16, 1, True, 3, 48),
        (50, 16, 1, False, 4, 50),
        (50, 16, 4, True, 3, 48),
        (50, 12, 3, False, 4, 48),  # the last two samples do not share out over three processes
        (53, 12, 4, False, 5, 52),
        (48, 16, 2, False, 3, 48),
        (5, 16, 1, False, 1, 5),
    ],
)
def test_an_epoch_sees_each_sample_once_in_disjoint_shares(n, batch, world, drop_last, steps, seen):
    whole = Sampler(n, batch, 3, drop_last)
    ranks = [Sampler(n, batch, 3, drop_last, rank, world) for rank in range(world)]
    assert {s.steps_per_epoch for s in ranks} == {steps}
    for epoch in (0, 1):
        shares = [list(s.steps(epoch * steps, (epoch + 1) * steps)) for s in ranks]
        batches = []
        for parts in zip(*shares, strict=True):
            assert {at for at, _ in parts} == {epoch}
            assert len({len(index) for _, index in parts}) == 1  # as collectives need
            batches.append(torch.cat([index for _, index in parts]))
        assert torch.equal(torch.cat(batches), whole.permutation(epoch)[:seen])
        assert all(len(b) == batch for b in batches[: n // batch])
    assert whole.permutation(0).sort().values.tolist() == list(range(n))
    assert not torch.equal(whole.permutation(0), whole.permutation(1))
    assert not torch.equal(whole.permutation(0), Sampler(n, batch, 4, drop_last).permutation(0))


def test_order_and_views_take_the_seed_of_data_or_else_the_runs():
    run, own, other = data_of(run_seed=3), data_of(run_seed=0, seed=3), data_of(run_seed=3, seed=0)
    assert_same(run.batches(0, 6, "cpu"), own.batches(0, 6, "cpu"))
    assert_same(data_of().batches(0, 6, "cpu"), other.batches(0, 6, "cpu"))
    assert not torch.equal(run.indices(0), other.indices(0))
    index = torch.arange(8)
    images = run.dataset.fetch(index)
    views = (data.views(images, data.seed, 0, index)[0] for data in (run, other))
    assert not torch.equal(*views)
    assert [data.splits.seed for data in (run, own, other)] == [3, 0, 3]  # evaluations: the run's


def test_a_resume_is_a_slice():
    sampler = Sampler(50, 16, 0, drop_last=False)
    steps = list(sampler.steps(0, 11))
    for start in range(11):
        for (epoch, index), (e, i) in zip(steps[start:], sampler.steps(start, 11), strict=True):
            assert epoch == e and torch.equal(index, i)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50, 10, 0, True, 0, 4), "10 is not divisible by 4"),
        ((50, 64, 0, True), "no step in an epoch of 50 samples .drop_last: false"),
        ((2, 8, 0, False, 0, 4), "no step in an epoch of 2 samples$"),
    ],
)
def test_impossible_batches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(*arguments)


# ------------------------------------------------------------------------------------- data


def test_batches_hold_what_they_say():
    data = data_of(drop_last=False)
    assert (data.num_samples, data.steps_per_epoch, data.num_classes) == (50, 4, 10)
    batches = list(data.batches(0, 8, "cpu"))
    assert [len(b.index) for b in batches] == [16, 16, 16, 2] * 2
    for step, batch in enumerate(batches):
        assert torch.equal(batch.label, data.labels[batch.index])
        images = data.dataset.fetch(batch.index)
        for view, expected in zip(
            batch.views, data.views(images, 0, step // 4, batch.index), strict=True
        ):
            assert torch.equal(view, expected) and view.shape[1:] == (3, 8, 8)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_boxes_are_those_of_the_views_if_asked_for(workers, scaled, folder):
    block = {"dataset": folder | {"scaled": scaled}, "views": VIEWS, "clean": CLEAN}
    part = bind(Data, block | {"batch_size": 6, "workers": workers}, "data")
    assert next(part(run_seed=2).batches(0, 1, "cpu")).boxes == []
    data = part(run_seed=2, boxes=True, views_needed=2)
    for step, batch in enumerate(data.batches(0, 3, "cpu")):
        shapes = torch.tensor([image.shape for image in data.dataset.fetch(batch.index)])
        epoch = step // data.steps_per_epoch
        expected = [data.views.boxes(v, shapes, Samples(2, epoch, batch.index)) for v in range(2)]
        assert all(map(torch.equal, batch.boxes, expected)) and len(batch.boxes) == 2
        for part in batch.split(3):
            rows = torch.isin(batch.index, part.index)
            assert torch.equal(part.boxes[1], batch.boxes[1][rows])


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_workers_and_resume_change_nothing(kind, folder):
    dataset = folder if kind == "folder" else SYNTHETIC
    arguments = {"dataset": dataset, "batch_size": 5, "drop_last": False}
    alone, helped = data_of(**arguments), data_of(**arguments, workers=2)
    batches = list(alone.batches(0, 8, "cpu"))
    assert_same(batches, helped.batches(0, 8, "cpu"))
    assert_same(batches[5:], helped.batches(5, 8, torch.device("cpu")))
    for clean, other in zip(
        alone.splits.clean_batches("test", "cpu", 4),
        helped.splits.clean_batches("test", "cpu", 4),
        strict=True,
    ):
        assert all(map(torch.equal, clean, other))


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_processes_share_out_one_process_batch(kind, folder, monkeypatch):
    arguments = {"dataset": folder, "batch_size": 8} if kind == "folder" else {}
    whole = list(data_of(**arguments).batches(0, 3, "cpu"))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(data_of(**arguments).batches(0, 3, "cpu")))
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([first.index, second.index]), batch.index)
        for view, *halves in zip(batch.views, first.views, second.views, strict=True):
            torch.testing.assert_close(torch.cat(halves), view, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_random_numbers_are_left_alone(kind, workers, folder):
    dataset = folder if kind == "folder" else SYNTHETIC
    torch.manual_seed(1)
    before = torch.get_rng_state()
    data = data_of(dataset=dataset, batch_size=6, workers=workers)
    assert len(list(data.batches(1, 4, "cpu"))) == 3
    assert len(list(data.splits.clean_batches("train", "cpu", 5))) > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_are_one_set_for_all_and_end_with_it():
    gc.collect()  # those of other tests
    data = data_of(workers=2)
    iterator = data.batches(0, 1000, "cpu")
    next(iterator)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    assert len(list(data.splits.clean_batches("test", "cpu", 5))) == 10  # while training waits
    next(iterator)
    assert set(multiprocessing.active_children()) == set(workers)
    iterator.close()
    del data, iterator
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_named(workers, tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "broken.png").write_text("no image")
    dataset = {"type": "ImageFolder", "root": str(tmp_path)}
    data = data_of(dataset=dataset, batch_size=1, workers=workers)
    with pytest.raises(ValueError, match=r"broken\.png: cannot be decoded"):
        next(data.batches(0, 1, "cpu"))


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("test", 6)])
def test_clean_batches_are_the_split_in_order(split, count, folder):
    data = data_of(dataset=folder, batch_size=4)
    images, labels, index = zip(*data.splits.clean_batches(split, "cpu", 4), strict=True)
    assert torch.equal(torch.cat(index), torch.arange(count))
    assert (
        torch.equal(torch.cat(labels), data.splits.split(split).labels)
        and sum(map(len, labels)) == count
    )
    expected = data.splits.clean(
        data.splits.split(split).fetch(torch.arange(count)), 0, 0, torch.arange(count)
    )[0]
    assert torch.equal(torch.cat(images), expected)
    dark, bright = (torch.cat(images)[torch.cat(labels) == k].mean() for k in (0, 1))
    assert bright - dark > 1  # labels belong to their images
    _, labels, _ = next(data.splits.clean_batches(split, "cpu", limit=4))
    assert labels.tolist() == [0, 0, 1, 1]  # spread over files that are sorted by class


def test_the_training_split_is_held_once():
    data = data_of()
    assert data.splits.split("train") is data.splits.split("pretrain") is data.dataset
    assert data.splits.split("test") is data.splits.split("test") is not data.dataset


def test_a_memory_that_needs_one_view_is_one_block(tmp_path):
    base = Path(__file__).parents[1] / "configs" / "digits" / "moco_v2.yaml"
    for memory, views in (("EndToEnd", 2), ("MemoryBank", 1)):
        overrides = ["data.workers=0", f"method.memory={{type: {memory}}}"]
        trainer = experiment.build_trainer(
            config.load(base, overrides), torch.device("cpu"), tmp_path
        )
        assert len(next(trainer.data.batches(0, 1, "cpu")).views) == views


def test_splits_say_which_images_they_are_and_not_where(folder):
    def splits(root=folder["root"], **arguments):
        block = {"dataset": folder | {"root": root}, "clean": CLEAN, **arguments}
        return bind(Splits, block)().identity()

    identity = splits()
    assert identity == splits(folder["root"] + "/.", workers=2)
    assert identity == data_of(dataset=folder, batch_size=4, workers=1).splits.identity()
    assert "root" not in identity["dataset"] and identity["dataset"]["type"] == "ImageFolder"
    counts = [identity[name] for name in ("train_images", "test_images", "classes")]
    assert counts == [12, 6, 2]
    assert identity != splits(clean={"ops": {"crop": {"type": "CenterCrop", "size": 8}}})


def test_splits_of_other_images_may_take_a_runs_clean_operations():
    data = data_of()
    part = bind(Splits, {"dataset": {"type": "Synthetic", "num_samples": 7}})
    splits = part(default_clean=data.splits.blocks["clean"])
    images, labels, _ = next(splits.clean_batches("test", "cpu"))
    assert images.shape == (7, 3, 8, 8) and torch.equal(labels, splits.split("test").labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size: too small\n.*0\n.*at least 1"),
        ({"workers": -1}, r"data\.workers: too small\n.*-1\n.*at least 0"),
        ({"workers": "many"}, r"data\.workers: .*\n.*'many'.*\n.*an integer, at least 0 or auto"),
        ({"workers": 1.5}, r"data\.workers: value of the wrong type\n.*1\.5"),
        (
            {"clean": {"ops": {"f": {"type": "HorizontalFlip"}}}},
            r"data\.clean\.ops\.f: evaluation takes no random operation\n.*HorizontalFlip",
        ),
        (
            {"clean": {"ops": {"g": {"type": "RandomGrayscale", "p": 1.0}}}},
            r"data\.clean\.ops\.g: .*no random operation\n.*RandomGrayscale\n.*, Grayscale, ",
        ),
    ],
)
def test_bad_values_are_refused_when_the_configuration_is_checked(arguments, message):
    block = {"dataset": SYNTHETIC, "views": VIEWS, "clean": CLEAN, "batch_size": 16, **arguments}
    with pytest.raises(ConfigError, match=message):
        bind(Data, block, "data")


def test_evaluation_takes_gray_images():
    colored, gray = (
        bind(Splits, {"dataset": SYNTHETIC, "clean": {"ops": ops}})()
        for ops in ({}, {"gray": {"type": "Grayscale"}})
    )
    (images, labels, _), (grays, same, _) = (
        next(x.clean_batches("test", "cpu")) for x in (colored, gray)
    )
    torch.testing.assert_close(grays, rgb_to_grayscale(images, 3), atol=1e-6, rtol=0)
    assert torch.equal(labels, same) and not torch.equal(grays, images)
    assert gray.identity() != colored.identity()


@pytest.mark.parametrize("which", ["views", "clean"])
def test_views_must_fit_images_of_varying_size(which, folder):
    with pytest.raises(ValueError, match="the images vary in size"):
        data_of(dataset=folder, batch_size=4, **{which: {"ops": {"normalize": NORMALIZE}}})


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_view_grid_shows_originals_and_views(kind, folder, tmp_path):
    data = data_of(dataset=folder if kind == "folder" else SYNTHETIC, batch_size=4)
    view_grid(data, tmp_path / "grid.png", samples=5)
    picture = pil_to_tensor(Image.open(tmp_path / "grid.png"))
    assert picture.shape == (3, 5 * 100 + 4, 3 * 100 + 4)
    first = data.dataset.fetch(data.sampler.permutation(0)[:1])[0]
    shown = picture[:, 4:100, 4:100].float().mean()
    assert abs(shown - first.float().mean()) < 4


# --------------------------------------------------------------------------------- workers


@pytest.mark.parametrize(
    ("in_ram", "device", "cores", "processes", "expected"),
    [
        (True, "cuda", 64, None, 0),
        (True, "cpu", 64, None, 0),
        (False, "cpu", 64, None, 1),
        (False, "cuda", 12, None, 11),  # one core stays for the training process
        (False, "cuda", 64, "8", 7),
        (False, "cuda", 4, "8", 1),
        (False, "cuda", 1, None, 1),
        (False, "cuda", 256, "2", 16),
    ],
)
def test_automatic_workers(in_ram, device, cores, processes, expected, monkeypatch):
    monkeypatch.setattr(loader, "cores", lambda: cores)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert loader.automatic_workers(in_ram, torch.device(device)) == expected


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5, 7}, raising=False)
    assert loader.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert loader.cores() == 6


@pytest.mark.parametrize(("kind", "expected"), [("memory", 0), ("folder", 1)])
def test_workers_are_automatic_unless_told(kind, expected, folder):
    gc.collect()  # the workers of other tests
    data = data_of(dataset=folder if kind == "folder" else SYNTHETIC, batch_size=4)
    assert data.workers == "auto"
    iterator = data.batches(0, 100, "cpu")
    next(iterator)
    assert len(multiprocessing.active_children()) == expected
    iterator.close()


class Threads(InMemory):
    """Pixels are the fetching process's number of threads."""

    def fetch(self, index):
        return torch.full_like(super().fetch(index), torch.get_num_threads())


def test_a_worker_has_one_thread():
    data = data_of(batch_size=4, workers=1, views={"ops": {}})
    data.reader.dataset = Threads(data.dataset.images, torch.zeros(50), 10, "train")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for workers, threads in ((1, 1), (0, 3)):
            data.workers = workers
            view = next(data.batches(0, 1, "cpu")).views[0]
            assert view.mul(255).unique().round().tolist() == [threads]
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------- GPU


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("workers", [0, 1])
def test_gpu_batches_equal_cpu_batches(workers, folder):
    for dataset in (SYNTHETIC, folder):
        data = data_of(dataset=dataset, batch_size=6, workers=workers)
        for a, b in zip(data.batches(0, 3, "cuda"), data.batches(0, 3, "cpu"), strict=True):
            assert torch.equal(a.index.cpu(), b.index) and a.label.is_cuda
            for view, other in zip(a.views, b.views, strict=True):
                torch.testing.assert_close(view.cpu(), other, atol=1e-4, rtol=0)


ALL_OPS = VIEWS["ops"] | {
    "jitter": {"type": "ColorJitter", "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8},
    "gray": {"type": "RandomGrayscale", "p": 0.2},
    "blur": {"type": "GaussianBlur", "p": 0.5},
    "solarize": {"type": "Solarize", "p": 0.2},
}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_batches_made_ahead_equal_those_made_in_turn(kind, workers, folder, monkeypatch):
    """To the bit, though the user is busy while the next is made and overwrites what it got."""
    dataset = folder if kind == "folder" else SYNTHETIC
    data = data_of(dataset=dataset, batch_size=6, workers=workers, views={"ops": ALL_OPS})
    busy, made_ahead = torch.randn(2048, 2048, device="cuda"), []
    for batch in data.batches(0, 12, "cuda"):
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy)
        made_ahead.append([view.clone() for view in batch.views] + [batch.index.clone()])
        for view in batch.views:
            view.fill_(torch.nan)
    monkeypatch.setattr(loader, "one_ahead", lambda items, device: items)
    in_turn = list(data.batches(0, 12, "cuda"))
    assert len(made_ahead) == len(in_turn) == 12
    for parts, batch in zip(made_ahead, in_turn, strict=True):
        for part, expected in zip(parts, [*batch.views, batch.index], strict=True):
            assert torch.equal(part, expected)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_making_batches_never_waits_for_the_gpu(kind, workers, folder):
    dataset = folder if kind == "folder" else SYNTHETIC
    data = data_of(dataset=dataset, batch_size=6, workers=workers, views={"ops": ALL_OPS})
    torch.zeros(1, device="cuda")  # starting CUDA may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(data.batches(0, 5, "cuda"))
        clean = list(data.splits.clean_batches("train", "cuda", 5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == 5 and all(images.is_cuda for images, *_ in clean)


@pytest.mark.gpu
@needs_gpu
def test_small_sets_in_ram_are_held_on_the_gpu(monkeypatch):
    data, device = data_of(), torch.device("cuda")
    held = data.dataset.held_close_to(device)
    assert held.images.is_cuda and not data.dataset.images.is_cuda
    assert data.dataset.held_close_to(device) is held
    index = torch.tensor([3, 1, 3])
    assert torch.equal(held.fetch(index).cpu(), data.dataset.fetch(index))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (data.dataset.images.nbytes, 0))
    near = data_of().dataset.held_close_to(device)
    assert not near.images.is_cuda and near.fetch(index).is_pinned()


def test_on_the_cpu_a_set_is_where_it_is():
    data = data_of()
    assert data.dataset.held_close_to(torch.device("cpu")) is data.dataset
