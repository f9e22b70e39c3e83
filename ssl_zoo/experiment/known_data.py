"""The images of a run, by which a resume knows them again, and what it makes of others."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ssl_zoo.data import Data
from ssl_zoo.data.files import counted, some
from ssl_zoo.data.source import Source, class_codes, matched
from ssl_zoo.engine.hooks import Hook
from ssl_zoo.evaluation.monitor import Monitor
from ssl_zoo.system import distributed


class KnownData(Hook):
    """Keeps in every checkpoint what images the run is trained and judged on.

    Attributes:
        may_change: a resume goes on with other images. What belongs to an image that is still there
            goes with it, what belongs to a new one is as in a fresh run.
    """

    def __init__(self, data: Data, monitor: Monitor):
        _check_ranks_agree(data.dataset)  # before the ranks' networks meet, whose sizes may differ
        self.data, self.monitor, self.may_change = data, monitor, False
        self.now: dict[str, Any] = {}

    def before_train(self, trainer) -> None:
        self._look()

    def state_dict(self) -> dict[str, Any]:
        return self.now

    def before_load(self, trainer, state: dict[str, Any]) -> None:
        """Makes of the checkpoint one for the images that there are now.

        Raises ValueError where they have changed, unless that is allowed and can be done.
        """
        self._look()
        loop = state["trainer"]
        before = loop["hooks"].get("data")
        if not before:
            trainer.say(f"{trainer.name}: the checkpoint does not say on which data it was trained")
            return
        is_set, renamed, changes = self.data.dataset.sized, {}, []
        if is_set:
            renamed = self._renamed(before)
            origin = matched(before["images"], self._called_as_before(renamed))  # [n]
            changes += self._of_training(before, origin, renamed)
        elif before["identity"] != self.now["identity"]:
            problem = f"{type(self.data.dataset).__name__} is not the stream of before"
            why = "a place in that is none in this one"
            raise ValueError(f"{problem}: {why}. Put it back, or: --out names another folder.")
        changes += self._of_evaluations(before)
        if not changes:
            return
        said = "\n  ".join(["the data are not those of before:", *changes])
        if not self.may_change:
            choices = "--resume --changed-data goes on with them, --out names another folder"
            raise ValueError(f"{said}\nPut them back, or: {choices}.")
        if [renamed.get(name, name) for name in self.now["classes"]] != before["classes"]:
            kind = type(trainer.method)
            if "num_classes" in inspect.signature(kind).parameters:
                why = f"{kind.__name__} has an output for each class"
                raise ValueError(f"{said}\n{why}: train it anew, in another --out.")
            for name, evaluation in self.monitor.evaluations.items():
                if evaluation.wants == "run":
                    loop["hooks"]["evaluations"].pop(name, None)
                    changes.append(f"{name} starts anew, as it learns the classes")
        loop["hooks"].pop("unreadable", None)  # may be repaired; what is not will be met again
        step, steps = loop["step"], trainer.total_steps
        if step > steps:
            end = f"step {step} lies behind the last of now {steps} steps"
            raise ValueError(f"{said}\n{end}: raise train.epochs.")
        if is_set:
            carry(trainer.method, state["method"], origin, len(before["images"]))
            epoch = step / self.data.steps_per_epoch
            changes.append(f"step {step} of now {steps} is in epoch {epoch:.2f}")
        trainer.say("\n  ".join([f"{trainer.name}: goes on with changed data:", *changes]))

    def _look(self) -> None:
        """Once, on rank 0, at what there is: tensors and plain values."""
        self.now = self.now or distributed.attempt(
            lambda: {
                "images": self.data.dataset.fingerprint if self.data.dataset.sized else None,
                "identity": self.data.dataset.identity,
                "classes": class_names(self.data.dataset),
                "steps_per_epoch": self.data.steps_per_epoch,
                "evaluations": {
                    name: {split: splits.split(split).identity for split in ("train", "test")}
                    for name, splits in self.monitor.splits.items()
                    if not self.monitor.evaluations[name].own_data
                },
            }
        )

    def _of_training(
        self, before: dict[str, Any], origin: Tensor, renamed: dict[str, str]
    ) -> Iterator[str]:
        """What differs in the training images; `origin` [n]: where each stood, -1 for new ones."""
        new = (origin < 0).nonzero()[:, 0]
        gone = len(before["images"]) - (len(origin) - len(new))
        if gone or len(new):
            names = some(self.data.dataset.names(new[:4]))
            yield f"images: {gone} gone, {len(new)} new or changed{names and f' ({names})'}"
        old_classes, classes = before["classes"], self.now["classes"]
        told = [f"{old!r} is now {name!r}" for name, old in renamed.items()]
        for one, other, what in ((old_classes, classes, "gone"), (classes, old_classes, "new")):
            known = {*other, *renamed, *renamed.values()}
            names = [name for name in one if name not in known]
            told += [f"{some(names)} {what}"] if names else []
        if told or classes != old_classes:
            yield f"classes: {', '.join(told) or 'in another order'}"
        elif not gone and not len(new):
            if not torch.equal(origin, torch.arange(len(origin))):
                yield "images: in another order"
            # Before streams, the same was called labels.
            elif before.get("identity", before.get("labels")) != self.now["identity"]:
                yield "labels: others"
        if before["steps_per_epoch"] != self.data.steps_per_epoch:
            yield f"steps an epoch: {before['steps_per_epoch']} -> {self.data.steps_per_epoch}"

    def _of_evaluations(self, before: dict[str, Any]) -> Iterator[str]:
        for name, now in self.now["evaluations"].items():
            known = before["evaluations"].get(name, now)
            if others := [split for split in now if known[split] != now[split]]:
                differ = f"other {' and '.join(others)} images"
                yield f"{name}: {differ}; figures of before and after do not compare"

    def _renamed(self, before: dict[str, Any]) -> dict[str, str]:
        """Former names of classes by the present ones: of those whose images are the same."""
        images, classes, found = self.now["images"], self.now["classes"], {}
        gone = [name for name in before["classes"] if name not in classes]
        for number, name in enumerate(classes):
            some = images[self.data.labels == number][:3, None]  # [s, 1]
            if name in before["classes"] or not gone or not len(some):
                continue
            as_before = some - class_codes([name]) + class_codes(gone)  # [s, gone]
            known = torch.isin(as_before, before["images"]).sum(dim=0)
            if known.any():
                found[name] = gone[int(known.argmax())]
        return found

    def _called_as_before(self, renamed: dict[str, str]) -> Tensor:
        """[n] int64, the fingerprint with what it would be under the classes' former names."""
        images = self.now["images"].clone()
        for name, old in renamed.items():
            inside = self.data.labels == self.now["classes"].index(name)
            images[inside] += class_codes([old]) - class_codes([name])
        return images


def carry(method: nn.Module, weights: dict[str, Tensor], origin: Tensor, count: int) -> None:
    """Brings what belongs to training images, which were `count`, to where these are now.

    Args:
        method: as built for the images of now, with the rows that new ones get.
        weights: of a checkpoint; changed in place.
        origin: [n] int64, where each image of now stood, -1 for a new one.
    """
    kept = (origin >= 0).nonzero()[:, 0]  # [k]
    place = torch.full((count + 1,), -1)  # of an image before, now; last that of no image, -1
    place[origin[kept]] = kept
    fresh = method.state_dict()
    for prefix, module in method.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, dim in getattr(module, "per_sample", {}).items():
            rows = weights[start + name].index_select(dim, origin[kept])
            weights[start + name] = fresh[start + name].cpu().index_copy(dim, kept, rows)
        for name in getattr(module, "positions", ()):
            weights[start + name] = place[weights[start + name]]


def _check_ranks_agree(dataset: Source) -> None:
    """ValueError on all ranks where some found other training images: each would go through its
    own, in an order of its own.
    """
    if distributed.world() == 1:
        return
    found = distributed.collect(_found_here(dataset))
    others = [rank for rank, here in enumerate(found) if here != found[0]]
    if others:
        counts = [f"rank {rank} ({_images(found[rank][0])})" for rank in (0, *others[:4])]
        more = f" and {len(others) - 4} more ranks" if len(others) > 4 else ""
        problem = f"other training images on {', '.join(counts[1:])}{more} than on {counts[0]}"
        raise ValueError(f"{problem}: every rank must find the same files")


def _images(count: int | None) -> str:
    return "a stream" if count is None else counted(count, "image")


def _found_here(dataset: Source) -> tuple[int | None, str]:
    """(how many images, a digest of their names and labels); of a stream its identity."""
    if not dataset.sized:
        return None, dataset.identity
    index = torch.arange(len(dataset))
    digest = hashlib.sha256(b"\0".join(map(os.fsencode, dataset.names(index))))
    digest.update(dataset.labels_of(index).contiguous().numpy())
    return len(dataset), digest.hexdigest()


def class_names(dataset: Source) -> list[str]:
    """Numbers, where a set has no names for its classes."""
    return dataset.classes or [str(i) for i in range(dataset.num_classes)]
