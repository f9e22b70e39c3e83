"""What CMC and Colorization know of the colors of test images, trained and untrained.

python benchmarks/color.py RUN ...     # folders that `ssl-zoo train` or `ablate` has written

CMC: which of the first 1,024 images' colors goes with a lightness, and the reverse. Colorization:
the loss it was trained with, and top-1 of pixels, beside the best one answer for all pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from common import machine, table
from torch import Tensor
from torch.nn import functional as F

from ssl_zoo import config, experiment
from ssl_zoo.engine import checkpoint
from ssl_zoo.engine.parallel import load_weights
from ssl_zoo.methods.cmc import CMC
from ssl_zoo.methods.colorization import Colorization
from ssl_zoo.ops.color import rgb_to_lab
from ssl_zoo.runs import RunFolder

CANDIDATES = 1024


@torch.no_grad()
def retrieval(method: CMC, images: Tensor) -> dict[str, float]:
    """Both ways in %, among the first images [N, 3, H, W]; ties count against the method."""
    z_l, z_ab = (F.normalize(z, dim=1) for z in method.encoder(images[:CANDIDATES]).chunk(2, dim=1))
    similarity = z_l @ z_ab.T  # [N, N]
    ranks = [(s >= s.diagonal()[:, None]).sum(dim=1) for s in (similarity, similarity.T)]
    return {f"top-{k}, %": 100 * (torch.stack(ranks) <= k).double().mean().item() for k in (1, 10)}


@torch.no_grad()
def predicted_colors(method: Colorization, images: Tensor) -> dict[str, float]:
    """Weighted cross-entropy and top-1 in % on [N, 3, H, W], and of one answer for all pixels."""
    lightness, ab = rgb_to_lab(images).tensor_split([1], dim=1)
    log_p = torch.cat([method.encoder(x / 100).log_softmax(dim=1) for x in lightness.split(500)])
    ab = F.interpolate(ab, size=log_p.shape[2:], mode="nearest-exact")
    closest, z = method.encode(ab)  # [N, k, h, w] each
    weight = method.weight[closest[:, :1]]  # [N, 1, h, w]
    loss = -(weight * z * log_p.gather(1, closest)).sum(dim=1).mean()
    top1 = (log_p.argmax(dim=1) == closest[:, 0]).double().mean()
    # The constant answer that minimizes the loss is the weighted share of each bin, counted here.
    share = torch.zeros_like(method.weight).index_add_(0, closest.flatten(), (weight * z).flatten())
    one = -torch.xlogy(share, share / share.sum()).sum() / weight.numel()
    commonest = closest[:, 0].flatten().bincount().max() / weight.numel()
    return {
        "loss": loss.item(),
        "of one answer": one.item(),
        "top-1, %": 100 * top1.item(),
        "of the commonest color, %": 100 * commonest.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    print(machine())
    for run in parser.parse_args().runs:
        cfg = config.load(run / "config.yaml")
        with tempfile.TemporaryDirectory() as folder:
            trainer = experiment.build_trainer(cfg, torch.device("cpu"), Path(folder))
        method = trainer.method.eval()
        measure = {CMC: retrieval, Colorization: predicted_colors}.get(type(method))
        if measure is None:
            parser.error(f"{run} is of {type(method).__name__}; expected CMC or Colorization")
        test = trainer.data.splits.split("test")
        images = test.fetch(torch.arange(len(test))).float() / 255
        start = {k: v.clone() for k, v in method.encoder.state_dict().items()}
        load_weights(method, checkpoint.read(RunFolder(run).checkpoints()[-1])["method"])
        trained = measure(method, images)
        method.encoder.load_state_dict(start)  # the weights of the loss stay
        untrained = measure(method, images)
        rows = [(name, *(f"{of[name]:.2f}" for of in (untrained, trained))) for name in trained]
        print("", table(rows, (run.as_posix(), "untrained", "trained")), sep="\n")


if __name__ == "__main__":
    main()
