"""A small discrete VAE: images as words of a visual vocabulary."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, AtLeastTwo, NonNegativeFloat, PositiveInt, Scheduled
from ssl_zoo.system import rng


@HEADS.register_module()
class DiscreteVAE(nn.Module):
    """One of V visual words for each patch, by a small DALL-E's Gumbel-softmax (arXiv:2102.12092).

    Args:
        in_chans, patch_size: C; height and width of a patch in pixels.
        vocabulary, width: V; of its convolutions.
        kl_weight: of KL(q || uniform), which keeps all words in use.
    """

    def __init__(
        self,
        in_chans: int,
        patch_size: tuple[int, int],
        *,
        vocabulary: AtLeastTwo = 8192,
        width: PositiveInt = 256,
        kl_weight: Scheduled[NonNegativeFloat] = 0.0,
    ):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(in_chans, width, patch_size, stride=patch_size),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, vocabulary, 1),
        )
        self.decode = nn.Sequential(
            nn.Conv2d(vocabulary, width, 1),  # its columns are the codebook
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.ConvTranspose2d(width, in_chans, patch_size, stride=patch_size),
        )
        self.vocabulary, self.kl_weight = vocabulary, kl_weight

    def forward(self, images: Tensor, temperature: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the negative evidence bound, [], and each patch's word, [N, L] int64.

        |decode(softmax((logits + gumbel(key)) / temperature)) - x|^2 + kl_weight KL(q || uniform)
        """
        logits = self.encode(images).float()  # [N, V, h, w]
        number = torch.arange(logits[0].numel(), device=key.device)
        u = rng.uniform(key[:, None], "gumbel", number).clamp(min=2.0**-25).view_as(logits)
        words = F.softmax((logits - (-u.log()).log()) / temperature, dim=1)  # [N, V, h, w]
        error = F.mse_loss(self.decode(words).float(), images.float())
        if self.kl_weight:
            log_q = F.log_softmax(logits, dim=1)
            kl = (log_q.exp() * (log_q + math.log(self.vocabulary))).sum(dim=1).mean()
            error = error + self.kl_weight * kl
        return error, logits.argmax(dim=1).flatten(1)

    def words(self, images: Tensor) -> Tensor:
        """Each patch's word alone, [N, L] int64."""
        return self.encode(images).float().argmax(dim=1).flatten(1)
