"""Layers for a CPU: the same weights and numbers as torch's, faster."""

from ssl_zoo.backbones.cpu.layers import speed_up

__all__ = ["speed_up"]
