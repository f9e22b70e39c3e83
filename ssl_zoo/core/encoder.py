"""The map from images to embeddings, and its slow copy."""

import copy

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ssl_zoo.config import HEADS, ConfigError, Part
from ssl_zoo.ops.batchnorm import split_batchnorm


class Encoder(nn.Module):
    """A backbone and a head: images [N, C, H, W] -> embeddings [N, D].

    The head's BatchNorms are split into the backbone's `bn_groups`, since on G processes they
    would be.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = split_batchnorm(head, backbone.bn_groups)
        self.out_features: int = head.out_features

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def predictor_for(encoder: Encoder, predictor: Part[HEADS]) -> nn.Module:
    """What predicts embeddings from embeddings, [N, D] -> [N, D], its BatchNorms split as a head's.

    Raises:
        ConfigError: its outputs are not as wide as the embeddings.
    """
    built = predictor(in_features=encoder.out_features)
    if getattr(built, "out_features", encoder.out_features) != encoder.out_features:
        raise ConfigError(
            "method.predictor.out_features",
            "a predictor is as wide as the head",
            found=str(built.out_features),
            expected=f"{encoder.out_features}, method.head.out_features",
        )
    return split_batchnorm(built, encoder.backbone.bn_groups)


def encode_views(encoder: nn.Module, views: list[Tensor], groups: int = 1) -> list[Tensor]:
    """Outputs [N, ...] of each view, those of one size in one pass (multi-crop).

    A BatchNorm in between sees the views of a pass together, as in SwAV (arXiv:2006.09882).

    Args:
        encoder: images [N, C, H, W] -> [N, ...].
        views: [N, C, H, W] each; H and W may differ.
        groups: the encoder's `bn_groups`; rows are then ordered so that a group holds the same
            images in every view, as a process of its own would.
    """
    outputs: list[Tensor | None] = [None] * len(views)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        by_size.setdefault(view.shape[1:], []).append(number)
    for numbers in by_size.values():
        if len(numbers) == 1:
            outputs[numbers[0]] = encoder(views[numbers[0]])
            continue
        parts = [views[number].tensor_split(groups) for number in numbers]
        ordered = [part for group in zip(*parts, strict=True) for part in group]
        found = encoder(torch.cat(ordered)).split([len(part) for part in ordered])
        for i, number in enumerate(numbers):
            outputs[number] = torch.cat(found[i :: len(numbers)])
    return outputs


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it slowly, and never by gradient.

    Key encoder, target network and teacher are this. It starts equal to the encoder, head
    included. BatchNorm runs on batch statistics, as in the online encoder; its running statistics
    are its own. It drops nothing, whatever the online encoder does: neither drop path nor dropout.
    What needs more than its outputs (tokens, a map) calls `encoder` under `no_grad`.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "drop_rate"):  # timm's CNNs, before the classifier
                module.drop_rate = 0.0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    @torch.no_grad()
    def follow(self, online: nn.Module, momentum: float) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (arXiv:1911.05722, equation 2)."""
        keys, queries = list(self.encoder.parameters()), list(online.parameters())
        torch._foreach_lerp_(keys, queries, 1.0 - momentum)
