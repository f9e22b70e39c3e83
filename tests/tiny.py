import os
import signal

import torch

from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.testing.tiny import TinyNet, share  # noqa: F401
from ssl_zoo.testing.tiny import noise_batch as batch  # noqa: F401


def same(a, b) -> bool:
    """Whether two states are equal to the bit, of tensors and plain values."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def stopped_at(monkeypatch, step):
    """Asks the training to stop once it is at `step`, as a scheduler does."""
    plain = Trainer.train_step

    def train_step(self, images):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, images)

    monkeypatch.setattr(Trainer, "train_step", train_step)
