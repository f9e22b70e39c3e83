"""LeJEPA's SIGReg: embeddings held to an isotropic Gaussian."""

import torch
from torch import Tensor

from ssl_zoo.system import distributed


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """Mean over directions a of n int |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt, [].

    phi(t) = mean of e^(i t <a, z>) over all n rows of all ranks: Epps and Pulley's test that
    <a, z> is N(0, 1), by the trapezoid rule at 17 points of [-5, 5] (arXiv:2511.08544).
    z is [N, D]; directions are [D, M], unit columns, the same on every rank.
    """
    t = torch.linspace(-5, 5, 17, device=z.device)  # [T]
    gauss = (-t.square() / 2).exp()  # both N(0, 1)'s characteristic function and the weight
    with torch.autocast(z.device.type, enabled=False):
        angle = (z @ directions)[:, :, None] * t  # [N, M, T]
    phi = torch.stack([angle.cos().mean(dim=0), angle.sin().mean(dim=0)])  # [2, M, T]
    phi = distributed.gather(phi[None]).mean(dim=0)  # ranks hold equally many rows
    error = ((phi[0] - gauss).square() + phi[1].square()) * gauss  # [M, T]
    return len(z) * distributed.world() * torch.trapezoid(error, t, dim=1).mean()
