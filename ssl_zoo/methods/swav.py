"""SwAV: one view predicts the cluster that another view is assigned to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import HEADS, METHODS, DueSteps, Part, RampSteps
from ssl_zoo.config.constraints import AtLeastTwo, NonNegativeInt, PositiveFloat, Scheduled
from ssl_zoo.core import Batch, Encoder, Method, encode_views
from ssl_zoo.heads import Prototypes
from ssl_zoo.losses import swapped_prediction
from ssl_zoo.memory import Ring
from ssl_zoo.ops import health
from ssl_zoo.ops.sinkhorn import sinkhorn_knopp
from ssl_zoo.system import distributed


@METHODS.register_module()
class SwAV(Method):
    """Swapped prediction of balanced cluster assignments (arXiv:2006.09882).

    L = 1/2 sum_{s=1,2} 1/(V-1) sum_{v != s} -sum_k q_s^k log p_v^k, with p_v = softmax(z_v C^T / T)
    and q_s = Sinkhorn-Knopp(z_s C^T) over all ranks' rows. The first two views, full crops, are
    assigned; any number of further, smaller ones (multi-crop) predict.

    Args:
        head: features -> embeddings, normalized here to unit length.
        prototypes: K.
        temperature: T, of the predictions.
        epsilon: smoothness of the assignments.
        sinkhorn_iterations: with 0 nothing is balanced, and SwAV collapses.
        queue_size: earlier embeddings of each full crop, over all ranks, that are assigned along
            with the batch: for batches that are small beside K. 0: none.
        queue_from_step: when the queue is used, once it is full.
        frozen_steps: first steps, in which prototypes stay where they are.
    """

    family = "clustering"
    views_needed = 2
    least_images = 2

    def __init__(
        self,
        backbone: nn.Module,
        *,
        head: Part[HEADS],
        prototypes: AtLeastTwo = 3000,
        temperature: Scheduled[PositiveFloat] = 0.1,
        epsilon: Scheduled[PositiveFloat] = 0.05,
        sinkhorn_iterations: NonNegativeInt = 3,
        queue_size: NonNegativeInt = 0,
        queue_from_step: DueSteps[NonNegativeInt] = 0,
        frozen_steps: RampSteps[NonNegativeInt] = 0,
    ):
        super().__init__()
        self.encoder = Encoder(backbone, head(in_features=backbone.num_features))
        self.prototypes = Prototypes(self.encoder.out_features, prototypes)
        self.temperature, self.epsilon = temperature, epsilon
        self.sinkhorn_iterations = sinkhorn_iterations
        self.queue_from_step, self.frozen_steps = queue_from_step, frozen_steps
        # The same on all ranks, which score a share each.
        self.queue = Ring(z=torch.zeros(queue_size, 2, self.encoder.out_features))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        outputs = encode_views(self.encoder, batch.views)
        z = [F.normalize(output.float(), dim=1) for output in outputs]  # V x [N, D]
        scores = [self.prototypes(z_v) for z_v in z]  # V x [N, K]
        log_p = [(score / self.temperature).log_softmax(dim=1) for score in scores]  # V x [N, K]
        q = [self._assign(scores[s], self.queue.z[:, s]) for s in range(2)]  # 2 x [N, K]
        # q is balanced by construction; whether images still differ is seen in p.
        p = torch.cat(log_p[:2]).exp()  # [2N, K]
        return {
            "loss": swapped_prediction(q, log_p),
            **health.figures(z[0], p),
            "z": torch.stack(z[:2], dim=1),  # [N, 2, D]
        }

    @torch.no_grad()
    def _assign(self, scores: Tensor, queue: Tensor) -> Tensor:
        """Codes q [N, K] of the batch, balanced together with the queue [Q, D] once it is used."""
        rows = queue.tensor_split(distributed.world())[distributed.rank()]  # [Q / world, D]
        in_use = (self.queue.pushed >= len(self.queue)) & (self.steps >= self.queue_from_step)
        # Unused rows weigh nothing: to leave them out, the host would have to wait for the answer.
        weight = torch.cat([scores.new_ones(len(scores)), in_use.float().expand(len(rows))])
        together = torch.cat([scores, self.prototypes(rows)])  # [N + Q / world, K]
        codes = sinkhorn_knopp(together, self.epsilon, self.sinkhorn_iterations, weight)
        return codes[: len(scores)]

    @torch.no_grad()
    def after_backward(self) -> None:
        # Without a gradient a step moves a prototype along itself at most (weight decay), and
        # `normalize_` takes that back. None would need the step's number on the host.
        self.prototypes.weight.grad.mul_(self.steps >= self.frozen_steps)

    @torch.no_grad()
    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        super().after_step(batch, out)
        self.prototypes.normalize_()
        if len(self.queue):
            self.queue.push(z=distributed.gather(out["z"]))
