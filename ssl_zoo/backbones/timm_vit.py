"""timm's ViTs as backbones: tokens that can be replaced or left out."""

import math

import torch
from timm.layers import Format
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor, nn

from ssl_zoo.backbones.timm_model import TimmMaps
from ssl_zoo.config import ConfigError
from ssl_zoo.ops.masking import take


class TimmViTMaps(TimmMaps):
    """A VisionTransformer, a hybrid on a CNN's map too. Its map is its patches, row by row."""

    def __init__(self, model: VisionTransformer, *args):
        super().__init__(model, *args)
        self.num_prefix_tokens = model.num_prefix_tokens

    @property
    def patch_embed(self) -> nn.Module:
        return self.model.patch_embed

    def pool(self, x: Tensor) -> Tensor:
        """Tokens [N, P + L, F], or a map [N, F, h, w] by attention or mean -> [N, F]."""
        if x.ndim == 3:
            return self.model.forward_head(x, pre_logits=True)
        x = x.flatten(2).mT  # [N, L, F]
        attend = self.model.attn_pool
        return self.model.fc_norm(x.mean(dim=1) if attend is None else attend(x))

    def only_maps(self) -> None:
        """See `Adaptable`: timm interpolates positions to the grid of each batch."""
        embed = self.patch_embed
        self.model.dynamic_img_size = True
        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        super().only_maps()

    def _on_grid(self, x: Tensor, images: Tensor) -> Tensor:
        size = self.patch_embed.dynamic_feat_size(images.shape[2:])
        return x[:, self.num_prefix_tokens :].mT.unflatten(2, size)


class TimmViT(TimmViTMaps):
    """One whose patches are of pixels, and no others; see `Tokens`."""

    def __init__(self, model: VisionTransformer, *args):
        super().__init__(model, *args)
        self.depth = len(model.blocks)
        self.patch_size, self.grid_size = self.patch_embed.patch_size, self.patch_embed.grid_size
        self.patch_values = self.in_chans * math.prod(self.patch_size)

    def tokens(
        self,
        images: Tensor,
        masked: Tensor | None = None,
        mask_token: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        vit = self.model
        x = vit.patch_embed(self._checked(images))  # [N, L, F], or [N, h, w, F] if sizes may vary
        if masked is not None:
            masked = masked.view(*x.shape[:-1], 1)
            x = torch.where(masked, mask_token.to(x.dtype), x)
        x = vit._pos_embed(x)  # [N, P + L, F]
        if kept is not None:
            prefix, patches = x.tensor_split([vit.num_prefix_tokens], dim=1)
            x = torch.cat([prefix, take(patches, kept)], dim=1)  # [N, P + K, F]
        x = vit.norm_pre(vit.patch_drop(x))
        x = checkpoint_seq(vit.blocks, x) if vit.grad_checkpointing else vit.blocks(x)
        return vit.norm(x)

    def last_blocks(self, images: Tensor, count: int) -> list[Tensor]:
        outputs = self.model.forward_intermediates(
            self._checked(images),
            indices=count,
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not self.num_prefix_tokens:
            return outputs
        return [torch.cat([prefix, patches], dim=1) for patches, prefix in outputs]

    def require_token_norm(self) -> None:
        by_attention = self.model.attn_pool is not None
        if by_attention or list(self.model.fc_norm.parameters()):
            pools = "pools by attention" if by_attention else "has its last norm after pooling"
            problem = f"it {pools}, which a loss on tokens does not reach"
            found, expected = self.model.global_pool, "global_pool: avg, and fc_norm: false"
            raise ConfigError("backbone.options", problem, found=found, expected=expected)

    def require_own_size(self, images: Tensor) -> None:
        grid = self.patch_embed.dynamic_feat_size(images.shape[2:])
        if grid != self.grid_size:
            found = "images of {} x {} pixels make {} x {} patches".format(*images.shape[2:], *grid)
            sides = [n * p for n, p in zip(self.grid_size, self.patch_size, strict=True)]
            expected = "{} x {} pixels (backbone.options.img_size)".format(*sides)
            raise ValueError(f"{found}, where masks have others: expected {expected}")
