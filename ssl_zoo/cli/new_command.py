"""ssl-zoo new: a part of one's own that works as it is, to be changed."""

import argparse
import ast
import importlib.util
import keyword
import re
from pathlib import Path
from typing import NamedTuple

from ssl_zoo.system.text import show

TEMPLATES = Path(__file__).with_name("templates")


class Place(NamedTuple):
    """Where its names are registered; in a checkout its folder, and its recipe below configs/."""

    registry: str
    package: str
    recipe: str


PLACES = {
    "method": Place("METHODS", "methods", "fashion_mnist/{name}.yaml"),
    "memory": Place("MEMORY", "memory", "digits/{name}.yaml"),
    "evaluation": Place("EVALUATIONS", "evaluation", "digits/{name}.yaml"),
    "dataset": Place("DATASETS", "data/datasets", "{name}/moco_v2.yaml"),
}
METHODS = {
    "contrastive": "two views, one embedding against a memory of many (InfoNCE)",
    "predictive": "a class made from the image itself, told by a linear layer",
    "masked": "a ViT tells the pixels of masked patches",
}
# What a method's recipe begins with in a checkout, where the zoo's study trains it.
_SMALL, _VIT = (f"_base_: ../_base_/fashion_mnist_{of}.yaml\n" for of in ("small", "vit"))
_GROUPS = "backbone: {bn_groups: 4}  # groups for ShuffleBN to shuffle keys between\n"
ON_FASHION_MNIST = {"contrastive": _SMALL + _GROUPS, "predictive": _SMALL, "masked": _VIT}
ZOO = "configs/ablation/zoo.yaml"


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Writes a part that works as it is, to be changed: NAME.py, NAME.yaml that "
        "trains with it, and test_NAME.py, into the working directory. In the root of a checkout "
        "they go where its own parts are, which are tested for being registered.",
        epilog="kinds of method:\n" + "\n".join(f"  {k}: {said}" for k, said in METHODS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=PLACES, metavar="|".join(PLACES))
    parser.add_argument("name", metavar="NAME", help="of the file, like my_idea: class MyIdea")
    parser.add_argument("--kind", choices=METHODS, help="of a method [predictive]")
    parser.set_defaults(command=new)


def new(arguments: argparse.Namespace) -> int:
    what, name, kind = arguments.what, arguments.name, arguments.kind
    if kind is not None and what != "method":
        raise ValueError(f"--kind {kind}: only a method has a kind")
    folder = Path()
    written, to_do = create(what, name, folder, kind or "predictive")
    show("\n".join(f"wrote {path}" for path in written))
    show("\n".join(["next:", *(f"  {line}" for line in to_do)]))
    return 0


def create(
    what: str, name: str, folder: Path, kind: str = "predictive"
) -> tuple[list[Path], list[str]]:
    """Writes a part's files below a folder; returns them, and what to type next.

    Raises:
        ConfigError: a name that no module or class can have, or that is taken.
        FileExistsError: one of the files is there.
        In either case nothing has been written.
    """
    code, config = (
        _template(f"{kind if what == 'method' else what}.{of}") for of in ("py", "yaml")
    )
    checkout = (folder / "ssl_zoo" / "methods").is_dir()
    if checkout:
        files = _in_checkout(what, name, kind, code, config)
    else:
        test = _template("test_method.py" if what == "method" else "test_part.py")
        test = test.replace("new_kind", what)
        files = {f"{name}.py": code, f"{name}.yaml": config, f"test_{name}.py": test}
    for path in files:
        if (folder / path).exists():
            raise FileExistsError(f"{path} is there already: take another name")
    _check(what, name, code, plug_in=not checkout)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / path, "x", encoding="utf-8") as file:
            file.write(text.replace("NewPart", class_name(name)).replace("new_part", name))
    written = list(map(Path, files))
    if not checkout:
        code, recipe, test = files
        return written, [f"ssl-zoo train {recipe} --plugin {code}", f"python -m pytest {test}"]
    of, (_, recipe) = class_name(name), files
    to_do = [f"ssl-zoo train {recipe}", f"python -m pytest tests/test_conformance.py -k {of}"]
    if what == "method":
        arm = f"  {of}: {{base: ../fashion_mnist/{name}.yaml}}\n"
        with open(folder / ZOO, "a", encoding="utf-8") as file:
            file.write(arm)
        written.append(Path(ZOO))
        to_do[1] = f'python -m pytest tests/test_conformance.py -k "{name}- or {of}"'
        to_do += [f"ssl-zoo ablate {ZOO} --only {of}"]
        to_do += ["python tools/methods_page.py    # its line in docs/methods.md"]
    return written, to_do


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _in_checkout(what: str, name: str, kind: str, code: str, config: str) -> dict[str, str]:
    """File -> text, the class still NewPart."""
    _, package, recipe = PLACES[what]
    if what == "method":
        block = re.search(r"^method:.*\n(?:  .*\n)*", config, re.M)[0]
        config = f"# NewPart on Fashion-MNIST.\n{ON_FASHION_MNIST[kind]}{block}"
    return {
        f"ssl_zoo/{package}/{name}.py": code,
        f"configs/{recipe.format(name=name)}": config,
    }


def _check(what: str, name: str, code: str, plug_in: bool) -> None:
    """Raises ConfigError for a name that will not do, with what would."""
    from ssl_zoo import config
    from ssl_zoo.config import ConfigError

    if not _is_name(name):
        expected = "small letters, digits and single underscores, beginning with a letter"
        error = ConfigError("NAME", "no name for a module", found=repr(name), expected=expected)
        error.nearest = spelled(name)
        raise error
    of, registry, problem = class_name(name), getattr(config, PLACES[what].registry), ""
    nodes = ast.walk(ast.parse(code))
    if of in registry.module_dict:
        problem = f"{registry.module_dict[of].__module__} has a {registry.name} {of} already"
    elif of in {getattr(node, "name", getattr(node, "id", "")) for node in nodes}:
        problem = f"its file would mistake its class {of} for another of that name"
    elif plug_in and importlib.util.find_spec(name):
        problem = "the name of a module that Python has"
    if problem:
        raise ConfigError("NAME", problem, found=name, expected=f"another, like my_{name}")


def _is_name(name: str) -> bool:
    taken = {name, class_name(name)} & set(keyword.kwlist)
    return not taken and bool(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name))


def class_name(name: str) -> str:
    """'my_idea' -> 'MyIdea'."""
    return "".join(word[:1].upper() + word[1:] for word in name.split("_"))


def spelled(name: str) -> str:
    """'MyIdea 2' -> 'my_idea_2': the module that was meant, or ''."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).strip("_").lower()
    return words if _is_name(words) else ""
