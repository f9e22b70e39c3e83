"""Whether a folder's run is the one that is asked for, and may go on."""

from __future__ import annotations

from typing import Any

from ssl_zoo.config import Config, differences
from ssl_zoo.experiment.sections import resolve
from ssl_zoo.runs import RunFolder
from ssl_zoo.system.text import show


def open_folder(folder: RunFolder, resolved: dict[str, Any], resume: bool) -> str | None:
    """Whether a run may go on in a folder; what a person should know of that, None if it is done.

    Raises FileExistsError if it holds another run, or this one and `resume` was not asked for.
    """
    written, remark = folder.config(), ""
    if written is not None and (folder.finished or folder.checkpoints()):
        folder.check_format()
        changed = changes(written, resolved)
        if changed and not (remark := longer(written, resolved)):
            lines = "\n  ".join([f"{folder.path} holds a run of another config:", *changed])
            raise FileExistsError(f"{lines}\nGive another --out.")
        if not resume:
            hint = "--resume (resume=True in Python) goes on, --out names another folder."
            raise FileExistsError(f"{folder.path} holds a run already: {hint}")
        if folder.finished and not changed:
            show(f"finished already: {folder.path}")
            return None
    elif written is not None and differences(written, resolved):
        folder.forget_all()  # nothing worth keeping was saved under the other config
    return remark


def changes(old: dict, new: dict) -> list[str]:
    """Dotted keys of the run, not of the machine, in which two resolved configs differ."""
    before, after = (resolve(Config(data)).spelled_out(machine=False) for data in (old, new))
    return differences(before, after)


def longer(old: dict, new: dict) -> str:
    """What a person should know of a run that goes on for more epochs; '' if more has changed."""
    before, after = (config["train"]["epochs"] for config in (old, new))
    if after <= before or changes({**old, "train": {**old["train"], "epochs": after}}, new):
        return ""
    moved = []
    for name, part in resolve(Config(new)).arguments()["schedules"].items():
        value, times = part(), [before * i / 8 for i in range(9)]
        if any(value(1.0, at, before) != value(1.0, at, after) for at in times):
            moved.append(f"{name} ({part.type})")
    what = f"its length changes: {', '.join(moved)}" if moved else "no schedule depends on it"
    return f"train.epochs {before:g} -> {after:g}; {what}"
