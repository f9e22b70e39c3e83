"""Masked patches as self-distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssl_zoo.config import HEADS, METHODS, ConfigError, Part, above, at_least, within
from ssl_zoo.core import Batch, Encoder, Method, MomentumEncoder, encode_views
from ssl_zoo.heads import Centre, FrozenStart
from ssl_zoo.methods.dino import distillation
from ssl_zoo.ops import health
from ssl_zoo.ops.batchnorm import split_batchnorm
from ssl_zoo.ops.masking import masked_patches, take


@METHODS.register_module()
class IBOT(Method):
    """DINO, and its teacher is also the tokeniser of masked patches (iBOT, arXiv:2111.07832).

    The student sees the two global views with blocks of patches masked, and says of each masked
    patch what the teacher, who sees it, says there. Local views are never masked.

    Args:
        backbone: a ViT; with local views, `options: {dynamic_img_size: true}`.
        head: class token -> scores of K outputs.
        patch_head: patch token -> scores; null: `head` serves both (the paper's choice).
        teacher_temperature, patch_temperature: of the teacher, for class tokens and for patches.
        student_temperature: for both.
        momentum: of the teacher.
        centre_momentum: of the running means of the teacher's scores, one for class tokens and
            one for patches, of those drawn to be masked.
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
        patch_head: Part[HEADS] | None = None,
        teacher_temperature: float = 0.04,
        patch_temperature: float = 0.04,
        student_temperature: float = 0.1,
        momentum: float = 0.996,
        centre_momentum: float = 0.9,
        masked_images: float = 0.5,
        mask_ratio: tuple[float, float] = (0.1, 0.5),
        frozen_steps: int = 0,
    ):
        super().__init__()
        self.validate(
            teacher_temperature=teacher_temperature,
            patch_temperature=patch_temperature,
            student_temperature=student_temperature,
            momentum=momentum,
            centre_momentum=centre_momentum,
            masked_images=masked_images,
            mask_ratio=mask_ratio,
            frozen_steps=frozen_steps,
        )
        self.encoder = TokenEncoder(backbone, head, patch_head)
        self.teacher = MomentumEncoder(self.encoder)
        self.centre = Centre(self.encoder.out_features, centre_momentum)
        self.patch_centre = Centre(self.encoder.patch_head.out_features, centre_momentum)
        self.teacher_temperature, self.patch_temperature = teacher_temperature, patch_temperature
        self.student_temperature, self.momentum = student_temperature, momentum
        self.masked_images, self.mask_ratio = masked_images, mask_ratio
        self.freeze = FrozenStart(self.encoder, frozen_steps)

    @staticmethod
    def validate(**arguments) -> None:
        check(**arguments)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        views, bn_groups = batch.views, self.encoder.backbone.bn_groups
        g_s, g_t, v_t, patch_losses = [], [], [], []
        for number, x in enumerate(views[:2]):
            key = self.random_key(f"mask {number}", batch.index)  # [N]
            grid = self.encoder.grid(x)
            patches, masked = masked_patches(key, grid, self.masked_images, self.mask_ratio)
            with torch.no_grad():
                u, v = self.teacher.encoder.scores(x, patches)  # [N, K], [N, M, K]
            p_t = self.patch_centre(v, self.patch_temperature)  # [N, M, K]
            g_t.append(u)
            v_t.append(v.mean(dim=1))
            u, v = self.encoder.scores(x, patches, masked)  # [N, K], [N, M, K]
            g_s.append(u)
            patch_losses.append(patch_loss(p_t, v, masked, self.student_temperature))
        g_s += [g.float() for g in encode_views(self.encoder, views[2:], bn_groups)]  # V x [N, K]
        p_t = self.centre(torch.stack(g_t), self.teacher_temperature)  # [2, N, K]
        class_loss = distillation(p_t, g_s, self.student_temperature)
        mim_loss = torch.stack(patch_losses).mean()
        return {
            "loss": class_loss + mim_loss,
            "class_loss": class_loss,
            "patch_loss": mim_loss,
            "embedding_std": health.embedding_std(g_s[0]),
            "assignment_entropy": health.assignment_entropy(p_t[0]),
            "assignment_sharpness": health.assignment_sharpness(p_t[0]),
            "g_t": torch.stack(g_t).mean(dim=0),  # [N, K]
            "v_t": torch.stack(v_t).mean(dim=0),  # [N, K]
        }

    def after_backward(self) -> None:
        self.freeze(self.steps)

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.teacher.follow(self.encoder, self.momentum)
        self.centre.update(out["g_t"])
        self.patch_centre.update(out["v_t"])


class TokenEncoder(Encoder):
    """A ViT with a head for its class token and one for its patches, which may be masked.

    Called with images alone it is an encoder like others: the class token's scores [N, K].
    """

    def __init__(self, backbone: nn.Module, head: Part[HEADS], patch_head: Part[HEADS] | None):
        width = backbone.num_features
        super().__init__(backbone, head(in_features=width))
        self.patch_head = (
            split_batchnorm(patch_head(in_features=width), backbone.bn_groups)
            if patch_head is not None
            else self.head
        )
        self.mask_token = nn.Parameter(torch.zeros(width))

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches down and across these images."""
        height, width = self.backbone.patch_size
        return images.shape[2] // height, images.shape[3] // width

    def features(
        self, images: Tensor, patches: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Class features [N, F] and those of M patches [N, M, F].

        Args:
            images: [N, C, H, W], in L patches.
            patches: [N, M] int64, numbers of the patches asked for.
            masked: [N, M] bool, which of them are hidden.
        """
        if masked is not None:
            h, w = self.grid(images)
            nothing = torch.zeros(len(images), h * w, dtype=torch.bool, device=images.device)
            masked = nothing.scatter(1, patches, masked)  # [N, L]
        x = self.backbone.tokens(images, masked, self.mask_token)  # [N, P + L, F]
        return self.backbone.pool(x), take(x, patches + self.backbone.num_prefix_tokens)

    def scores(
        self, images: Tensor, patches: Tensor, masked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The heads' scores of `features`, float32: [N, K] and [N, M, K]."""
        u, v = self.features(images, patches, masked)
        return self.head(u).float(), self.patch_scores(v)

    def patch_scores(self, v: Tensor) -> Tensor:
        """[N, M, F] -> [N, M, K] float32."""
        return self.patch_head(v.flatten(0, 1)).float().unflatten(0, v.shape[:2])


def patch_loss(p_t: Tensor, g_s: Tensor, masked: Tensor, temperature: float) -> Tensor:
    """L = mean_n mean_{m masked} -p_t . log softmax(g_s / t_s) (arXiv:2111.07832, equation 2).

    An image without masked patches counts as 0, as in the authors' code.

    Args:
        p_t, g_s: [N, M, K].
        masked: [N, M] bool.
        temperature: t_s.
    """
    loss = -(p_t * (g_s / temperature).log_softmax(dim=-1)).sum(dim=-1)  # [N, M]
    return ((loss * masked).sum(dim=1) / masked.sum(dim=1).clamp(min=1)).mean()


def check(
    *,
    teacher_temperature: float = 1.0,
    patch_temperature: float = 1.0,
    student_temperature: float = 1.0,
    momentum: float = 1.0,
    centre_momentum: float = 1.0,
    masked_images: float = 0.0,
    mask_ratio: tuple[float, float] = (0.0, 1.0),
    frozen_steps: int = 0,
    **_,
) -> None:
    """Raises ConfigError for what no patch-masking distillation can mean."""
    above("teacher_temperature", teacher_temperature, 0)
    above("patch_temperature", patch_temperature, 0)
    above("student_temperature", student_temperature, 0)
    within("momentum", momentum, 0, 1)
    within("centre_momentum", centre_momentum, 0, 1)
    within("masked_images", masked_images, 0, 1)
    if not 0 <= mask_ratio[0] <= mask_ratio[1] <= 1:
        raise ConfigError(
            "mask_ratio", "not [low, high]", found=str(mask_ratio), expected="0 <= low <= high <= 1"
        )
    at_least("frozen_steps", frozen_steps, 0)
