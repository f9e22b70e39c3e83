"""BERT for images: the visual words of masked patches."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, Part, PositiveFloat, PositiveInt, RampSteps, Scheduled
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear
from ssl_zoo.ops import health
from ssl_zoo.ops.masking import Share, masked_blocks, take


@METHODS.register_module()
class BEiT(Method):
    """Which visual word stands behind each masked patch? (BEiT, arXiv:2106.08254).

    loss = -mean over masked patches i of log p(word_i | masked image).

    The paper takes DALL-E's tokenizer, trained elsewhere. Here one is trained in the first steps
    of the same run and then frozen. Until then both losses are computed, without a gradient in
    common, and the optimizer leaves the ViT alone; from then on it leaves the tokenizer alone.

    Args:
        tokenizer: (images, temperature, key) -> (its loss, words); `words(images)` -> words.
        tokenizer_steps: optimizer steps before it is frozen.
        temperatures: of its relaxed draws, first and last; between them geometric.
        mask_ratio: share of the patches that is masked, in blocks.
    """

    family = "masked"
    needs = "tokens"
    needs_own_size = True

    def __init__(
        self,
        backbone: nn.Module,
        *,
        tokenizer: Part[HEADS],
        tokenizer_steps: RampSteps[PositiveInt],
        temperatures: tuple[PositiveFloat, PositiveFloat] = (1.0, 0.0625),
        mask_ratio: Scheduled[Share] = 0.4,
    ):
        super().__init__()
        backbone.require_token_norm()
        width, patch_size = backbone.num_features, backbone.patch_size
        in_chans = backbone.patch_values // math.prod(patch_size)
        self.tokenizer = tokenizer(in_chans=in_chans, patch_size=patch_size)
        self.encoder = Encoder(backbone, Linear(width, out_features=self.tokenizer.vocabulary))
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.tokenizer_steps, self.temperatures = tokenizer_steps, temperatures
        self.tokenizing = True  # once false, the GPU's step count is asked no more
        self.mask_ratio = mask_ratio

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        images, vit = batch.views[0], self.encoder.backbone  # [N, C, H, W]
        vit.require_own_size(images)
        self.tokenizing = self.tokenizing and bool(self.steps < self.tokenizer_steps)
        if self.tokenizing:
            key = self.random_key("tokenizer", batch.index)  # [N]
            bound, words = self.tokenizer(images, self.temperature(), key)  # [], [N, L]
            bounds = {"tokenizer_loss": bound}
        else:
            with torch.no_grad():
                words = self.tokenizer.words(images)  # [N, L]
            # DDP waits for a gradient of every parameter.
            bound, bounds = 0 * sum(p.sum() for p in self.tokenizer.parameters()), {}

        key = self.random_key("mask", batch.index)  # [N]
        chosen, masked = masked_blocks(key, vit.grid_size, self.mask_ratio)  # [N, M], [N, L]
        z = vit.tokens(images, masked, self.mask_token)[:, vit.num_prefix_tokens :]  # [N, L, F]
        logits = self.encoder.head(take(z, chosen)).float().flatten(0, 1)  # [N * M, V]
        target = words.gather(1, chosen).flatten()  # [N * M]
        loss = F.cross_entropy(logits, target)

        used = torch.zeros(1, self.tokenizer.vocabulary, device=words.device)
        used.index_add_(1, words.flatten(), used.new_ones(1, words.numel()))
        return {
            "loss": loss + bound,
            "token_loss": loss,
            **bounds,
            "top1": 100 * (logits.argmax(dim=1) == target).float().mean(),
            "assignment_entropy": health.assignment_entropy(used / words.numel()),
        }

    def temperature(self) -> Tensor:
        first, last = self.temperatures
        done = (self.steps / self.tokenizer_steps).clamp(max=1)
        return first * (last / first) ** done

    def after_backward(self) -> None:
        # Gradients of zero would not do: Adam moves on by momentum and weight decay.
        of_tokenizer = set(self.tokenizer.parameters())
        for p in self.parameters():
            if (p in of_tokenizer) != self.tokenizing:
                p.grad = None
