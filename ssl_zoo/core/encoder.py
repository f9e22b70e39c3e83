"""The map from images to embeddings, and its slow copy."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from ssl_zoo.config import HEADS, ConfigError, Part
from ssl_zoo.ops.batchnorm import groups_of, split_batchnorm


class Encoder(nn.Module):
    """A backbone and a head: images [N, C, H, W] -> embeddings [N, D].

    The head's BatchNorms are split into the backbone's `bn_groups`, as on so many processes.

    Raises:
        ConfigError: the head does not say how wide it is, `out_features`; the backbone is not as
            wide as it says.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        if not hasattr(head, "out_features"):
            found, expected = type(head).__name__, "a module whose attribute out_features is D"
            raise ConfigError("method.head", "of unknown width", found=found, expected=expected)
        self.backbone = backbone
        self.head = split_batchnorm(head, groups_of(backbone))
        self.out_features: int = head.out_features

    def forward(self, images: Tensor) -> Tensor:
        features = self.backbone(images)
        if features.shape[1:] != (self.backbone.num_features,):
            expected = f"[N, {self.backbone.num_features}], as its num_features says"
            found = str([*features.shape])
            raise ConfigError("backbone", "not a row of features", found=found, expected=expected)
        return self.head(features)


def predictor_for(encoder: Encoder, predictor: Part[HEADS]) -> nn.Module:
    """Predicts embeddings from embeddings, [N, D] -> [N, D]; BatchNorms are split as a head's."""
    built = predictor(in_features=encoder.out_features)
    if getattr(built, "out_features", encoder.out_features) != encoder.out_features:
        key, problem = "method.predictor.out_features", "a predictor is as wide as the head"
        expected = f"{encoder.out_features}, method.head.out_features"
        raise ConfigError(key, problem, found=str(built.out_features), expected=expected)
    return split_batchnorm(built, groups_of(encoder.backbone))


def encode_views(encoder: Encoder, views: list[Tensor]) -> list[Tensor]:
    """Outputs [N, ...] of each view [N, C, H, W], those of one size in one pass (multi-crop).

    A BatchNorm in between sees the views of a pass together, as in SwAV (arXiv:2006.09882). Each of
    `bn_groups` is given the same images in every view, as a process of its own would be.
    """
    outputs: list[Tensor | None] = [None] * len(views)
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, view in enumerate(views):
        by_size.setdefault(view.shape[1:], []).append(number)
    for numbers in by_size.values():
        if len(numbers) == 1:
            outputs[numbers[0]] = encoder(views[numbers[0]])
            continue
        parts = [views[number].tensor_split(groups_of(encoder.backbone)) for number in numbers]
        ordered = [part for group in zip(*parts, strict=True) for part in group]
        rows = encoder(torch.cat(ordered)).split([len(part) for part in ordered])
        for i, number in enumerate(numbers):
            outputs[number] = torch.cat(rows[i :: len(numbers)])
    return outputs


def without_drops(network: nn.Module) -> nn.Module:
    """The same network, which drops nothing from now on: paths, units, blocks, patches."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        # timm's: paths and blocks; before the classifier of CNNs; patches.
        for rate in {"drop_prob", "drop_rate", "prob"} & vars(module).keys():
            setattr(module, rate, 0.0)
    return network


class MomentumEncoder(nn.Module):
    """A copy of an encoder that follows it slowly: a key encoder, a target network, a teacher.

    BatchNorm runs on batch statistics; its running statistics are its own. It drops
    nothing, as `without_drops` says. Who needs more than outputs calls `encoder` under `no_grad`.
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = without_drops(copy.deepcopy(encoder).requires_grad_(False))

    @property
    def backbone(self) -> nn.Module:
        """The encoder without its head, or itself: a backbone may be followed alone."""
        return getattr(self.encoder, "backbone", self.encoder)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    @torch.no_grad()
    def follow(self, online: nn.Module, momentum: float) -> None:
        """theta_k <- m theta_k + (1 - m) theta_q (arXiv:1911.05722, equation 2)."""
        weights = list(self.encoder.parameters())
        torch._foreach_lerp_(weights, list(online.parameters()), 1.0 - momentum)
