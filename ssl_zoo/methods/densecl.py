"""Dense contrastive learning: a loss for every place of the feature map."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, PositiveFloat, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Method, MomentumEncoder
from ssl_zoo.losses import accuracy, info_nce_loss
from ssl_zoo.memory import Lookup, Ring, shuffled
from ssl_zoo.ops import health
from ssl_zoo.ops.batchnorm import groups_of, has_batchnorm, split_batchnorm
from ssl_zoo.system import distributed


class DenseEncoder(nn.Module):
    """One pass of the backbone, a head on its pooled map and another on each of its places."""

    def __init__(self, backbone: nn.Module, head: nn.Module, dense_head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = split_batchnorm(head, groups_of(backbone))
        self.dense_head = split_batchnorm(dense_head, groups_of(backbone))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.project(self.backbone.feature_map(images))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [N, F, h, w] -> features [N, S, F] of its places, global [N, D], dense [N, S, D]."""
        f = x.flatten(2).mT  # [N, S, F]
        dense = self.dense_head(f.flatten(0, 1)).unflatten(0, f.shape[:2])
        return f.float(), self.head(self.backbone.pool(x)).float(), dense.float()


@METHODS.register_module()
class DenseCL(Method):
    """MoCo for the image and for every place in it at once (arXiv:2011.09157).

    L = (1 - lambda) L_q + lambda L_r (equation 3). L_q is MoCo's. L_r is the mean over the places
    s of a query's map of InfoNCE between r_s and t_c(s), where c(s) = argmax_c cos(f_s, f'_c) is
    the place of the key's map with the nearest features (equation 4).

    Args:
        head, dense_head: pooled features -> q; features of a place -> r.
        size: of each of the two queues. The dense one holds for each image the mean of its keys.
        momentum: of the key encoder.
        weight: lambda.
        shuffle_bn: the backbone sees keys in shuffled order (ShuffleBN).
    """

    family = "contrastive"
    needs = "map"
    views_needed = 2
    evaluated = "backbone"  # openselfsup/models/densecl.py of WXinlong/DenseCL

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        dense_head: Part[HEADS],
        size: PositiveInt = 65536,
        momentum: Scheduled[UnitInterval] = 0.999,
        temperature: Scheduled[PositiveFloat] = 0.2,
        weight: Scheduled[UnitInterval] = 0.5,
        shuffle_bn: bool = True,
    ):
        super().__init__()
        head = head(in_features=backbone.num_features)
        dense_head = dense_head(in_features=backbone.map_features)
        self.encoder = DenseEncoder(backbone, head, dense_head)
        self.key_encoder = MomentumEncoder(self.encoder)
        keys = F.normalize(torch.randn(size, head.out_features), dim=1)  # [K, D]
        dense_keys = F.normalize(torch.randn(size, dense_head.out_features), dim=1)
        self.queue = Ring(keys=keys, dense_keys=dense_keys)
        self.momentum, self.temperature = momentum, temperature
        self.weight, self.shuffle_bn = weight, shuffle_bn

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_q, x_k = batch.views[:2]  # [N, C, H, W]
        f_q, q, r = self.encoder(x_q)  # [N, S, F], [N, D], [N, S, D]
        f_k, k, t = self.encode_keys(x_k)
        q, k, r_s = (F.normalize(z, dim=-1) for z in (q, k, r))
        with torch.autocast(f_q.device.type, enabled=False), torch.no_grad():
            c = (f_q @ F.normalize(f_k, dim=2).mT).argmax(dim=2)  # [N, S]
        t_c = F.normalize(t, dim=2).take_along_dim(c[:, :, None], dim=1)  # [N, S, D]
        places = Lookup(r_s.flatten(0, 1), t_c.flatten(0, 1), self.queue.dense_keys)
        loss_q, nearer = info_nce_loss(Lookup(q, k, self.queue.keys), self.temperature)
        loss_r, _ = info_nce_loss(places, self.temperature)
        return {
            "loss": (1 - self.weight) * loss_q + self.weight * loss_r,
            "loss_dense": loss_r,
            **accuracy(nearer),
            "embedding_std": health.embedding_std(q),
            "k": k,
            "t": F.normalize(t.mean(dim=1), dim=1),  # [N, D]
        }

    @torch.no_grad()
    def encode_keys(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys = self.key_encoder.encoder
        if not (self.shuffle_bn and has_batchnorm(keys.backbone)):
            return keys(images)
        order = (self.seed, self.steps, "shuffle")
        return keys.project(shuffled(keys.backbone.feature_map, images, *order))

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.key_encoder.follow(self.encoder, self.momentum)
        self.queue.push(keys=distributed.gather(out["k"]), dense_keys=distributed.gather(out["t"]))
