"""Backbones: timm's, and two networks for Lab."""

from ssl_zoo.backbones.base import (
    FITS,
    Backbone,
    check_built,
    on_meta,
    provided,
    without_initial_weights,
)
from ssl_zoo.backbones.lab import LabPair
from ssl_zoo.backbones.timm import Timm
