"""DINOv2's losses."""

from typing import Literal

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Bounds, NonNegativeFloat, Part
from ssl_zoo.config.constraints import (
    NonNegativeInt,
    PositiveFloat,
    RampSteps,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.core import Batch, Method, MomentumEncoder, TokenEncoder, encode_views
from ssl_zoo.heads import FrozenStart
from ssl_zoo.losses import Center, SinkhornCenter, dino_loss, ibot_loss, koleo_loss
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import masked_patches


@METHODS.register_module()
class DINOv2(Method):
    """DINO and iBOT with a head each, and features spread out (DINOv2, arXiv:2304.07193).

    Loss = class tokens' (DINO) + masked patches' (iBOT) + koleo_weight x KoLeo. With `mean`, the
    patches' center is over those that may be masked, in the authors' code over those that are.

    Args:
        backbone: a ViT; with local views, `options: {dynamic_img_size: true}`.
        head, patch_head: class token, patch token -> scores.
        centering: of the teacher's scores, by a running mean or by Sinkhorn-Knopp in each batch.
        teacher_temperature, student_temperature: for class tokens and patches.
        momentum, center_momentum: of the teacher, and of the running means.
        koleo_weight: of the entropy estimate that keeps the images' features apart.
        masked_images, mask_ratio: chance that a view is masked; bounds of the share of its patches.
        frozen_steps: first steps in which the heads' last layers stay as they are.
    """

    family = "distillation"
    needs = "tokens"
    views_needed = 2
    least_images = 2
    evaluated = "teacher"  # dinov2/eval/setup.py of facebookresearch/dinov2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        patch_head: Part[HEADS],
        centering: Literal["mean", "sinkhorn"] = "sinkhorn",
        teacher_temperature: Scheduled[PositiveFloat] = 0.04,
        student_temperature: Scheduled[PositiveFloat] = 0.1,
        momentum: Scheduled[UnitInterval] = 0.994,
        center_momentum: Scheduled[UnitInterval] = 0.9,
        koleo_weight: Scheduled[NonNegativeFloat] = 0.1,
        masked_images: Scheduled[UnitInterval] = 0.5,
        mask_ratio: Bounds[UnitInterval] = (0.1, 0.5),
        frozen_steps: RampSteps[NonNegativeInt] = 0,
    ):
        super().__init__()
        self.encoder = TokenEncoder(backbone, head, patch_head)
        self.teacher = MomentumEncoder(self.encoder)
        if centering == "sinkhorn":
            self.center, self.patch_center = SinkhornCenter(), SinkhornCenter()
        else:
            self.center = Center(self.encoder.out_features)
            self.patch_center = Center(self.encoder.patch_head.out_features)
        self.teacher_temperature, self.koleo_weight = teacher_temperature, koleo_weight
        self.student_temperature = student_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        self.masked_images, self.mask_ratio = masked_images, mask_ratio
        self.freeze = FrozenStart(self.encoder, frozen_steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        student, teacher, of_views = self.encoder, self.teacher.encoder, []
        for number, x in enumerate(batch.views[:2]):
            key, grid = self.random_key(f"mask {number}", batch.index), student.grid(x)
            patches, masked = masked_patches(key, grid, self.masked_images, self.mask_ratio)
            with torch.no_grad():
                g_t, v_t = teacher.scores(*teacher.features(x, patches))  # [N, K], [N, M, K]
            u_s, patch_features = student.features(x, patches, masked)  # [N, F], [N, M, F]
            g_s, v_s = student.scores(u_s, patch_features)  # [N, K], [N, M, K]
            of_views.append((masked, g_t, v_t, u_s.float(), g_s, v_s))
        masks, g_t, v_t, u_s, g_s, v_s = zip(*of_views, strict=True)
        g_s = [*g_s, *(g.float() for g in encode_views(student, batch.views[2:]))]  # V x [N, K]
        g_t, v_t = torch.stack(g_t), torch.stack(v_t)  # [2, N, K], [2, N, M, K]
        p_t = self.center(g_t, self.teacher_temperature)  # [2, N, K]
        p_v = self.patch_center(v_t, self.teacher_temperature, torch.stack(masks))  # [2, N, M, K]
        class_loss = dino_loss(p_t, g_s, self.student_temperature)
        of_patches = zip(p_v, v_s, masks, strict=True)
        patch_losses = [ibot_loss(*view, self.student_temperature) for view in of_patches]
        patch_loss = torch.stack(patch_losses).mean()
        koleo = koleo_loss(u_s[0]) + koleo_loss(u_s[1])
        return {
            "loss": class_loss + patch_loss + self.koleo_weight * koleo,
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            "koleo": koleo,
            **health.figures(u_s[0], p_t[0]),
            "g_t": g_t.mean(dim=0),  # [N, K]
            "v_t": v_t.mean(dim=(0, 2)),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.center.update(out["g_t"], self.center_momentum)
        self.patch_center.update(out["v_t"], self.center_momentum)
