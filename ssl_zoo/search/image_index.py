"""An index over features of images: which are nearest to one, and which are nearly alike."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import faiss
import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.nn import functional as F

from ssl_zoo.config import ConfigError
from ssl_zoo.data.files import counted
from ssl_zoo.evaluation.knn import Index, build_index, index_recall
from ssl_zoo.ops.kmeans import faiss_threads
from ssl_zoo.search import table
from ssl_zoo.search.folder import check_same, identity
from ssl_zoo.system.files import write_json, writing

if TYPE_CHECKING:
    from ssl_zoo.api import Embedder

# Of a file's header; those of before it had one lack the precision.
MADE_OF = ("run", "network", "weights", "clean", "precision", "folder", "images")
WRITTEN_BY = "expected a folder that `ssl-zoo index` writes"
USUAL_K = 100  # neighbors that an approximate index is made for
ROUNDING = 1e-6  # of a similarity, summed in another order
PAIRS_AT_ONCE = 2**24  # similarities of a block of images with all
MOST_PAIRS = 10_000_000  # of images that are nearly alike


class Match(NamedTuple):
    path: Path
    similarity: float  # cosine


@dataclass
class ImageIndex:
    """A folder of index.faiss and index.json.

    Attributes:
        about: which network made the features of which images; how the index searches.
        paths: of the n images, below `about["folder"]`.
        rows: unit vectors [n, F].
    """

    about: dict[str, Any]
    paths: list[str]
    rows: faiss.Index

    @classmethod
    @faiss_threads()
    def over(cls, file: Path, kind: Index = "flat") -> ImageIndex:
        """Of a file that `ssl-zoo embed` wrote. ValueError for features that are not finite."""
        header, paths, features = table.load(file)
        bank = torch.from_numpy(np.array(features))  # [n, F]
        bad = (~bank.isfinite().all(dim=1)).nonzero()[:, 0]
        if len(bad):
            count = f"the features of {counted(len(bad), 'image')} are not all finite"
            raise ValueError(f"{file}: {count}, the first is {paths[bad[0]]}")
        bank = F.normalize(bank, dim=1)
        rows, described = build_index(bank, kind, USUAL_K)
        if kind != "flat":
            k = min(USUAL_K, len(bank))
            found = index_recall(rows, bank, bank, k)
            described += f", finds {found:.1f}% of the {k} nearest"
        about = {key: header.get(key) for key in MADE_OF} | {"kind": kind, "index": described}
        return cls(about, paths, rows)

    @classmethod
    def load(cls, folder: Path) -> ImageIndex:
        """Raises FileNotFoundError, or ValueError for what is damaged or no such folder."""
        about = table.read_json(folder / "index.json", WRITTEN_BY)
        file = folder / "index.faiss"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; {WRITTEN_BY}")
        try:
            rows, paths = faiss.read_index(str(file)), about.pop("paths")
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{folder}: damaged; {WRITTEN_BY}") from error
        if (rows.ntotal, rows.d) != (len(paths), about.get("features")):
            found = f"{rows.ntotal} x {rows.d} numbers for {len(paths)} paths"
            raise ValueError(f"{folder}: damaged: {found}; {WRITTEN_BY}")
        return cls(about, paths, rows)

    def save(self, folder: Path) -> bool:
        """Whether it was written; one of the same is kept.

        FileExistsError: another is there, or something else.
        """
        about = {**self.about, "features": self.rows.d}
        if folder.exists():
            kept = ImageIndex.load(folder).about
            check_same(folder, kept, about)
            if kept["folder"] != about["folder"]:  # the images were moved
                write_json(folder / "index.json", {**about, "paths": self.paths})
            return False
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            staged = Path(beside, "index")
            staged.mkdir()
            with writing(folder):
                faiss.write_index(self.rows, str(staged / "index.faiss"))
            write_json(staged / "index.json", {**about, "paths": self.paths})
            staged.rename(folder)  # whole or not there
        return True

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> Path:
        return Path(self.about["folder"], self.paths[row])

    def check(self, embedder: Embedder) -> None:
        """ConfigError: the index was made by other weights, or of another view of the images."""
        for key, value in identity(embedder).items():
            if key != "network" and value != self.about[key]:
                problem = f"other {key} than those that made the index"
                found, expected = str(value), f"{self.about[key]}, of {self.about['run']}"
                raise ConfigError(embedder.about["path"], problem, found=found, expected=expected)

    @faiss_threads()
    def nearest(self, features: np.ndarray, k: int) -> list[Match]:
        """The k images, or all, that are most similar to features [F], the nearest first."""
        query = F.normalize(torch.from_numpy(features)[None], dim=1).numpy()
        similarity, rows = self.rows.search(query, min(k, len(self)))
        found = zip(rows[0].tolist(), similarity[0].tolist(), strict=True)
        return [Match(self.path(row), value) for row, value in found if row >= 0]

    @faiss_threads()
    def groups(self, threshold: float) -> list[list[Match]]:
        """Images that are `threshold` or more alike, each in the group of all those it is like.

        A match's similarity is that with the nearest in its group. The most alike come first, of
        groups and in a group.

        Raises:
            ValueError: there are too many such pairs.
        """
        n, found, pairs = len(self), 0, []
        best = np.full(n, -np.inf, np.float32)  # of each image, with any other
        if isinstance(self.rows, faiss.IndexIVF):
            self.rows.make_direct_map()
        block = max(1, PAIRS_AT_ONCE // n)
        for start in range(0, n, block):
            query = self.rows.reconstruct_n(start, min(block, n - start))
            ends, similarity, other = self.rows.range_search(query, threshold - ROUNDING)
            one = start + np.repeat(np.arange(len(query)), np.diff(ends.astype(np.int64)))
            apart = one != other
            pair = np.stack([one, other]).astype(np.int32)[:, apart]  # [2, P]
            for side in pair:  # an approximate index may find it from one side alone
                np.maximum.at(best, side, similarity[apart])
            pairs.append(pair)
            found += pair.shape[1]
            if found > 2 * MOST_PAIRS:
                count = f"more than {MOST_PAIRS:,} pairs are {threshold:g} alike or more"
                at = f"among the first {start + len(query):,} of {n:,} images"
                raise ValueError(f"{count}, {at}: raise --threshold")
        one, other = np.concatenate(pairs, axis=1)
        graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(n, n))
        group = connected_components(graph, directed=False)[1]
        members: dict[int, list[int]] = {}
        for row in np.flatnonzero(np.isfinite(best)).tolist():
            members.setdefault(int(group[row]), []).append(row)
        groups = [[Match(self.path(i), float(best[i])) for i in of] for of in members.values()]
        return sorted((sorted(group, key=_rank) for group in groups), key=lambda of: _rank(of[0]))


def _rank(match: Match) -> tuple[float, Path]:
    return -round(match.similarity, 4), match.path
