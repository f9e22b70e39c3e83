"""Transfer: a detector or a segmentation model, trained from a backbone and judged on its task."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ssl_zoo.backbones import check_built
from ssl_zoo.config import (
    EVALUATIONS,
    OPTIMIZERS,
    SCHEDULES,
    ConfigError,
    NonNegativeInt,
    Part,
    PositiveFloat,
    PositiveInt,
    bind,
)
from ssl_zoo.core import Method
from ssl_zoo.data import Splits
from ssl_zoo.data.image import Samples
from ssl_zoo.engine.precision import autocast
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.evaluation.base import UNTRAINED, Context, Evaluation, Outcome
from ssl_zoo.evaluation.classifier import copy_to_train
from ssl_zoo.evaluation.features import Precision, main_buffers
from ssl_zoo.experiment.length import durations, in_own_units
from ssl_zoo.ops.batchnorm import estimate_statistics
from ssl_zoo.system import distributed
from ssl_zoo.system.rng import seed_all
from ssl_zoo.system.text import PlainConsole
from ssl_zoo.transfer.augment import Augment
from ssl_zoo.transfer.batches import (
    AnnotatedBatches,
    Colors,
    PictureBatch,
    Reader,
    in_torch,
    on_device,
    read,
)
from ssl_zoo.transfer.drawing import Drawn, best_and_worst, draw
from ssl_zoo.transfer.judging import Judge, judge_of
from ssl_zoo.transfer.models import TRANSFER_MODELS, TransferModel
from ssl_zoo.transfer.source import ANNOTATED, AnnotatedSet

SHOWN = 4  # pictures that are done best, and as many of the worst
SAID_EVERY_S = 10.0


class Transferred(Method):
    """A `TransferModel` as a `Trainer` takes it."""

    family = "baseline"

    def __init__(self, model: TransferModel):
        super().__init__()
        self.model = model

    def forward(self, batch: PictureBatch) -> dict[str, Tensor]:
        return self.model(batch.images, batch.targets)


@EVALUATIONS.register_module()
class Transfer(Evaluation):
    """All weights of a copy, trained for detection, segmentation or keypoints (arXiv:1911.05722).

    Section 4.2 there: one schedule for every start. The set says what is measured and how. The
    backbone sees the colors that `clean` makes; sizes are the model's.

    Args:
        dataset: with its annotations, of both splits.
        schedule: of lr. It counts the set's epochs, or steps of this training.
        batch_size: pictures of a step, over all processes.
        steps: how long it is trained; or else `epochs`, of the pictures with something to learn.
        augment: what becomes of training pictures.
        accumulate: micro-batches of a step.
        clip_grad: largest gradient norm.
        precise_bn: training pictures over which BatchNorm's statistics are estimated anew before
            judging (arXiv:2105.07576); 0: they stay what training has left.
        seed: of new layers, order and views; null: the run's.
        precision: of all passes.
    """

    wants = "backbone"
    own_data = True
    baselines: ClassVar = {UNTRAINED: None}

    def __init__(
        self,
        *,
        dataset: Part[ANNOTATED],
        model: Part[TRANSFER_MODELS],
        optimizer: Part[OPTIMIZERS],
        schedule: Part[SCHEDULES] = bind(SCHEDULES, {"type": "Constant"}),  # noqa: B008
        batch_size: PositiveInt = 16,
        steps: PositiveInt | None = None,
        epochs: PositiveFloat | None = None,
        augment: Part[Augment] = Part(Augment),  # noqa: B008
        accumulate: PositiveInt = 1,
        clip_grad: PositiveFloat | None = None,
        precise_bn: NonNegativeInt = 0,
        seed: NonNegativeInt | None = None,
        precision: Precision = "fp32",
    ):
        self.dataset, self.model, self.optimizer = dataset, model, optimizer
        self.schedule, self.augment, self.batch_size = schedule, augment, batch_size
        self.steps, self.epochs, self.seed = steps, epochs, seed
        self.accumulate, self.clip_grad = accumulate, clip_grad
        self.precise_bn, self.precision = precise_bn, precision
        self.metric, self.needs = type(self).metric(dataset), type(self).needs(model)
        self._sets: dict[str, AnnotatedSet] = {}
        self._known: AnnotatedBatches | None = None

    @staticmethod
    def metric(dataset: Part, **_) -> str:
        return "mIoU" if task_of(dataset) == "semantic" else "AP"

    @staticmethod
    def needs(model: Part, **_) -> str:
        return model.target.needs(**model.arguments())

    @staticmethod
    def validate(
        *,
        dataset: Part,
        model: Part,
        augment: Part,
        schedule: Part,
        steps: int | None,
        epochs: float | None,
        **_,
    ) -> None:
        task, kind = task_of(dataset), model.target
        if task not in kind.tasks:
            problem = f"{kind.__name__} does not learn what {dataset.type} has"
            expected = f"a model of {task}; this one is of {', '.join(kind.tasks)}"
            raise ConfigError("model.type", problem, found=kind.__name__, expected=expected)
        try:
            Augment.check_task(augment.arguments(), task)
        except ConfigError as error:
            error.key = f"augment.{error.key}"
            raise
        if (steps is None) == (epochs is None):
            found = "neither" if steps is None else f"{steps} steps and {epochs:g} epochs"
            raise ConfigError("steps", "how long?", found=found, expected="steps or epochs, one")
        _check_schedule(schedule, steps, epochs)

    def check(self, splits: Splits) -> None:
        train, test = self._set("train"), self._set("test")
        judge_of(test)
        if train.classes != test.classes:
            known = len(train.classes), len(test.classes)
            raise ValueError(
                f"the classes of training, {known[0]}, are not those of test, {known[1]}"
            )
        points = [getattr(dataset, "keypoints", []) for dataset in (train, test)]
        if points[0] != points[1]:
            raise ValueError(
                f"the keypoints of training, {points[0]}, are not those of test, {points[1]}"
            )
        if not test.objects.any():
            raise ValueError(f"{test.found}: no picture has an object to be found")
        batches = self._batches(splits)
        _check_schedule(self.schedule, self._steps(batches), self._epochs(batches))
        batches.colors(torch.zeros(3, 1, 1, dtype=torch.uint8), torch.device("cpu"))

    def begin(self, backbone: nn.Module, splits: Splits, device: torch.device) -> None:
        """ConfigError for a backbone that does not go with the model, or with color pictures."""
        check_built(backbone, self.needs, self.model.target.__name__)
        channels = getattr(backbone, "in_chans", 3)
        if channels != 3:
            problem = "the pictures have 3 channels"
            raise ConfigError("backbone.in_chans", problem, found=str(channels), expected="3")

    def data_identity(self, splits: Splits) -> dict[str, Any]:
        sets = {name: self._set(name) for name in ("train", "test")}
        return {
            "colors": Colors(splits).spelled,
            **{f"{name}_pictures": len(dataset) for name, dataset in sets.items()},
            **{f"{name}_digest": dataset.identity for name, dataset in sets.items()},
        }

    def evaluate(self, context: Context) -> Outcome:
        self.begin(context.backbone, context.splits, context.device)
        train, test = self._set("train"), self._set("test")
        batches, judge = self._batches(context.splits), judge_of(test)
        seed = self._seed(context.splits)
        context = context.of_these_weights(seed)
        seed_all(seed)
        model: TransferModel = self.model(
            backbone=copy_to_train(context.backbone, context.device),
            classes=len(train.classes),
            keypoints=len(getattr(train, "keypoints", ())),
        ).to(context.device)
        method = Transferred(model)
        context.train(
            method,
            batches,
            self.optimizer(method=method),
            {"optimizer.lr": in_own_units(self.schedule, batches.steps_per_epoch)()},
            epochs=self._epochs(batches),
            seed=seed,
            precision=self.precision,
            accumulate=self.accumulate,
            clip_grad=self.clip_grad,
        )
        if self.precise_bn:
            self._estimate(method, batches, context)
        model.load_state_dict(main_buffers(model, context.device), strict=False)
        found = self._found(model, test, judge, context)

        def judged() -> Outcome:
            entries, qualities = zip(*(each for of_rank in found for each in of_rank), strict=True)
            folder = context.folder.path / "predictions"
            folder.mkdir(parents=True, exist_ok=True)
            judge.write(entries, folder)
            measures = judge.measures(entries)
            if self.metric not in measures.metrics:
                raise ValueError(
                    f"{test.found}: no object that counts, so there is no {self.metric}"
                )
            sheet = context.folder.path / "best_and_worst.png"
            self._draw(model, test, qualities, sheet, context)
            return Outcome(
                measures.metrics,
                self._protocol(batches, train, test, judge),
                details={"by_class": measures.by_class},
                remarks=(train.found, test.found, f"predictions: {folder}", f"pictures: {sheet}"),
                pictures=(sheet,) if sheet.exists() else (),
            )

        return distributed.attempt(judged)

    def _set(self, split: Literal["train", "test"]) -> AnnotatedSet:
        if split not in self._sets:
            self._sets[split] = self.dataset(split=split)
        return self._sets[split]

    def _seed(self, splits: Splits) -> int:
        return splits.seed if self.seed is None else self.seed

    def _batches(self, splits: Splits) -> AnnotatedBatches:
        """Made once: what reads pictures is sent to processes that live as long as the run."""
        if self._known is None or self._known.splits is not splits:
            how = self.augment(), self.batch_size, self._seed(splits)
            self._known = AnnotatedBatches(splits, self._set("train"), *how)
            self._reader = Reader(self._set("test"))
            splits.pool.add(self._reader)
        return self._known

    def _steps(self, batches: AnnotatedBatches) -> int:
        return self.steps or max(1, round(self.epochs * batches.steps_per_epoch))

    def _epochs(self, batches: AnnotatedBatches) -> float:
        return self.epochs or self.steps / batches.steps_per_epoch

    def _estimate(self, method: Transferred, batches: AnnotatedBatches, context: Context) -> None:
        """As in training, over its first batches, by all processes."""
        steps = max(1, round(self.precise_bn / self.batch_size))
        parts = (
            part
            for batch in batches.batches(0, steps, context.device)
            for part in batch.split(self.accumulate)
        )
        method.train()
        with autocast(context.device, self.precision):
            estimate_statistics(method, parts)

    def _found(
        self, model: TransferModel, test: AnnotatedSet, judge: Judge, context: Context
    ) -> list[list[tuple[Any, float | None]]] | None:
        """(entry, quality) of every test picture, in order, by rank, on rank 0; one picture a pass,
        so that each goes through the network in the same company whatever the world's size."""
        mine = torch.arange(len(test)).tensor_split(distributed.world())[distributed.rank()]
        found = []
        with context.stop:
            pictures = self._pictures(mine.tolist(), context)
            for i, image, target in _told(pictures, len(mine), context):
                output = self._predicted(model, image, context)
                found.append((judge.entry(i, output, target), judge.quality(output, target)))
        return distributed.collect_on_main(found)

    def _pictures(
        self, positions: list[int], context: Context
    ) -> Iterator[tuple[int, Tensor, Any]]:
        """(position, uint8 [3, H, W], target) of test pictures."""
        samples = (Samples(0, 0, [i]) for i in positions)
        pictures = read(self._reader, samples, context.device, context.splits)
        for i, (picture,) in zip(positions, pictures, strict=True):
            yield i, *in_torch(picture)

    def _predicted(self, model: TransferModel, image: Tensor, context: Context) -> Any:
        """Of uint8 [3, H, W], on the CPU."""
        seen = self._batches(context.splits).colors(image, context.device)
        with autocast(context.device, self.precision):
            (output,) = model.predict([seen])
        return on_device(output, torch.device("cpu"))

    def _draw(
        self,
        model: TransferModel,
        test: AnnotatedSet,
        qualities: Sequence[float | None],
        path: Path,
        context: Context,
    ) -> None:
        """Asks the model again: outputs of all pictures would not fit into memory."""

        def drawn(shown: list[int]) -> list[Drawn]:
            return [
                Drawn(
                    f"{test.name(i)}: {100 * qualities[i]:.0f}%",
                    image,
                    self._predicted(model, image, context),
                    target,
                )
                for i, image, target in self._pictures(shown, context)
            ]

        best, worst = map(drawn, best_and_worst(qualities, SHOWN))
        if best:
            draw(best, worst, test.classes, path)

    def _protocol(
        self, batches: AnnotatedBatches, train: AnnotatedSet, test: AnnotatedSet, judge: Judge
    ) -> dict[str, Any]:
        optimizer, schedule = self.optimizer.spelled_out(), self.schedule.spelled_out()
        return {
            "task": train.task,
            "measure": judge.measured,
            "train": f"{len(batches.kept)} of {len(train)} pictures, those with an object",
            "test": f"{len(test)} pictures",
            "classes": len(train.classes),
            "trained": "all weights of a copy",
            "model": self.model.spelled_out(),
            "optimizer": optimizer,
            "schedule": schedule,
            "steps": self._steps(batches),
            "epochs": round(self._epochs(batches), 2),
            "batch_size": self.batch_size,
            "augment": self.augment.spelled_out(),
            "colors": batches.colors.spelled,
            "precise_bn": self.precise_bn,
            "processes": distributed.world(),
            "precision": self.precision,
        }


def task_of(dataset: Part) -> str:
    """What is to be found on a set, by its block."""
    return dataset.arguments().get("task") or dataset.target.task


def _check_schedule(schedule: Part, steps: int | None, epochs: float | None) -> None:
    """Raises ConfigError for what begins the training and would not end in it, where known."""
    known = {"steps": steps, "epochs": epochs}
    for key, span, number, unit in durations(schedule):
        if span.ramp and known[unit] is not None and number > known[unit]:
            found, expected = f"{number:g} {unit}", f"at most {known[unit]:g} {unit}"
            problem = "longer than the training"
            raise ConfigError(f"schedule.{key}", problem, found=found, expected=expected)


def _told(pictures: Iterator, count: int, context: Context) -> Iterator:
    """The same; says how far it is, on rank 0, and stops where that is asked."""
    began = said = time.monotonic()
    console = PlainConsole()
    for done, picture in enumerate(pictures):
        if context.stop.asked and distributed.world() == 1:
            raise Interrupted(f"stopped at test picture {done} of {count}; the training is kept")
        now = time.monotonic()
        if now - said >= SAID_EVERY_S and distributed.is_main():
            said, left = now, (now - began) / max(done, 1) * (count - done)
            console.print(f"test picture {done}/{count}  left {left:.0f} s", soft_wrap=True)
        yield picture
