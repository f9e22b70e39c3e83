"""Which modules normalize: their weights are often not decayed, their statistics kept or joined."""

from collections.abc import Iterator

from timm.layers import freeze_batch_norm_2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

_OF_TORCH = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# timm's own kinds stand in modules of their own.
_OF_TIMM = {
    f"timm.layers.{name}"
    for name in ("norm", "norm_act", "evo_norm", "filter_response_norm", "grn", "inplace_abn")
}


def norms_of(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of all that normalizes, known by its class: BatchNorm, LayerNorm, ..."""
    for name, module in network.named_modules():
        if isinstance(module, _OF_TORCH) or type(module).__module__ in _OF_TIMM:
            yield name, module


def freeze_batchnorm(network: nn.Module) -> nn.Module:
    """The network with statistics and weights of every BatchNorm fixed as they are; in place.

    Raises:
        ValueError: it has none, or one whose statistics were never filled, mean 0 and variance 1:
            to normalize by these is not to normalize.
    """
    statistics = {name: norm for name, norm in norms_of(network) if isinstance(norm, _BatchNorm)}
    if not statistics:
        raise ValueError("no BatchNorm whose statistics could be frozen")
    for name, norm in statistics.items():
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or not (mean.is_meta or mean.any() or (variance != 1).any()):
            raise ValueError(f"statistics of {name} were never filled")
    return freeze_batch_norm_2d(network)


def is_synchronized(network: nn.Module) -> bool:
    """Whether some BatchNorm takes its statistics over all processes."""
    return any(isinstance(norm, nn.SyncBatchNorm) for _, norm in norms_of(network))
