"""SimCLR in lightly on the textures of nexuiz: what ablation/continued.yaml starts from.

    pip install lightly
    ssl-zoo data get textures --packages nexuiz
    python benchmarks/pretrain_with_lightly.py lightly.pth     # two minutes on one core

They stand for published weights, which are large and of larger images. Nothing here is ssl_zoo's
but the reading of the tiles: the backbone is timm's, views, head and loss are lightly's, the loop
is that of its SimCLR example, and so is what is saved, the state_dict of the whole module.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_pil_image

from ssl_zoo.data.datasets.textures import Textures

OPTIONS = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "zero_init_last": False}


class SimCLR(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("resnet18", num_classes=0, **OPTIONS)
        self.projection_head = SimCLRProjectionHead(256, 256, 128)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 128]."""
        return self.projection_head(self.backbone(images))


class Views(Dataset):
    """Two views of each training tile, like those of configs/_base_/textures.yaml."""

    def __init__(self):
        tiles = Textures("train", packages=["nexuiz"])
        self.images = [to_pil_image(x) for x in tiles.fetch(torch.arange(len(tiles)))]
        jitter = {
            "cj_prob": 1.0,
            "cj_bright": 0.2,
            "cj_contrast": 0.2,
            "cj_sat": 0.0,
            "cj_hue": 0.0,
        }
        others = {"random_gray_scale": 0.0, "gaussian_blur": 0.0, "normalize": None}
        self.transform = SimCLRTransform(input_size=32, min_scale=0.2, **jitter, **others)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.images[index])


def pretrain(epochs: int, batch_size: int = 64) -> nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, loss_of = SimCLR(), NTXentLoss(temperature=0.1)
    loader = DataLoader(Views(), batch_size, shuffle=True, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    for epoch in range(epochs):
        total = 0.0
        for one, other in loader:
            loss = loss_of(model(one), model(other))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / len(loader):.3f}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="FILE.pth")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    torch.save({"state_dict": pretrain(arguments.epochs).state_dict()}, arguments.out)


if __name__ == "__main__":
    main()
