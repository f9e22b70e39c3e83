"""Backbones: timm's, and two networks for Lab."""

from ssl_zoo.backbones.base import (
    FITS,
    OWED,
    Backbone,
    Level,
    check_built,
    fits,
    lacking,
    on_meta,
    without_initial_weights,
)
from ssl_zoo.backbones.lab import LabPair
from ssl_zoo.backbones.timm import Timm
