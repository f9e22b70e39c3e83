"""Training on labels, to compare with."""

from torch import Tensor, nn
from torch.nn import functional as F

from ssl_zoo.config import METHODS, Scheduled, UnitInterval
from ssl_zoo.core import Batch, Encoder, Method
from ssl_zoo.heads import Linear


@METHODS.register_module()
class Supervised(Method):
    """Cross-entropy on the labels: what the others do without (ResNet, arXiv:1512.03385).

    `label_smoothing` is a target's share for all classes (arXiv:1512.00567).
    """

    family = "baseline"

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        labels: Tensor,
        *,
        label_smoothing: Scheduled[UnitInterval] = 0.0,
    ):
        super().__init__()
        if n := int((labels < 0).sum()):
            raise ValueError(f"Supervised needs a label of each; {n} of {len(labels)} have none")
        self.encoder = Encoder(backbone, Linear(backbone.num_features, out_features=num_classes))
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """L = -sum_c y_c log p_c, y = (1 - s) onehot + s / C."""
        logits = self.encoder(batch.views[0]).float()  # [N, C]
        loss = F.cross_entropy(logits, batch.label, label_smoothing=self.label_smoothing)
        top1 = 100 * (logits.argmax(dim=1) == batch.label).float().mean()
        return {"loss": loss, "top1": top1}
