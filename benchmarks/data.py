"""What it costs to bring images to the network.

python benchmarks/data.py --out results/speed_data.json
python benchmarks/data.py [--only decode loader views] [--rounds 3] [--threads 1]

decode   microseconds an image for a JPEG and its two crops to 224 pixels, one thread
loader   images/s (two crops each) from JPEG files and from a pack of them, by workers
views    microseconds a view of MoCo v2's recipe, whole batches against torchvision v2 a sample
scaled   how far views of `scaled: true` are from those of images that are decoded whole

The JPEGs are crops of scikit-learn's two photographs, quality 90. Contenders take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import sklearn.datasets
import torch
from common import Measured, Table, interleaved, ratio, seconds, spread
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ssl_zoo.config import bind
from ssl_zoo.data import Data, ImageFolder, Views
from ssl_zoo.data.datasets import packed
from ssl_zoo.data.image import decode

SIZE, COUNT = 224, 32
SIZES = ((500, 375), (1280, 960))  # of JPEGs, width and height; the first is ImageNet's usual one
WORKERS = (0, 1, 2)
IMAGES = ((28, 1, 256), (32, 3, 256), (224, 3, 16))  # side, channels, how many at once
SOURCE = Path(sklearn.datasets.__file__).parent / "images"
CROP = {"type": "RandomResizedCrop", "size": SIZE, "scale": [0.2, 1.0]}
STRENGTHS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def photographs(folder: Path, width: int, height: int) -> list[Path]:
    """COUNT JPEGs of that size: random parts of two photographs, every other one mirrored."""
    folder.mkdir(parents=True)
    random, paths = np.random.default_rng(0), []
    originals = [Image.open(path).convert("RGB") for path in sorted(SOURCE.glob("*.jpg"))]
    for i in range(COUNT):
        image = originals[i % len(originals)]
        w = int(image.width * random.uniform(0.7, 1))
        h = min(w * height // width, image.height)
        left, top = (
            int(random.uniform(0, a - b)) for a, b in ((image.width, w), (image.height, h))
        )
        part = image.resize((width, height), Image.LANCZOS, box=(left, top, left + w, top + h))
        if i % 2:
            part = part.transpose(Image.FLIP_LEFT_RIGHT)
        paths.append(folder / f"{i:02}.jpg")
        part.save(paths[-1], quality=90)
    return paths


# ------------------------------------------------------------------------------------ decode


def whole(image: Tensor, boxes: list[list[int]]) -> None:
    """Two crops of a decoded image, [3, H, W]."""
    for box in boxes:
        F.resized_crop(image, *box, [SIZE, SIZE], antialias=True)


def planes(path: str, boxes) -> None:
    with Image.open(path) as image:
        whole(F.pil_to_tensor(image.convert("RGB")), boxes)


def pillow(path: str, boxes) -> None:
    image, _ = decode._by_pillow(Path(path).read_bytes(), 1, 255)
    whole(torch.from_numpy(image).permute(2, 0, 1), boxes)


def pillow_resize(path: str, boxes) -> None:
    with Image.open(path) as file:
        image = file.convert("RGB")
    for top, left, h, w in boxes:
        box = (left, top, left + w, top + h)
        F.pil_to_tensor(image.resize((SIZE, SIZE), Image.BILINEAR, box=box))


def ours(path: str, boxes) -> None:
    whole(decode.pixels(path), boxes)


def region_each(path: str, boxes) -> None:
    for box in boxes:
        whole(decode.pixels(path), [box])


def of_torchvision(path: str, boxes) -> None:
    data = torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=torch.uint8)
    whole(decode_jpeg(data, ImageReadMode.RGB), boxes)


def rough(path: str, boxes) -> None:
    data = Path(path).read_bytes()
    image = decode.simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
    whole(torch.from_numpy(image).permute(2, 0, 1), boxes)


def scaled(path: str, boxes) -> None:
    decode.shape(path)
    room = min(min(h, w) for _, _, h, w in boxes) / SIZE
    k = 2 ** sum(room >= k for k in (2, 4, 8))
    image = decode.pixels(path, k)
    whole(image, [[(x + k // 2) // k for x in box] for box in boxes] if k > 1 else boxes)


DECODERS: dict[str, Callable] = {
    "Pillow, planes (as before)": planes,
    "Pillow (the fallback)": pillow,
    "Pillow decodes and resizes": pillow_resize,
    "simplejpeg (chosen)": ours,
    "simplejpeg, decoded for each view": region_each,
    "simplejpeg, `scaled: true`": scaled,
    "simplejpeg, fast DCT and upsampling": rough,
    "torchvision.io (deprecated)": of_torchvision,
}


def decoders(rounds: int) -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            paths = photographs(Path(folder, str(width)), width, height)
            op = bind(Views, {"ops": {"crop": CROP}})().ops["crop"]
            boxes = [
                op.draw(torch.arange(2) + 2 * i, (3, height, width))["box"].tolist()
                for i in range(COUNT)
            ]

            def each(decoder: Callable, paths=paths, boxes=boxes) -> float:
                work = zip(map(str, paths), boxes, strict=True)
                return 1e6 / COUNT * seconds(lambda: [decoder(*item) for item in work])

            contenders = {name: partial(each, decoder) for name, decoder in DECODERS.items()}
            figures = interleaved(contenders, rounds)
            before = next(iter(figures.values()))
            for name, values in figures.items():
                times = ratio(before, values)
                rows.append([f"{width} x {height}", name, *spread(values), times])
    columns = {"JPEG": "", "decoder": "", "us an image": ".0f", "lowest": ".0f", "highest": ".0f"}
    columns |= {"times as fast": ".2f"}
    about = f"Decoded, and two crops to {SIZE} pixels."
    return Table("Decoding", columns, rows, about, f"{rounds} rounds")


# ------------------------------------------------------------------------------------ loader


def rate(dataset: dict, workers: int, steps: int = 6) -> float:
    """images/s of the batches after the first, crops alone."""
    block = {
        "dataset": dataset,
        "views": {"ops": {"crop": CROP}},
        "clean": {"ops": {"crop": {"type": "CenterCrop", "size": SIZE}}},
        "batch_size": COUNT,
        "workers": workers,
    }
    batches = bind(Data, block, "data")(run_seed=0, views_needed=2).batches(0, steps + 1, "cpu")
    next(batches)
    return COUNT * steps / seconds(lambda: [None for _ in batches])


def loaders(rounds: int) -> Table:
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder, "train", "a"), *SIZES[0])
        files = {"type": "ImageFolder", "root": folder}
        packed.pack(ImageFolder("train", root=folder), Path(folder, "train.pack"), 256, log=str)
        sources = {"JPEG files": files, "packed": {"type": "Packed", "path": folder}}
        figures = interleaved(
            {
                (name, workers): partial(rate, dataset, workers)
                for name, dataset in sources.items()
                for workers in WORKERS
            },
            rounds,
        )
    rows = [[name, workers, *spread(values)] for (name, workers), values in figures.items()]
    columns = {"images": "", "workers": "", "images/s": ".0f", "lowest": ".0f", "highest": ".0f"}
    about = f"JPEGs of {SIZES[0][0]} x {SIZES[0][1]}, two crops each to {SIZE} pixels."
    return Table("Loading", columns, rows, about, f"{rounds} rounds")


# ------------------------------------------------------------------------------------- views


def recipe(size: int, channels: int, per_sample: bool):
    """MoCo v2's views; of gray images without what changes colors alone."""
    sigma, taps = [0.1, 2.0], 2 * min(6, size - 1) + 1
    strengths = STRENGTHS if channels == 3 else {"brightness": 0.4, "contrast": 0.4}
    if per_sample:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
                v2.RandomApply([v2.ColorJitter(**strengths)], p=0.8),
                v2.RandomGrayscale(0.2) if channels == 3 else v2.Identity(),
                v2.RandomApply([v2.GaussianBlur(taps, sigma)], p=0.5),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )
    ops = {
        "crop": {**CROP, "size": size},
        "jitter": {"type": "ColorJitter", **strengths, "p": 0.8},
        "gray": {"type": "RandomGrayscale", "p": 0.2},
        "blur": {"type": "GaussianBlur", "sigma": sigma},
        "flip": {"type": "HorizontalFlip"},
    }
    return bind(Views, {"ops": ops, "count": 1})()


def augmentation(rounds: int) -> Table:
    rows = []
    for size, channels, n in IMAGES:
        images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8)
        index, views = torch.arange(n), recipe(size, channels, False)
        one = recipe(size, channels, True)

        def batched(views=views, images=images, index=index, n=n) -> float:
            return 1e6 / n * seconds(lambda: views(images, 0, 0, index))

        def singly(one=one, images=images, n=n) -> float:
            return 1e6 / n * seconds(lambda: torch.stack([one(image) for image in images]))

        figures = interleaved({"ours": batched, "torchvision": singly}, rounds)
        medians = [statistics.median(values) for values in figures.values()]
        times = ratio(figures["torchvision"], figures["ours"])
        rows.append([f"{size} x {size} x {channels}", *medians, times])
    columns = {"images": "", "ours, us a view": ".0f"}
    columns |= {"torchvision v2, one at a time, us a view": ".0f", "times as fast": ".1f"}
    return Table("MoCo v2's views", columns, rows, "", f"{rounds} rounds")


# ------------------------------------------------------------------------------------ scaled


def scaled_apart(rounds: int) -> Table:
    """Of `rounds` epochs of views, and of the images of an evaluation."""

    def made(root: str, scaled: bool) -> dict[str, Tensor]:
        block = {
            "dataset": {"type": "ImageFolder", "root": root, "scaled": scaled},
            "views": {"ops": {"crop": CROP}},
            "clean": {
                "ops": {
                    "resize": {"type": "Resize", "size": 256},
                    "crop": {"type": "CenterCrop", "size": SIZE},
                }
            },
            "batch_size": COUNT,
            "workers": 0,
        }
        data = bind(Data, block, "data")(run_seed=0, views_needed=2)
        views = [torch.cat(batch.views) for batch in data.batches(0, rounds, "cpu")]
        clean = [images for images, *_ in data.splits.clean_batches("test", "cpu")]
        return {"random views": torch.cat(views), "an evaluation's images": torch.cat(clean)}

    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "val"):
            photographs(Path(folder, split, "a"), *SIZES[-1])
        whole, scaled = made(folder, False), made(folder, True)
    rows = []
    for name, images in whole.items():
        apart = (images - scaled[name]).flatten(1)  # of 0 to 1
        decibels = -10 * apart.square().mean(dim=1).log10()
        mean = 255 * apart.abs().mean().item()
        rows.append([name, mean, decibels.median().item(), decibels.min().item()])
    columns = {"": "", "of 255, mean": ".1f", "dB, median": ".0f", "dB, lowest": ".0f"}
    about = "Enlarged photographs of {} x {}, so without the finest detail.".format(*SIZES[-1])
    return Table("`scaled: true` against the whole image", columns, rows, about)


PARTS = {"decode": decoders, "loader": loaders, "views": augmentation, "scaled": scaled_apart}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up [3]")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in this process [1]")
    parser.add_argument("--out", type=Path, help="a result file, JSON")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*deprecated.*")
    measured = Measured("data.py", sys.argv[1:] if argv is None else argv)
    for name in arguments.only:
        measured.add(name, PARTS[name](arguments.rounds))
    measured.finish(arguments.out)


if __name__ == "__main__":
    main()
