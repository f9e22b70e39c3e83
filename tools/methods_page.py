"""Writes docs/methods.md: every method, what it needs, and what it was measured to be worth.

    python tools/methods_page.py                             # writes the page
    python tools/methods_page.py --check                     # is the page what would be written?
    python tools/methods_page.py --study runs/ablation/zoo   # takes the figures of a study first

The figures live in results/zoo.json, study by study; all else comes from the code and configs.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also without installing

from kept_results import as_table

from ssl_zoo import config
from ssl_zoo.config import METHODS, Part, signature
from ssl_zoo.core import Family
from ssl_zoo.evaluation.base import UNTRAINED
from ssl_zoo.experiment import parse, views_needed
from ssl_zoo.study.grid import expand
from ssl_zoo.study.report.results import OTHER, protocols, read
from ssl_zoo.study.report.tables import spread

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, DOCS = ROOT / "configs", ROOT / "docs"
ZOO, COLOR = (CONFIGS / "ablation" / f"{name}.yaml" for name in ("zoo", "zoo_color"))
PAGE, RESULTS = DOCS / "methods.md", ROOT / "results" / "zoo.json"
CITED = re.compile(r"arXiv:(\d{4}\.\d{4,5})")

ABOVE = """\
# The methods

Every method is one file and runs from one small YAML. This page is written by
`python tools/methods_page.py` from the code, the configs and the last study's figures.

The study is `zoo`, on Fashion-MNIST's 60,000 training images without their labels (but where the
table says labels):

```
ssl-zoo ablate configs/ablation/zoo.yaml      # goes on where it was stopped
```

Each method gets about two minutes on a CPU core: a
ResNet-10 of half the width or, for methods that need tokens, a ViT with 16 or 49 patches. That is
far from the papers' settings. The figures show that a method learns something here; they do not
rank the papers. One seed: differences below a point mean nothing.

kNN is the top-1 accuracy in % of a weighted kNN vote on frozen features at the end of training.
`against random` is what training has added, in percentage points: the same network with the weights
it started from is taken off. `against pixels` takes off the vote on raw images, which are hard to
beat on this set, and `against supervised` that of training on labels. `needs` is what a method asks
of the backbone, and how many views of an image. Where rows link to one config, the arm in zoo.yaml
sets the rest; losses, memories, heads and backbones that a method uses have files of their own.
The figures of DINO, iBOT, DINOv2, MSN and I-JEPA are of the network that is trained; since then the
slow copy of it is judged, as in their papers ([evaluation.md](evaluation.md)).

Of those that MoCo's paper compares with, Exemplar, LocalAgg, AMDIM and BigBiGAN are not here."""

IN_COLOR = """\
## In color

CMC and Colorization need color, and Fashion-MNIST is gray. Their study is `zoo_color`, on
`Photographs`: patches of the two photographs that scikit-learn bundles, which are real colors
and no download. A class is which picture and which of its six horizontal bands a patch shows;
training and test patches share no pixel. This is no benchmark, and its figures are not to be
compared with those above. They show that both methods learn from real colors, beside MoCo v2 and
training on labels.

```
ssl-zoo ablate configs/ablation/zoo_color.yaml
python benchmarks/color.py runs/ablation/zoo_color/c*/seed0  # their own tasks, on test patches
```"""

BELOW = """\
## Adding one

One file in `ssl_zoo/methods/` and one YAML. The {methods} files above have {fewest} to {most}
lines, {median} in the middle; the shortest of their YAMLs has {yaml}. `ssl-zoo new method` writes
both, working: [add_a_method.md](add_a_method.md)."""

SUPERVISED = "Supervised"
FIGURES = ("kNN", "against random", "against pixels", "against supervised")
NOT_RUN = ["not run", *[""] * (len(FIGURES) - 1)]
HEADER = ("method", "paper", "family", "needs", "file", "lines", "ImageNet", *FIGURES)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method as a config runs it.

    Attributes:
        base: the config; several arms may set something on one.
        method: the config's method, checked.
    """

    name: str
    base: Path
    method: Part

    @property
    def file(self) -> Path:
        return Path(inspect.getsourcefile(self.method.target))

    @property
    def recipe(self) -> Path | None:
        """The ImageNet config of the same name as the base, or else as the entry."""
        named = re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")
        paths = [CONFIGS / "imagenet" / f"{stem}.yaml" for stem in (self.base.stem, named)]
        return next((path for path in paths if path.exists()), None)

    @property
    def paper(self) -> str:
        """arXiv number in a config's first line, or else in the class's docstring."""
        lines = [first_line(path) for path in (self.base, self.recipe) if path is not None]
        cited = CITED.search(" ".join([*lines, inspect.getdoc(self.method.target) or ""]))
        return f"[{cited[1]}](https://arxiv.org/abs/{cited[1]})" if cited else "–"

    @property
    def needs(self) -> str:
        views = views_needed(self.method)
        said = [self.method.target.needs, f"{views} views" if views > 1 else "1 view"]
        return ", ".join([*said, "labels"] if self.labels else said)

    @property
    def labels(self) -> bool:
        """Whether it trains on labels: those of all images, or the batch's."""
        target = self.method.target
        return "labels" in signature(target)[0] or "batch.label" in inspect.getsource(target)


def first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0]


def entries() -> list[Entry]:
    """The arms of the zoo's study, then a config of each method that none of them runs."""
    listed = arms(ZOO)
    shown = {entry.method.target for entry in listed}
    listed += [entry for entry in arms(COLOR) if entry.method.target not in shown]
    shown = {entry.method.target for entry in listed}
    for path in (p for f in ("fashion_mnist", "cifar10") for p in sorted((CONFIGS / f).glob("*"))):
        method = parse(config.load(path)).kwargs["method"]
        if method.target not in shown:
            shown.add(method.target)
            name = re.split(r"[(,:]| on ", first_line(path).lstrip("# "))[0].strip()
            listed.append(Entry(name, path, method))
    missing = {m for m in METHODS.module_dict.values() if m.__module__.startswith("ssl_zoo.")}
    if missing - shown:
        names = ", ".join(sorted(target.__name__ for target in missing - shown))
        raise ValueError(f"no config in configs/fashion_mnist or configs/cifar10 runs {names}")
    families = get_args(Family)
    return sorted(listed, key=lambda entry: families.index(entry.method.target.family))


def arms(grid: Path) -> list[Entry]:
    """The arms of a grid, each once, in its order."""
    study = expand(grid)
    by_arm = {}
    for run in study.runs:
        if run.arm not in by_arm:
            base = study.blocks[run.arm].get("base", study.common.get("base"))
            method = parse(config.Config(run.config)).kwargs["method"]
            by_arm[run.arm] = Entry(run.arm, (grid.parent / base).resolve(), method)
    return list(by_arm.values())


def render(results: dict[str, Any]) -> str:
    """The page; methods of which there are no figures are 'not run'.

    Args:
        results: of `study_results`, by the study's name.
    """
    table = entries()
    gray, color = (results.get(grid.stem, {}) for grid in (ZOO, COLOR))
    colored = arms(COLOR)
    lines = []
    for entry in table:
        measured = figures(gray, entry)
        if measured is None:
            alone = entry.base in (other.base for other in colored)
            elsewhere = alone and figures(color, entry) is not None
            measured = ["[in color](#in-color)", *NOT_RUN[1:]] if elsewhere else NOT_RUN
        cells = [
            link(entry.name, entry.base),
            entry.paper,
            entry.method.target.family,
            entry.needs,
            link(entry.file.name, entry.file),
            str(length(entry.file)),
            link("recipe", entry.recipe) if entry.recipe else "–",
            *measured,
        ]
        lines.append(cells)
    in_color = [
        [link(entry.name, entry.base), *(figures(color, entry) or NOT_RUN)] for entry in colored
    ]
    lengths = [length(file) for file in {entry.file for entry in table}]
    below = BELOW.format(
        methods=len(lengths),
        fewest=min(lengths),
        most=max(lengths),
        median=round(statistics.median(lengths)),
        yaml=min(length(entry.base) for entry in table),
    )
    parts = [ABOVE, said(gray), as_table(HEADER, lines)]
    parts += [IN_COLOR, said(color), as_table(("method", *FIGURES), in_color), below]
    return "\n\n".join(parts) + "\n"


def figures(results: dict[str, Any], entry: Entry) -> list[str] | None:
    """The cells of `FIGURES`; None if the study has none of this arm."""
    arms = results.get("arms", {})
    if entry.name not in arms:
        return None
    measured, labeled = arms[entry.name], arms.get(SUPERVISED, {"knn": []})["knn"]
    cells = [spread(measured["knn"], 1)]
    cells += [spread(measured[name], 1, "+") for name in ("random", "pixels")]
    if entry.name == SUPERVISED or len(labeled) != len(measured["knn"]):
        return [*cells, "–"]
    apart = [knn - other for knn, other in zip(measured["knn"], labeled, strict=True)]
    return [*cells, spread(apart, 1, "+")]


def said(results: dict[str, Any]) -> str:
    """Where the figures come from."""
    arms = results.get("arms")
    if not arms:
        return "No figures yet."

    def all_of(name: str) -> str:
        return " and ".join(sorted({arm[name] for arm in arms.values()}))

    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"Measured {all_of('date')} at commit {all_of('commit')} with `{results['command']}`, "
        f"seeds {seeds}, on {all_of('machine')}, torch {all_of('torch')}; "
        f"{'; '.join(results['protocol'])}."
    )


def link(text: str, path: Path) -> str:
    return f"[{text}](../{path.relative_to(ROOT).as_posix()})"


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def study_results(
    folder: Path, machine: str | None = None, known: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The figures of a study; arms that were trained with another config are left out.

    Args:
        folder: named as the study is.
        machine: what it ran on, in words.
        known: earlier figures of the same study, kept for arms that have no finished run here.

    Raises:
        ValueError: no study of this name, or no run of it is finished.
    """
    grids = {grid.stem: grid for grid in (ZOO, COLOR)}
    grid = grids.get(folder.resolve().name)
    if grid is None:
        raise ValueError(f"{folder}: expected a folder named {' or '.join(grids)}, as the study is")
    study, known = expand(grid, folder), known or {}
    table = read(study)
    knn = next(column for column in table.columns if column.evaluation == "knn")
    measured, rows = {}, []
    for row in table.rows:
        differing = [outcome.reason for outcome in row.outcomes if outcome.state == OTHER]
        if differing:
            print(f"left out: {row.arm}, whose config has changed: {differing[0]}")
        elif knn.of(row):
            environment = row.finished[-1].environment
            measured[row.arm] = {
                "knn": knn.of(row),
                "random": row.against("knn", UNTRAINED),
                "pixels": row.against("knn", "raw pixels"),
                "date": environment["started"][:10],
                "commit": (environment["git_commit"] or "unknown")[:7],
                "machine": machine or in_words(environment),
                "torch": environment["versions"]["torch"],
            }
            rows.append(row)
        elif row.arm in known.get("arms", {}):
            measured[row.arm] = known["arms"][row.arm]
    if not rows:
        raise ValueError(f"{folder}: no finished run of {grid.relative_to(ROOT)}")
    ways = protocols(replace(table, rows=rows))
    return {
        "command": f"ssl-zoo ablate {grid.relative_to(ROOT)}",
        "seeds": sorted({run.seed for run in study.runs}),
        "protocol": list(dict.fromkeys([*known.get("protocol", []), *ways])),
        "arms": measured,
    }


def in_words(environment: dict[str, Any]) -> str:
    device, _, name = environment["device"].partition(": ")
    return f"{environment['cores']} cores, {name}" if device == "cpu" else name


def known_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def write() -> Path:
    PAGE.write_text(render(known_results()), encoding="utf-8")
    return PAGE


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is old")
    parser.add_argument("--study", type=Path, help="a folder that `ssl-zoo ablate` has written")
    parser.add_argument("--machine", help="what the study ran on, in words [its environment.json]")
    arguments = parser.parse_args(argv)
    try:
        if arguments.study is not None:
            results, name = known_results(), arguments.study.resolve().name
            results[name] = study_results(arguments.study, arguments.machine, results.get(name))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if not arguments.check:
            print(write().relative_to(ROOT))
            return 0
        current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        if current == render(known_results()):
            return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("docs/methods.md is not what would be written: python tools/methods_page.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
