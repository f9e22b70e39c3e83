"""Which modules normalize: their weights are often not decayed, their statistics kept or joined."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

_OF_TORCH = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# timm's own kinds stand in modules of their own.
_OF_TIMM = {
    f"timm.layers.{name}"
    for name in ("norm", "norm_act", "evo_norm", "filter_response_norm", "grn", "inplace_abn")
}


def norms_of(network: nn.Module) -> Iterator[nn.Module]:
    """Every layer of a network that normalizes, known by its class: BatchNorm, LayerNorm, ..."""
    for module in network.modules():
        if isinstance(module, _OF_TORCH) or type(module).__module__ in _OF_TIMM:
            yield module
