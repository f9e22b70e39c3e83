"""Fashion-MNIST."""

from __future__ import annotations

from ssl_zoo.config import DATASETS, OfMachine, PositiveInt
from ssl_zoo.data.datasets import idx
from ssl_zoo.data.datasets.in_memory import InMemory
from ssl_zoo.data.source import Split, check_split, roots


@DATASETS.register_module()
class FashionMNIST(InMemory):
    """Fashion-MNIST: 60,000 + 10,000 gray images of 28x28 in 10 classes (arXiv:1708.07747).

    Args:
        root: folder of the four idx files, gzipped or not, or one above it.
            None: $SSL_ZOO_DATA, ./data, then where Debian's package puts them.
    """

    def __init__(
        self, split: Split, *, root: OfMachine[str | None] = None, limit: PositiveInt | None = None
    ):
        split = check_split(split)
        folders = roots(root) if root is not None else [*roots(None), idx.SYSTEM]
        files = idx.find(folders)
        if files is None:
            raise FileNotFoundError(
                "the four idx files of FashionMNIST were not found in "
                + ", ".join(map(str, folders))
                + "; get them with `ssl-zoo data get fashion_mnist`, "
                "or name their folder in data.dataset.root"
            )
        kind = "train" if split == "train" else "t10k"
        images, labels = (idx.read(files[f"{kind}-{part}"]) for part in idx.PARTS)
        if len(images) != len(labels) or images.dim() != 3 or labels.dim() != 1:
            raise ValueError(
                f"{files[f'{kind}-{idx.PARTS[0]}']}: expected [n, height, width] images and as "
                f"many labels, found {list(images.shape)} and {list(labels.shape)}"
            )
        super().__init__(images[:, None], labels, 10, split, limit)
