"""ssl_zoo: self-supervised learning from registered parts that YAML assembles."""

__version__ = "0.1.0"
