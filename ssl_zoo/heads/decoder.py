"""A narrow ViT that fills in patches from those that were seen."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_zoo.config import HEADS, ConfigError, PositiveInt


@HEADS.register_module()
class ViTDecoder(nn.Module):
    """MAE's decoder (arXiv:2111.06377), and I-JEPA's predictor (arXiv:2301.08243).

    A mask token stands at each wanted place; positions are fixed sines and cosines.

    Args:
        in_features, out_features: width of the encoder's tokens, F; numbers to predict for a patch.
        grid: patches down and across.
        width: of the decoder, D; a multiple of 4 and of `num_heads`.
        depth: transformer blocks.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: tuple[int, int],
        *,
        width: PositiveInt = 512,
        depth: PositiveInt = 8,
        num_heads: PositiveInt = 16,
    ):
        super().__init__()
        self.embed = nn.Linear(in_features, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, out_features)
        self.out_features = out_features
        self.register_buffer("positions", sincos_positions(grid, width), persistent=False)
        self.apply(_init)
        nn.init.normal_(self.mask_token, std=0.02)

    @staticmethod
    def validate(*, width: int, num_heads: int, **_) -> None:
        if width % 4 or width % num_heads:
            expected = f"a multiple of 4 and of num_heads, {num_heads}"
            raise ConfigError("width", "not a multiple", found=str(width), expected=expected)

    def forward(self, x: Tensor, seen: Tensor, wanted: Tensor) -> Tensor:
        """Predictions for `wanted` patches [N, T], [N, T, out_features].

        From tokens x [N, P + K, F]: P without a place, then one for each of `seen` [N, K] int64.
        """
        x = self.embed(x)  # [N, P + K, D]
        prefix, patches = x.tensor_split([x.shape[1] - seen.shape[1]], dim=1)
        asked = self.mask_token + self.positions[wanted]  # [N, T, D]
        x = torch.cat([prefix, patches + self.positions[seen], asked], dim=1)
        x = self.blocks(x)[:, -wanted.shape[1] :]  # [N, T, D]
        return self.predict(self.norm(x))


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Positions of a grid's patches, [h * w, width]: half of it tells the row, half the column.

    sin and cos of place * 10000^(-i / (width / 4)) each (arXiv:1706.03762, section 3.5).
    """
    rate = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    place = torch.cartesian_prod(*(torch.arange(length) for length in grid))  # [h * w, 2]
    angle = place[:, :, None] * rate  # [h * w, 2, width / 4]
    return torch.cat([angle.sin(), angle.cos()], dim=2).flatten(1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
