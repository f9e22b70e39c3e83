from ssl_zoo.heads.projection import MLP, Linear

__all__ = ["MLP", "Linear"]
