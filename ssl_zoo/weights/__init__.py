"""Weights that come and go: published checkpoints in, backbones of runs out."""
