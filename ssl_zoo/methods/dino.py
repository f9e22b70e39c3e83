"""Self-distillation with no labels."""

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, Part
from ssl_zoo.config.constraints import (
    NonNegativeInt,
    PositiveFloat,
    RampSteps,
    Scheduled,
    UnitInterval,
)
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, encode_views
from ssl_zoo.heads import FrozenStart
from ssl_zoo.losses import Center, dino_loss
from ssl_zoo.ops import health


@METHODS.register_module()
class DINO(Method):
    """A student learns from small crops what its teacher says of large ones (arXiv:2104.14294).

    The teacher is the student's running average; it sees the first two views, the student all.
    Its outputs are centered and sharpened; without either the method collapses.

    Args:
        backbone: a ViT takes crops of several sizes with `options: {dynamic_img_size: true}`.
        head: features -> scores of K outputs.
        momentum: of the teacher; the paper raises it to 1.
        center_momentum: of the running mean that is taken off the teacher's scores.
        frozen_steps: first steps in which a DINOHead's last layer stays as it is; an epoch's.
    """

    family = "distillation"
    views_needed = 2
    evaluated = "teacher"  # eval_linear.py of facebookresearch/dino

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        teacher_temperature: Scheduled[PositiveFloat] = 0.04,
        student_temperature: Scheduled[PositiveFloat] = 0.1,
        momentum: Scheduled[UnitInterval] = 0.996,
        center_momentum: Scheduled[UnitInterval] = 0.9,
        frozen_steps: RampSteps[NonNegativeInt] = 0,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.teacher = MomentumEncoder(self.encoder)
        self.center = Center(self.encoder.out_features)
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.momentum, self.center_momentum = momentum, center_momentum
        self.freeze = FrozenStart(self.encoder, frozen_steps)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        g_s = [g.float() for g in encode_views(self.encoder, batch.views)]  # V x [N, K]
        with torch.no_grad():
            g_t = torch.stack(encode_views(self.teacher.encoder, batch.views[:2])).float()
        p_t = self.center(g_t, self.teacher_temperature)  # [2, N, K]
        return {
            "loss": dino_loss(p_t, g_s, self.student_temperature),
            **health.figures(g_s[0], p_t[0]),
            "g_t": g_t.mean(dim=0),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.center.update(out["g_t"], self.center_momentum)
