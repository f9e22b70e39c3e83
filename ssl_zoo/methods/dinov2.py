"""DINOv2's losses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, at_least
from ssl_zoo.core import Batch, Method, MomentumEncoder, encode_views
from ssl_zoo.heads import Centre, FrozenStart, SinkhornCentre
from ssl_zoo.methods.dino import distillation
from ssl_zoo.methods.ibot import TokenEncoder, check, patch_loss
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import masked_patches
from ssl_zoo.system import distributed


@METHODS.register_module()
class DINOv2(Method):
    """DINO and iBOT with a head each, and features spread out (DINOv2, arXiv:2304.07193).

    Loss = class tokens' (DINO) + masked patches' (iBOT) + koleo_weight x KoLeo.

    Args:
        backbone: a ViT; with local views, `options: {dynamic_img_size: true}`.
        head: class token -> scores.
        patch_head: patch token -> scores.
        centring: of the teacher's scores, by a running mean or by Sinkhorn-Knopp in each batch.
        teacher_temperature, student_temperature: for class tokens and patches.
        momentum: of the teacher.
        centre_momentum: of the running means.
        koleo_weight: of the entropy estimate that keeps the images' features apart.
        masked_images: chance that a view is masked at all.
        mask_ratio: bounds of the share of its patches, drawn uniformly.
        frozen_steps: first steps in which the heads' last layers stay as they are.
    """

    family = "distillation"
    needs = "tokens"
    views_needed = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        patch_head: Part[HEADS],
        centring: Literal["mean", "sinkhorn"] = "sinkhorn",
        teacher_temperature: float = 0.04,
        student_temperature: float = 0.1,
        momentum: float = 0.994,
        centre_momentum: float = 0.9,
        koleo_weight: float = 0.1,
        masked_images: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        frozen_steps: int = 0,
    ):
        super().__init__()
        self.validate(
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
            momentum=momentum,
            centre_momentum=centre_momentum,
            koleo_weight=koleo_weight,
            masked_images=masked_images,
            mask_ratio=mask_ratio,
            frozen_steps=frozen_steps,
        )
        self.encoder = TokenEncoder(backbone, head, patch_head)
        self.teacher = MomentumEncoder(self.encoder)
        if centring == "sinkhorn":
            self.centre, self.patch_centre = SinkhornCentre(), SinkhornCentre()
        else:
            self.centre = Centre(self.encoder.out_features, centre_momentum)
            self.patch_centre = Centre(self.encoder.patch_head.out_features, centre_momentum)
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.momentum, self.koleo_weight = momentum, koleo_weight
        self.masked_images, self.mask_ratio = masked_images, mask_ratio
        self.freeze = FrozenStart(self.encoder, frozen_steps)

    @staticmethod
    def validate(*, koleo_weight: float = 0.0, **others) -> None:
        check(**others)
        at_least("koleo_weight", koleo_weight, 0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student, bn_groups = self.encoder, self.encoder.backbone.bn_groups
        u_s, g_s, v_s, g_t, v_t, masks = [], [], [], [], [], []
        for number, x in enumerate(batch.views[:2]):
            key = self.random_key(f"mask {number}", batch.index)  # [N]
            grid = student.grid(x)
            patches, masked = masked_patches(key, grid, self.masked_images, self.mask_ratio)
            with torch.no_grad():
                g, v = self.teacher.encoder.scores(x, patches)  # [N, K], [N, M, K]
            g_t.append(g)
            v_t.append(v)
            u, v = student.features(x, patches, masked)  # [N, F], [N, M, F]
            u_s.append(u.float())
            g_s.append(student.head(u).float())
            v_s.append(student.patch_scores(v))
            masks.append(masked)
        g_s += [g.float() for g in encode_views(student, batch.views[2:], bn_groups)]  # V x [N, K]
        g_t, v_t = torch.stack(g_t), torch.stack(v_t)  # [2, N, K], [2, N, M, K]
        p_t = self.centre(g_t, self.teacher_temperature)  # [2, N, K]
        p_v = self.patch_centre(v_t, self.teacher_temperature, torch.stack(masks))  # [2, N, M, K]
        dino = distillation(p_t, g_s, self.student_temperature)
        ibot = torch.stack(
            [
                patch_loss(p, g, masked, self.student_temperature)
                for p, g, masked in zip(p_v, v_s, masks, strict=True)
            ]
        ).mean()
        spread = koleo(u_s[0]) + koleo(u_s[1])
        return {
            "loss": dino + ibot + self.koleo_weight * spread,
            "class_loss": dino,
            "patch_loss": ibot,
            "koleo": spread,
            "embedding_std": health.embedding_std(u_s[0]),
            "assignment_entropy": health.assignment_entropy(p_t[0]),
            "assignment_sharpness": health.assignment_sharpness(p_t[0]),
            "g_t": g_t.mean(dim=0),  # [N, K]
            "v_t": v_t.mean(dim=(0, 2)),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.centre.update(out["g_t"])
        self.patch_centre.update(out["v_t"])


def koleo(x: Tensor) -> Tensor:
    """L = -mean_i log min_{j != i} |x_i - x_j|, x on the unit sphere (arXiv:1806.03198, eq. 2).

    An estimate of the features' entropy, with the neighbours of all ranks' rows; the authors look
    at a rank's own.

    Args:
        x: [N, F] float32.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = distributed.gather(F.normalize(x, dim=1))  # [world x N, F]
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)  # [world x N]
        return -(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).log().mean()
