"""Whether a folder's run is the one that is asked for, and may go on."""

from __future__ import annotations

from typing import Any

from ssl_zoo.config import Config, differences
from ssl_zoo.experiment.length import in_own_units, run_length
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
    """What a person should know of a run that goes on for longer; '' if more has changed."""
    (unit, before), (other, after) = (run_length(config["train"]) for config in (old, new))
    if unit != other or after <= before:
        return ""
    if changes({**old, "train": {**old["train"], unit: after}}, new):
        return ""
    moved = []
    for name, part in resolve(Config(new)).arguments()["schedules"].items():
        value = in_own_units(part, None)()
        # Far beyond all that begins a run, in whatever unit the schedule counts that.
        end, later = 1e9 * before, 1e9 * after
        if any(value(1.0, end * i / 8, end) != value(1.0, end * i / 8, later) for i in range(9)):
            moved.append(f"{name} ({part.type})")
    what = f"its length changes: {', '.join(moved)}" if moved else "no schedule depends on it"
    return f"train.{unit} {before:g} -> {after:g}; {what}"
