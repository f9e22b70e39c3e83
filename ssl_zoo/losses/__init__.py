"""Losses over a look-up, and those that papers name; each works by hand."""

from ssl_zoo.losses.contrastive import DCL, NCE, InfoNCE, Margin, in_batch

__all__ = ["DCL", "NCE", "InfoNCE", "Margin", "in_batch"]
