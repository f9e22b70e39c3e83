from ssl_zoo.testing.small import TinyNet, batch, share  # noqa: F401
