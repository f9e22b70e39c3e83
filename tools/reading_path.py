"""The reading path of docs/architecture.md: which lines a reader of MoCo reads, counted.

python tools/reading_path.py          # writes the marked block anew
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- reading path -->", "<!-- end of the reading path -->"

# What is read, in this order: (file below ssl_zoo/, names in it or nothing for all of it, why).
ALGORITHM = [
    ("methods/contrastive.py", [], "the method: queries, keys, a look-up, a loss"),
    ("memory/moco_queue.py", [], "MoCo: a momentum encoder and a queue"),
    ("memory/ring.py", [], "the queue"),
    ("memory/base.py", [], "what a mechanism is; ShuffleBN"),
    ("memory/lookup.py", [], "what it answers"),
    ("memory/reductions.py", [], "sums over K keys without the matrix"),
    ("losses/info_nce.py", [], "equation 1"),
    ("core/encoder.py", [], "backbone and head; equation 2"),
    ("heads/projection.py", [], "the head"),
]
AROUND = [
    ("cli/command_line.py", [], "the command line"),
    ("cli/train_command.py", ["add", "train", "run_path"], "`ssl-zoo train`"),
    ("experiment/sitting.py", ["train_into", "_fit"], "a config, trained into a folder"),
    (
        "experiment/sections.py",
        ["whole_run", "seeded", "resolve", "parse", "build_trainer"],
        "the sections of a config, and the run that they make",
    ),
    (
        "config/yaml.py",
        ["load", "override", "_load", "_merge", "_override"],
        "YAML",
    ),
    ("config/part.py", ["Part"], "a call that is not made yet"),
    ("config/binding.py", ["bind", "_call", "convert"], "a block becomes one"),
    ("config/constraints.py", ["check_value"], "what a value may be"),
    ("config/construct.py", ["check_arguments", "constrained"], "checks"),
    ("config/registry.py", ["Registry"], "names"),
    ("data/splits.py", ["Splits", "Data"], "a data set, its views and its batches"),
    ("data/sampler.py", ["Sampler"], "which samples make which step"),
    (
        "data/loader.py",
        ["Batches.__call__", "Batches._load", "read_batches", "on_device", "_made"],
        "images to the device",
    ),
    (
        "data/image/views.py",
        ["Views.__init__", "Views.ops_of", "Views._keyed", "Views.make", "Views._apply"],
        "views, a whole batch at a time",
    ),
    ("data/image/transform.py", ["Transform"], "an operation"),
    ("data/image/geometry.py", ["RandomResizedCrop"], "one of them"),
    ("system/rng.py", ["hashed", "uniform", "permutation"], "random numbers as hashes"),
    ("system/distributed.py", ["_Gather", "gather", "mean", "local_rows"], "several processes"),
    ("backbones/timm.py", ["Timm"], "the backbone"),
    ("backbones/timm_model.py", ["TimmModel.__init__", "TimmModel.forward"], "what it computes"),
    ("ops/batchnorm.py", ["_Split", "split_batchnorm"], "virtual devices"),
    ("core/batch.py", ["Batch"], "what data and methods share"),
    ("core/method.py", ["Method"], "what the trainer knows of a method"),
    ("engine/trainer.py", [], "the loop"),
    ("engine/parallel.py", [], "one process or several, and the state"),
    ("engine/settings.py", [], "the section `train`"),
    ("engine/checkpoint.py", [], "files"),
    ("engine/optimizers.py", ["SGD"], "the optimizer"),
    ("engine/schedules.py", ["Schedule", "Cosine"], "the learning rate"),
    ("engine/hooks/scheduling.py", [], "sets it"),
    ("engine/hooks/logging.py", ["MetricsLogger", "ResultWriter"], "numbers to files"),
    ("engine/hooks/checkpoints.py", [], "when to save"),
    (
        "runs/folder.py",
        ["RunFolder.begin", "RunFolder.record", "RunFolder.forget_after", "RunFolder.write_result"],
        "what a run leaves",
    ),
    ("evaluation/monitor.py", ["Monitor"], "when a network is judged"),
    ("evaluation/base.py", ["Evaluation", "Context.features", "measure"], "what an evaluation is"),
    ("evaluation/features.py", ["extract", "extract_split"], "frozen features"),
    ("evaluation/knn.py", ["build_index", "KNN"], "the kNN vote"),
]


def lines(file: str, names: list[str]) -> list[tuple[int, int]]:
    """First and last line of the file, or of each name: a class, a function, Class.method.

    Raises:
        KeyError: the file has no such name.
    """
    text = (ROOT / "ssl_zoo" / file).read_text(encoding="utf-8")
    if not names:
        return [(1, len(text.splitlines()))]
    nodes: dict[str, ast.AST] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            nodes[node.name] = node
            inside = node.body if isinstance(node, ast.ClassDef) else []
            methods = (child for child in inside if isinstance(child, ast.FunctionDef))
            nodes |= {f"{node.name}.{method.name}": method for method in methods}
    spans = []
    for name in names:
        node = nodes[name]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        spans.append((first, node.end_lineno))
    return spans


def total(path: list[tuple[str, list[str], str]]) -> int:
    return sum(last - first + 1 for file, names, _ in path for first, last in lines(file, names))


def render() -> str:
    """The block between the marks, without them."""
    rows = ["| file | lines | |", "|---|---|---|"]
    for title, path in (("the algorithm", ALGORITHM), ("all around it", AROUND)):
        for file, names, why in path:
            spans = [f"{first}-{last}" for first, last in lines(file, names)]
            link = f"[{file}](../ssl_zoo/{file})"
            rows.append(f"| {link} | {', '.join(spans)} | {why} |")
        rows.append(f"| **{title}** | **{total(path)} in all** | |")
    return "\n".join([*rows, f"\nTogether {total(ALGORITHM) + total(AROUND)} lines."])


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    block = f"{START}\n{render()}\n{END}"
    PAGE.write_text(re.sub(f"{START}.*{END}", lambda _: block, page, flags=re.S), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
