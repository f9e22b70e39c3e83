"""YAML in, `_base_` inheritance, overrides, YAML out: plain data only, a config runs no code."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ssl_zoo.config.errors import ConfigError, closest, join
from ssl_zoo.system.files import user_path, write_text
from ssl_zoo.system.text import visible

MOST_VALUES = 100_000  # of one file
RECIPES = Path(__file__).parents[1] / "configs"  # that come along, installed or not
_NUMBER_OR_WORD = {  # YAML 1.2's core schema: `1e-3` is a number, `010` is ten, `on` is a word
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", "~nN\0"),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9]+$", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
        "-+.0123456789",
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012
    # A path on the command line may hold bytes that are no UTF-8: Python's lone surrogates.
    NON_PRINTABLE = re.compile(yaml.SafeLoader.NON_PRINTABLE.pattern.replace("]", "\udc80-\udcff]"))


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _written(dumper: _Dumper, text: str) -> yaml.Node:
    """In quotes and escaped where it would not be read back, or moves a person's cursor."""
    style = None if text == visible(text) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _written)
for _tag, (_pattern, _first) in _NUMBER_OR_WORD.items():
    for _class in (_Loader, _Dumper):
        firsts = [c if c != "\0" else "" for c in _first]
        _class.add_implicit_resolver(_tag, re.compile(_pattern), firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


@dataclass
class Config:
    """A resolved config: plain data, and where each key was written."""

    data: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """`file:line` of a key, or of the closest enclosing one."""
        while key not in self.origins and key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    @contextmanager
    def located(self) -> Iterator[None]:
        """Errors from inside say in which file and line their key stands."""
        try:
            yield
        except ConfigError as error:
            error.where = error.where or self.where(error.key)
            raise


def load(path: str | Path, overrides: Iterable[str | tuple[str, Any]] = ()) -> Config:
    """Reads a YAML file, its bases, then the overrides.

    `_base_`, of the whole or of a block (a path relative to the file, or a recipe's name, or a list
    of them), is read first; mappings are merged, and anything else is replaced. A block whose
    `type` changes starts afresh, so that a swapped part inherits no key of the old one.

    Args:
        path: a file, or the name of a recipe that comes along, see `find`.
        overrides: `"method.memory.size=4096"` or `("method.memory", {"type": "EndToEnd"})`.
    """
    config = _load(find(path), ())
    override(config, overrides)
    return config


def find(path: str | Path) -> Path:
    """The file itself; or if there is none, `fashion_mnist/moco_v2` of the recipes."""
    path = Path(path)
    recipe = RECIPES / path.with_suffix(".yaml")
    return recipe if not path.is_file() and recipe.is_file() else path


def recipes() -> dict[str, Path]:
    """By name."""
    names = sorted(RECIPES.glob("[!_]*/*.yaml"))
    return {path.relative_to(RECIPES).with_suffix("").as_posix(): path for path in names}


def override(config: Config, overrides: Iterable[str | tuple[str, Any]], prefix: str = "") -> None:
    """Sets keys of a config in place, see `load`; `prefix` is the dotted block that they are of."""
    for setting in overrides:
        if isinstance(setting, str):
            dotted, equals, text = setting.partition("=")
            if not equals:
                raise ConfigError(setting, "not an override", expected="key=value")
            where = f"override {setting!r}"
            value = _read(text, where, {}, dotted)
        else:
            dotted, value = setting
            where = f"override {dotted!r}"
        _override(config, join(prefix, dotted), value, where)


def loads(text: str, name: str) -> Config:
    """Reads YAML text without bases; `name` stands for the file in errors."""
    origins: dict[str, str] = {}
    data = _read(text, name, origins)
    if not isinstance(data, dict | None):
        raise ConfigError("", "not a config", expected="a mapping of keys", where=name)
    return Config(data or {}, origins)


def _read(text: str, file: str, origins: dict[str, str], key: str = "") -> Any:
    try:
        loader = _Loader(text)
        return _Reader(loader, file, origins).value(loader.get_single_node(), key, ())
    except yaml.YAMLError as error:
        mark = None if file.startswith("override") else getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else file
        raise ConfigError(key, f"not YAML: {' '.join(str(error).split())}", where=where) from error
    except RecursionError as error:
        raise ConfigError(key, "nested too deep", where=file) from error


def dump(config: Config | Mapping, path: str | Path | None = None) -> str:
    """The config as YAML that `load` reads back to the same data; written to `path` if given."""
    data = config.data if isinstance(config, Config) else config
    form = {"sort_keys": False, "default_flow_style": None, "allow_unicode": True}
    text = yaml.dump(dict(data), Dumper=_Dumper, **form)
    if path is not None:
        write_text(path, text)
    return text


def differences(old: Mapping, new: Mapping, key: str = "") -> list[str]:
    """Dotted keys in which two configs differ, each with its two values."""
    lines = []
    for name in dict.fromkeys([*old, *new]):
        a, b, path = old.get(name), new.get(name), join(key, name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, path)
        elif a != b:
            lines.append(f"{path}: {a!r} -> {b!r}")
    return lines


def _load(path: Path, opened: tuple[Path, ...]) -> Config:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        close = closest(path.name, siblings)
        nearest = str(path.parent / close) if close else closest(path.with_suffix(""), recipes())
        key, where = ("_base_", str(opened[-1])) if opened else ("", "")
        raise ConfigError(key, "no such file", found=str(path), nearest=nearest, where=where)
    if path.resolve() in opened:
        chain = " -> ".join(p.name for p in (*opened, path))
        raise ConfigError("_base_", "cyclic bases", found=chain, where=str(opened[-1]))
    opened = (*opened, path.resolve())
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("", f"not text in UTF-8: {error}", where=str(path)) from error
    read = loads(text, str(path))
    data = _on_bases(read.data, "", read.origins, path.parent, opened)
    return Config(data, read.origins)


def _on_bases(
    block: dict, key: str, origins: dict[str, str], folder: Path, opened: tuple[Path, ...]
) -> dict:
    """A block, and all below it, each laid over its `_base_`; adds origins of what is inherited."""
    own = {
        name: _on_bases(value, join(key, name), origins, folder, opened)
        if isinstance(value, dict)
        else value
        for name, value in block.items()
    }
    bases = own.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        at, problem = join(key, "_base_"), "not a path or a list of paths"
        raise ConfigError(at, problem, found=repr(bases), where=origins.get(at, ""))
    merged: dict = {}
    inherited: dict[str, str] = {}
    for base in bases:
        config = _load(_base(folder, base), opened)
        merged = _merge(merged, config.data)
        inherited |= {join(key, at): where for at, where in config.origins.items()}
    origins |= {at: where for at, where in inherited.items() if at not in origins}
    return _merge(merged, own)


def _base(folder: Path, name: str) -> Path:
    """A file below the folder goes before a recipe that comes along."""
    path, recipe = (folder / user_path(name)).resolve(), RECIPES / Path(name).with_suffix(".yaml")
    return recipe if not path.is_file() and recipe.is_file() else path


class _Reader:
    """YAML nodes as plain data, noting the line of every key on the way."""

    def __init__(self, loader: _Loader, file: str, origins: dict[str, str]):
        self.loader, self.file, self.origins = loader, file, origins
        self.read = 0

    def value(self, node, key: str, above: tuple) -> Any:
        self.read += 1
        if self.read > MOST_VALUES:  # a few aliases of aliases expand to billions
            raise ConfigError(key, f"expands to more than {MOST_VALUES:,} values", where=self.file)
        if node is None:
            return None
        if any(node is other for other in above):
            raise ConfigError(key, "an alias that contains itself", where=self.file)
        above = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(n, f"{key}[{i}]", above) for i, n in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, key: str, above: tuple) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = "" if self.file.startswith("override") else f":{name_node.start_mark.line + 1}"
            where = f"{self.file}{line}"
            name = self.loader.construct_object(name_node)
            below = join(key, name)
            if not isinstance(name, str):
                raise ConfigError(below, "not a string; put quotes around it", where=where)
            if name in values:
                raise ConfigError(below, "duplicate key", found=f"{name!r} twice", where=where)
            self.origins[below] = where
            values[name] = self.value(value_node, below, above)
        return values


def _merge(base: Any, new: Any) -> Any:
    """`new` over `base`. Mappings merge key by key, unless the block's `type` changes."""
    if not isinstance(base, Mapping) or not isinstance(new, Mapping):
        return deepcopy(new)
    if "type" in new and "type" in base and new["type"] != base["type"]:
        return deepcopy(dict(new))
    return {**base, **{name: _merge(base.get(name), value) for name, value in new.items()}}


def _override(config: Config, dotted: str, value: Any, where: str) -> None:
    """Sets one dotted key. Under `schedules` names hold dots: `schedules.optimizer.lr.final=0`."""
    parts, block, path = dotted.split("."), config.data, ""
    while True:
        known = (n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in block)
        taken = next(known, len(parts) if path == "schedules" else 1)
        name, parts = ".".join(parts[:taken]), parts[taken:]
        path = join(path, name)
        if not parts:
            break
        if block.get(name) is None:
            block[name] = {}
        elif not isinstance(block[name], dict):
            raise ConfigError(dotted, f"'{path}' is a value and holds no keys", where=where)
        block = block[name]
    config.origins[path] = where
    if name == "type" and block.get("type") not in (None, value):
        block.clear()
    block[name] = _merge(block.get(name), value)
