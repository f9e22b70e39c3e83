"""Self-distillation with no labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, above, at_least, within
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, encode_views
from ssl_zoo.heads import Centre, FrozenStart
from ssl_zoo.ops import health


@METHODS.register_module()
class DINO(Method):
    """A student learns from small crops what its teacher says of large ones (arXiv:2104.14294).

    The teacher is the student's running average; it sees the first two views, the student all.
    Its outputs are centred, against one output winning always, and sharpened, against all outputs
    being alike; without either the method collapses.

    Args:
        backbone: images -> features. A ViT takes crops of several sizes with
            `options: {dynamic_img_size: true}`.
        head: features -> scores of K outputs.
        teacher_temperature: t_t.
        student_temperature: t_s.
        momentum: of the teacher; the paper raises it to 1.
        centre_momentum: of the running mean that is taken off the teacher's scores.
        frozen_steps: first steps in which a DINOHead's last layer stays as it is; an epoch's.
    """

    family = "distillation"
    views_needed = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        teacher_temperature: float = 0.04,
        student_temperature: float = 0.1,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        frozen_steps: int = 0,
    ):
        super().__init__()
        self.validate(
            teacher_temperature=teacher_temperature,
            student_temperature=student_temperature,
            momentum=momentum,
            centre_momentum=centre_momentum,
            frozen_steps=frozen_steps,
        )
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.teacher = MomentumEncoder(self.encoder)
        self.centre = Centre(self.encoder.out_features, centre_momentum)
        self.teacher_temperature = teacher_temperature
        self.student_temperature = student_temperature
        self.momentum = momentum
        self.freeze = FrozenStart(self.encoder, frozen_steps)

    @staticmethod
    def validate(
        *,
        teacher_temperature: float = 1.0,
        student_temperature: float = 1.0,
        momentum: float = 1.0,
        centre_momentum: float = 1.0,
        frozen_steps: int = 0,
        **_,
    ) -> None:
        above("teacher_temperature", teacher_temperature, 0)
        above("student_temperature", student_temperature, 0)
        within("momentum", momentum, 0, 1)
        within("centre_momentum", centre_momentum, 0, 1)
        at_least("frozen_steps", frozen_steps, 0)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        groups = self.encoder.backbone.bn_groups
        g_s = [g.float() for g in encode_views(self.encoder, batch.views, groups)]  # V x [N, K]
        g_t = torch.stack(encode_views(self.teacher, batch.views[:2], groups)).float()  # [2, N, K]
        p_t = self.centre(g_t, self.teacher_temperature)  # [2, N, K]
        return {
            "loss": distillation(p_t, g_s, self.student_temperature),
            "embedding_std": health.embedding_std(g_s[0]),
            "assignment_entropy": health.assignment_entropy(p_t[0]),
            "assignment_sharpness": health.assignment_sharpness(p_t[0]),
            "g_t": g_t.mean(dim=0),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.centre.update(out["g_t"])


def distillation(p_t: Tensor, g_s: list[Tensor], temperature: float) -> Tensor:
    """L = mean over views t != s of -p_t . log softmax(g_s / t_s) (arXiv:2104.14294, eq. 3).

    Args:
        p_t: teacher's probabilities [T, N, K] of the T views it saw.
        g_s: student's scores [N, K] of all views, those that the teacher saw first.
        temperature: t_s.
    """
    losses = [
        F.cross_entropy(g / temperature, p)
        for t, p in enumerate(p_t)
        for s, g in enumerate(g_s)
        if s != t
    ]
    return torch.stack(losses).mean()
