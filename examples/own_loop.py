"""MoCo (arXiv:1911.05722) by these parts in a loop of one's own: digits, seconds on a laptop."""

from functools import partial

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from ssl_zoo.data import RandomResizedCrop, Views
from ssl_zoo.losses import InfoNCE
from ssl_zoo.memory import MoCoQueue

torch.manual_seed(0)
images = torch.from_numpy(load_digits().images * 15).byte()[:, None]  # [n, 1, 8, 8]
views = Views(ops={"crop": partial(RandomResizedCrop, size=8, scale=(0.5, 1.0))}, count=2)
encoder = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 64))
encoder.out_features = 64
memory = MoCoQueue(encoder, size=1024, momentum=0.99)  # the momentum encoder is in it
info_nce = InfoNCE(temperature=0.2)
optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1, momentum=0.9)

for step in range(200):
    index = torch.randint(len(images), (64,))
    x_q, x_k = views(images[index], seed=0, epoch=step, index=index)
    q = F.normalize(encoder(x_q), dim=1)
    k = memory.encode(encoder, x_k, index)
    loss, nearer = info_nce(memory.lookup(q, k, index))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    memory.update(encoder, q[:, None].detach(), k[:, None], index)

print(f"loss {loss:.3f}; the positive is nearest for {100 * (nearer < 1).float().mean():.0f}%")
