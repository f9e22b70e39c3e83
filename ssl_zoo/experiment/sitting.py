"""One sitting of a run: a config, trained into a folder that holds it alone."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ssl_zoo.config import Config, Part
from ssl_zoo.engine.stop import Interrupted
from ssl_zoo.engine.trainer import Trainer
from ssl_zoo.experiment.length import out_of_reach
from ssl_zoo.experiment.resume import open_folder
from ssl_zoo.experiment.sections import build_trainer, parse
from ssl_zoo.runs import RunFolder, describe_environment
from ssl_zoo.system import distributed, plugins


def train_into(
    folder: RunFolder,
    config: Config,
    device: str = "auto",
    resume: bool = False,
    changed_data: bool = False,
    baselines: bool = True,
) -> None:
    """Trains until the end, or goes on from the newest checkpoint; every rank calls it.

    Args:
        device: see `distributed.start`.
        changed_data: a resume goes on though the images have changed, and says what it carries on.
        baselines: measure what evaluations compare with.

    Raises:
        ConfigError: before anything is read or written.
        FileExistsError: the folder holds another run, or this one and `resume` is False.
        Interrupted: it was asked to stop, and is saved.
    """
    trained = resume and bool(folder.checkpoints())
    whole = parse(config, trained)
    on = distributed.start(device)
    # One rank looks and writes; all ranks act on what it saw.
    distributed.attempt(folder.lock.acquire)
    try:
        remark = distributed.attempt(partial(open_folder, folder, whole.spelled_out(), resume))
        if remark is not None:  # it is not finished
            with _error_kept(folder):
                trainer = build_trainer(config, on, folder, baselines, trained)
                trainer.hooks["data"].may_change = changed_data
                _fit(trainer, whole, remark)
    finally:
        if distributed.is_main():
            folder.lock.release()


@contextmanager
def _error_kept(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if distributed.is_main():
            text = str(error) or type(error).__name__
            folder.write_error(f"{text}\n\n{traceback.format_exc()}")
        raise


def _fit(trainer: Trainer, whole: Part, remark: str) -> None:
    resumed = trainer.resume()
    folder, device = trainer.folder, trainer.device
    changed = plugins.changed(folder.environment().get("plugins", {})) if resumed else []
    # Not before: a resume that is refused leaves config.yaml and result.json as they were.
    environment = describe_environment(device)
    distributed.attempt(lambda: folder.begin(whole.spelled_out(), environment))
    trainer.say(
        f"{trainer.name}: {f'from step {trainer.step}' if resumed else 'starting'}, "
        f"{trainer.total_steps} steps of {trainer.data.batch_size} images on {device} "
        f"in {trainer.precision} ({trainer.precision_reason})"
    )
    remarks = [remark, *changed]
    if not resumed:
        late = out_of_reach(whole, trainer.total_steps, trainer.data.steps_per_epoch)
        remarks = [trainer.method.remark(trainer.data.batch_size), late]
    for text in filter(None, remarks):
        trainer.say(f"{trainer.name}: {text}")
    trainer.fit()
    trainer.say(f"{trainer.name}: finished; results in {folder.path}")
