from ssl_zoo.testing.tiny import TinyNet, share  # noqa: F401
from ssl_zoo.testing.tiny import noise_batch as batch  # noqa: F401
