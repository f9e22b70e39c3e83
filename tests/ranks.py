from ssl_zoo.testing.ranks import on_ranks, start  # noqa: F401
