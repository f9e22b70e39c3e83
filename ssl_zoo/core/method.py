"""What the trainer knows of a method."""

from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ssl_zoo.core.batch import Batch
from ssl_zoo.core.encoder import MomentumEncoder
from ssl_zoo.system import rng

Family = Literal[
    "contrastive", "non-contrastive", "clustering", "distillation", "masked", "pretext", "baseline"
]


class Method(nn.Module):
    """A pretext task. `forward` computes, `after_step` mutates; `encoder.backbone` is trained.

    A constructor takes `backbone` (views -> features), what it names of `num_samples` (size of the
    training set), `labels` ([num_samples] int64, -1 where unknown) and `num_classes`, and after a
    `*` the keys of its YAML block. A stream has neither of the first two: a method, memory or loss
    that names one goes with a stream only where its annotation allows None, and if nothing of it is
    `per_sample` and it has no `before_epoch`.

    Attributes:
        family: where it stands in docs/methods.md.
        needs: what it asks of a backbone, a word of `backbones.OWED`: `features` (any), `map` (a
            grid of features before pooling: CNNs and ViTs), `tokens` (masked patches: ViTs), ...
            or a method that a backbone of one's own has.
        needs_own_size: views are of the size that a ViT is made for, whose grid masks are for.
        least_images: of all ranks together, in a pass: 2 where images are compared with each
            other. Any module may say so, a memory or a loss; BatchNorm is known to need 2.
        needs_boxes: whether it asks where views lie in their images.
        views_needed: views of an image; a static method, if it depends on the YAML arguments.
        evaluated: which of its `networks` its paper evaluates.
        per_sample: what of its state has a row for each training image, and along which dimension;
            a part of it, a memory say, has declarations of its own.
        positions: what of its state holds positions in the training set (a `Batch`'s `index`), -1
            for none.
        steps: optimizer steps seen, int64; with `seed` it determines every `random_key`, so
            ranks agree without talking and a resume draws the same.
    """

    encoder: nn.Module
    family: Family = "pretext"
    needs: str = "features"
    needs_own_size: bool = False
    least_images: int = 1
    needs_boxes: bool = False
    views_needed: int | Callable[..., int] = 1
    evaluated: str = "backbone"
    per_sample: ClassVar[dict[str, int]] = {}
    positions: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # Read and not drawn, so that what is initialized next does not depend on it.
        self.register_buffer("seed", torch.tensor(torch.initial_seed() % 2**31))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Returns 'loss', further scalars to be logged, and rows [N, ...] for `after_step`."""
        raise NotImplementedError

    def after_step(self, batch: Batch, out: dict[str, Tensor]) -> None:
        """Called once a step, after the optimizer, with the whole step's batch and outputs.

        What overrides it begins with `super().after_step(batch, out)`, which counts the step.
        """
        self.steps += 1

    def after_backward(self) -> None:
        """Called once a step between the gradients and the optimizer: to freeze a layer, say."""

    def before_epoch(self, images: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Called before an epoch's first step, with this rank's share of the training set,
        without augmentation: (images [n, C, H, W], positions [n]).
        """

    def random_key(self, purpose: str, index: Tensor) -> Tensor:
        """A key for `rng.uniform` and others, [N] int64, of each sample at this step, wherever in
        a batch and on whichever rank it is.
        """
        return rng.hashed(self.seed, self.steps, purpose, index)

    def telemetry(self, labels: Tensor | None) -> dict[str, float]:
        """Scalars for the log, on rank 0; too costly for every step. Labels are [num_samples]."""
        return {}

    @staticmethod
    def seen(view: int, size: tuple[int, int], /, **arguments) -> tuple[int, int]:
        """(height, width) of what the backbone gets of a view, by its number, of this size.

        ValueError for a view that is of no use to the method, given its YAML arguments.
        """
        return size

    def remark(self, batch_size: int) -> str:
        """What a person should know before watching the numbers; said once at the start."""
        return ""

    def networks(self) -> dict[str, nn.Module]:
        """What can be taken out, each images [N, C, H, W] -> features [N, F]; `evaluated` first.

        `backbone` is `encoder.backbone`; a momentum encoder's backbone has the name of the
        attribute that the encoder is: `teacher`, `key_encoder`. A method that has others overrides
        this, with modules of its own.
        """
        found = {"backbone": self.encoder.backbone}
        for path, module in self.named_modules():
            if isinstance(module, MomentumEncoder):
                found[path.rpartition(".")[2]] = module.backbone
        return {self.evaluated: found[self.evaluated]} | found

    def param_groups(self, weight_decay: float, decay_norm_and_bias: bool = True) -> list[dict]:
        """Trainable parameters for the optimizer; norms and biases (ndim < 2) apart if asked."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        if decay_norm_and_bias:
            return [{"params": trainable, "weight_decay": weight_decay}]
        never = {"weight_decay": 0.0, "constant_weight_decay": True}
        return [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], **never},
        ]


def network_paths(method: Method) -> dict[str, str]:
    """Its networks as keys of its state_dict begin: {'teacher': 'teacher.encoder.backbone'}."""
    paths = {module: path for path, module in method.named_modules()}
    return {name: paths[network] for name, network in method.networks().items()}


def set_apart(groups: list[dict], module: nn.Module, **settings) -> list[dict]:
    """The optimizer's groups, each divided: those of the module's parameters have `settings`.

    Where these say `constant_lr=True`, or so of another number, no schedule moves it.
    """
    inside = {id(p) for p in module.parameters()}
    divided = []
    for group in groups:
        others = [p for p in group["params"] if id(p) not in inside]
        apart = [p for p in group["params"] if id(p) in inside]
        divided += [group | {"params": others}, group | {"params": apart, **settings}]
    return [group for group in divided if group["params"]]


def merge_outputs(outputs: list[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Micro-batches' (share of the rows, outputs) as one step's outputs, detached.

    Scalars are averaged by share, rows concatenated in order.
    """
    if len(outputs) == 1:
        of_all = outputs[0][1].items()
        return {name: value.detach() if value.requires_grad else value for name, value in of_all}
    merged = {}
    for name, first in outputs[0][1].items():
        values = [(share, out[name].detach()) for share, out in outputs]
        if first.dim():
            merged[name] = torch.cat([value for _, value in values])
        else:
            merged[name] = sum(share * value for share, value in values)
    return merged
