"""A teacher's contextual features of masked patches."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, ConfigError, PositiveFloat, PositiveInt, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder
from ssl_zoo.heads import Linear
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import Share, masked_blocks, take


@METHODS.register_module()
class Data2Vec(Method):
    """Regress what a slow teacher sees in the whole image (data2vec, arXiv:2202.03555).

    loss = mean over masked patches of smooth_l1(y, 1/K sum over the last K blocks of LN(a_k)),
    a_k the teacher's output of block k. The authors' code normalizes the mean once more.

    Args:
        top_blocks: K.
        beta: where smooth L1 goes from a square to a line.
        momentum: of the teacher.
        mask_ratio: share of the patches that is masked, in blocks.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True
    evaluated = "backbone"  # beit/run_class_finetuning.py of facebookresearch/data2vec_vision

    def __init__(
        self,
        backbone: nn.Module,
        *,
        top_blocks: PositiveInt = 6,
        beta: Scheduled[PositiveFloat] = 2.0,
        momentum: Scheduled[UnitInterval] = 0.999,
        mask_ratio: Scheduled[Share] = 0.6,
    ):
        super().__init__()
        backbone.require_token_norm()
        depth, problem = backbone.depth, "more than the ViT has"
        if top_blocks > depth:
            found, most = str(top_blocks), f"at most {depth}"
            raise ConfigError("method.top_blocks", problem, found=found, expected=most)
        width = backbone.num_features
        self.encoder = Encoder(backbone, Linear(width, out_features=width))
        self.teacher = MomentumEncoder(backbone)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.top_blocks, self.beta, self.momentum = top_blocks, beta, momentum
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, student = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        student.require_own_size(images)
        key = self.random_key("mask", batch.index)  # [N]
        chosen, masked = masked_blocks(key, student.grid_size, self.mask_ratio)  # [N, M], [N, L]
        z = student.tokens(images, masked, self.mask_token)[:, student.num_prefix_tokens :]
        y = self.encoder.head(take(z, chosen)).float()  # [N, M, F]
        target = self.targets(images)  # [N, L, F]
        return {
            "loss": F.smooth_l1_loss(y, take(target, chosen), beta=self.beta),
            "embedding_std": health.embedding_std(target.mean(dim=1)),
        }

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, L, F]."""
        teacher = self.teacher.encoder
        blocks = teacher.last_blocks(images, self.top_blocks)  # K x [N, P + L, F]
        patches = [a[:, teacher.num_prefix_tokens :] for a in blocks]
        normalized = [F.layer_norm(a.float(), a.shape[-1:]) for a in patches]
        return torch.stack(normalized).mean(dim=0)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder.backbone, self.momentum)
