"""A study's baselines are of the images that there are now."""

import json

import torch
from PIL import Image

from ssl_zoo.study.baselines import Baselines
from ssl_zoo.study.grid import expand

BASE = """
_base_: digits/moco_v2
data:
  dataset: {{type: ImageFolder, root: {root}, channels: 1}}
  clean:
    ops:
      normalize: null
      crop: {{type: CenterCrop, size: 8}}
evaluations: {{knn: {{type: KNN, k: 2}}}}
"""
GRID = "base: base.yaml\nseeds: [0]\narms: {MoCo: {}}\n"


def save(root, split, number, label):
    path = root / split / label / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(torch.full((8, 8), 20 * number, dtype=torch.uint8).numpy()).save(path)


def test_baselines_are_measured_again_where_images_have_changed(tmp_path):
    root = tmp_path / "data"
    for number in range(6):
        for split in ("train", "val"):
            save(root, split, number, "ab"[number % 2])
    (tmp_path / "base.yaml").write_text(BASE.format(root=root))
    (tmp_path / "grid.yaml").write_text(GRID)
    (run,) = expand(tmp_path / "grid.yaml", tmp_path / "out").runs
    kept, said = tmp_path / "baselines.json", []
    Baselines(kept).measure(run, said.append)
    before = kept.read_text()
    Baselines(kept).measure(run, said.append)
    assert len(said) == 1 and kept.read_text() == before
    save(root, "val", 7, "b")
    Baselines(kept).measure(run, said.append)
    assert said[1:] == [f"{said[0]}: the images are others than before"]
    known = Baselines(kept).known
    assert [result["of"]["data"]["test_images"] for result in known] == [7] * len(known)
    old = {result["hash"] for result in json.loads(before)}
    assert len(old) == len(known) and old.isdisjoint(result["hash"] for result in known)
