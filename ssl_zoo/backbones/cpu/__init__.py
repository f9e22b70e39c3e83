"""Layers that torch computes slowly in bf16 on a CPU, computed faster.

The choice follows from shapes and from the processor's kind, never from a timing: runs must repeat
to the bit. benchmarks/floor.py shows torch's rates.
"""

from torch import nn

from ssl_zoo.backbones.cpu.convolution import Conv2d
from ssl_zoo.backbones.cpu.elementwise import BasicBlock, Bottleneck, ReLU

# By the class that each derives from.
_FASTER = {kind.__base__: kind for kind in (ReLU, Conv2d, BasicBlock, Bottleneck)}


def speed_up(module: nn.Module) -> nn.Module:
    """Exchanges the classes of layers in `module`, which is to run on a CPU; returns it."""
    for child in module.modules():
        child.__class__ = _FASTER.get(type(child), type(child))
    return module
