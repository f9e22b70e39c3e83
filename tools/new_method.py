"""Starts a method: its file, its config, its arm in the zoo's study, its line in docs/methods.md.

    python tools/new_method.py my_idea --kind predictive

What is written works as it is: it trains, and passes tests/conformance.py. Then it is changed.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = Path(__file__).parent / "templates"
KINDS = {
    "contrastive": "two views, one embedding against a memory of many (InfoNCE)",
    "predictive": "a class made from the image itself, told by a linear layer",
    "masked": "a ViT tells the pixels of masked patches",
}


def class_name(name: str) -> str:
    """'my_idea' -> 'MyIdea'."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def check(name: str, kind: str, root: Path) -> None:
    """Raises ValueError or FileExistsError, saying what would do."""
    written = {name, class_name(name)}
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or written & {*keyword.kwlist}:
        raise ValueError(
            f"{name!r} is no name for a module: small letters, digits and single underscores, "
            "beginning with a letter, like my_idea"
        )
    if re.search(rf"\b{class_name(name)}\b", (TEMPLATES / f"{kind}.py").read_text("utf-8")):
        raise ValueError(
            f"{name!r} would become a class {class_name(name)}, which its own file would mistake "
            "for another of that name: take another name"
        )
    for path in files(name, root).values():
        if path.exists():
            raise FileExistsError(f"{path.relative_to(root)} is there already: take another name")
    for path in sorted((root / "ssl_zoo" / "methods").glob("*.py")):
        if re.search(rf"^class {class_name(name)}\b", path.read_text(encoding="utf-8"), re.M):
            raise FileExistsError(f"{path.relative_to(root)} has a {class_name(name)} already")


def files(name: str, root: Path) -> dict[str, Path]:
    """Ending of the template -> what it becomes."""
    return {
        "py": root / "ssl_zoo" / "methods" / f"{name}.py",
        "yaml": root / "configs" / "fashion_mnist" / f"{name}.yaml",
    }


def create(name: str, kind: str, root: Path = ROOT) -> list[Path]:
    """Writes the method's two files and adds its arm to configs/ablation/zoo.yaml.

    Raises:
        ValueError: a name that no module or class can have, or that the template uses.
        FileExistsError: a file or class of this name is there. Nothing has been written then.
    """
    check(name, kind, root)
    written = files(name, root)
    for ending, path in written.items():
        text = (TEMPLATES / f"{kind}.{ending}").read_text(encoding="utf-8")
        path.write_text(text.replace("NewMethod", class_name(name)), encoding="utf-8")
    zoo = root / "configs" / "ablation" / "zoo.yaml"
    arm = f"  {class_name(name)}: {{base: ../fashion_mnist/{name}.yaml}}\n"
    zoo.write_text(zoo.read_text(encoding="utf-8") + arm, encoding="utf-8")
    return [*written.values(), zoo]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Writes a working method, its config, its arm in configs/ablation/zoo.yaml and "
        "its line in docs/methods.md.",
        epilog="kinds:\n" + "\n".join(f"  {kind}: {said}" for kind, said in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the module, like my_idea")
    parser.add_argument("--kind", choices=KINDS, default="predictive", help="[predictive]")
    arguments = parser.parse_args(argv)
    try:
        written = create(arguments.name, arguments.kind)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import methods_page  # imports the package, the new method with it

    written += [methods_page.write()]
    print("\n".join(str(path.relative_to(ROOT)) for path in written))
    config = files(arguments.name, ROOT)["yaml"].relative_to(ROOT)
    kind = class_name(arguments.name)
    print(
        "next:\n"
        f"  python -m pytest tests/conformance.py -k '{arguments.name} or {kind}'\n"
        f"  ssl-zoo train {config}\n"
        f"  ssl-zoo ablate configs/ablation/zoo.yaml --only {kind}\n"
        "  python tools/methods_page.py    # after a change of the method or its config"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
