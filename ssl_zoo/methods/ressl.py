"""ReSSL: relations to other images, not identities."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, MEMORY, METHODS, ConfigError, Part, PositiveFloat, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.memory import MoCoQueue
from ssl_zoo.ops import health


@METHODS.register_module()
class ReSSL(Method):
    """A strong view relates to the queue as its weak view does (arXiv:2107.09282).

    L = mean of H(p, s),  p = softmax(k . queue / t_teacher),  s = softmax(q . queue / t_student),
    where H is the cross-entropy, q the student's strong view (0) and k the teacher's weak one (1).
    The queue and the teacher are MoCo's; no image is another's negative.

    Args:
        head: features -> embeddings, normalized here to unit length.
        memory: a MoCoQueue.
        student_temperature, teacher_temperature: t_student and the smaller t_teacher.
    """

    family = "contrastive"
    views_needed = 2
    evaluated = "backbone"  # linear_eval.py of KyleZheng1997/ReSSL

    def __init__(
        self,
        backbone: nn.Module,
        num_samples: int | None,
        *,
        head: Part[HEADS],
        memory: Part[MEMORY],
        student_temperature: Scheduled[PositiveFloat] = 0.1,
        teacher_temperature: Scheduled[PositiveFloat] = 0.04,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.memory = memory(encoder=self.encoder, num_samples=num_samples)
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    @staticmethod
    def validate(
        *, memory: Part[MEMORY], student_temperature: float, teacher_temperature: float, **_
    ) -> None:
        # Of a queue the stored keys alone are read: what another look-up adds would be lost.
        if getattr(memory.target, "lookup", None) is not MoCoQueue.lookup:
            problem, found = "ReSSL relates images to those of a queue", memory.target.__name__
            raise ConfigError("memory.type", problem, found=found, expected="MoCoQueue")
        if not teacher_temperature < student_temperature:
            problem = "the teacher must be sharper than the student"
            found, below = repr(teacher_temperature), f"below {student_temperature}, the student's"
            raise ConfigError("teacher_temperature", problem, found=found, expected=below)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        strong, weak = batch.views[:2]  # [N, C, H, W]
        q = F.normalize(self.encoder(strong).float(), dim=1)  # [N, D]
        k = self.memory.encode(self.encoder, weak, batch.index)  # [N, D], no gradient
        queue = self.memory.stored  # [K, D]
        with torch.autocast(q.device.type, enabled=False):
            p = (k @ queue.T / self.teacher_temperature).softmax(dim=1)  # [N, K]
            loss = F.cross_entropy(q @ queue.T / self.student_temperature, p)
        return {
            "loss": loss,
            "embedding_std": health.embedding_std(q),
            "q": q[:, None],  # [N, 1, D]
            "k": k[:, None],
        }

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.memory.update(self.encoder, out["q"], out["k"], batch.index)

    def remark(self, batch_size: int) -> str:
        return self.memory.remark(batch_size)
