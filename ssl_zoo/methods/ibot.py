"""Masked patches as self-distillation."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Bounds, Part
from ssl_zoo.config.constraints import (
    NonNegativeInt,
    PositiveFloat,
    RampSteps,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.core import Batch, Method, MomentumEncoder, TokenEncoder, encode_views
from ssl_zoo.heads import FrozenStart
from ssl_zoo.losses import Center, dino_loss, ibot_loss
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import masked_patches


@METHODS.register_module()
class IBOT(Method):
    """DINO, and its teacher is also the tokenizer of masked patches (iBOT, arXiv:2111.07832).

    The student sees the two global views with blocks of patches masked, and says of each masked
    patch what the teacher, who sees it, says there. Local views are never masked. The center of
    patches is a mean over those that may be masked, in the authors' code over all.

    Args:
        backbone: a ViT; with local views, `options: {dynamic_img_size: true}`.
        head: class token -> scores of K outputs.
        patch_head: patch token -> scores; null: `head` serves both (the paper's choice).
        teacher_temperature, patch_temperature: of the teacher, for class tokens and for patches.
        student_temperature: for both.
        momentum, center_momentum: of the teacher, and of the scores' running means.
        masked_images, mask_ratio: chance that a view is masked; bounds of the share of its patches.
        frozen_steps: first steps in which the heads' last layers stay as they are.
    """

    family = "distillation"
    needs = "tokens"
    views_needed = 2
    evaluated = "teacher"  # evaluation/eval_linear.py of bytedance/ibot

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        patch_head: Part[HEADS] | None = None,
        teacher_temperature: Scheduled[PositiveFloat] = 0.04,
        patch_temperature: Scheduled[PositiveFloat] = 0.04,
        student_temperature: Scheduled[PositiveFloat] = 0.1,
        momentum: Scheduled[UnitInterval] = 0.996,
        center_momentum: Scheduled[UnitInterval] = 0.9,
        masked_images: Scheduled[UnitInterval] = 0.5,
        mask_ratio: Bounds[UnitInterval] = (0.1, 0.5),
        frozen_steps: RampSteps[NonNegativeInt] = 0,
    ):
        super().__init__()
        self.encoder = TokenEncoder(backbone, head, patch_head)
        self.teacher = MomentumEncoder(self.encoder)
        self.center = Center(self.encoder.out_features)
        self.patch_center = Center(self.encoder.patch_head.out_features)
        self.teacher_temperature, self.patch_temperature = teacher_temperature, patch_temperature
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
            p_t = self.patch_center(v_t, self.patch_temperature)  # [N, M, K]
            g_s, v_s = student.scores(*student.features(x, patches, masked))  # [N, K], [N, M, K]
            patch_loss = ibot_loss(p_t, v_s, masked, self.student_temperature)
            of_views.append((g_t, v_t.mean(dim=1), g_s, patch_loss))
        g_t, v_t, g_s, patch_losses = zip(*of_views, strict=True)
        g_s = [*g_s, *(g.float() for g in encode_views(student, batch.views[2:]))]  # V x [N, K]
        p_t = self.center(torch.stack(g_t), self.teacher_temperature)  # [2, N, K]
        class_loss = dino_loss(p_t, g_s, self.student_temperature)
        patch_loss = torch.stack(patch_losses).mean()
        return {
            "loss": class_loss + patch_loss,
            "class_loss": class_loss,
            "patch_loss": patch_loss,
            **health.figures(g_s[0], p_t[0]),
            "g_t": torch.stack(g_t).mean(dim=0),  # [N, K]
            "v_t": torch.stack(v_t).mean(dim=0),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.center.update(out["g_t"], self.center_momentum)
        self.patch_center.update(out["v_t"], self.center_momentum)
