"""What is wrong with a configuration, in one sentence: file, line, what was expected, the nearest valid key.

The parser's own messages name neither file nor line, and list all ways in which a value might be right. Files
are looked at before the parser sees them (`check_files`), and its messages are put into words afterwards
(`explained`), with the place where the key was given.
"""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

import yaml
from lightning.pytorch import Trainer

from lightning_dp.callbacks.differential_privacy import DifferentialPrivacy
from lightning_dp.choices import did_you_mean
from lightning_dp.tracking.run_folder import Run

_NESTED = "Does not validate against any of the Union subtypes"
_NOISE = (
    "Given value",
    "Expected a <class 'NoneType'>",
    "Subtypes:",
    "Errors:",
    _NESTED,
    "Expected a path but",
)
_PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "list": "a list",
    "dict": "keys and values",
    "tuple": "a list",
}
_AT_TOP = (
    "seed_everything", "trainer", "model", "data", "privacy", "run", "optimizer", "lr_scheduler", "ckpt_path",
    "weights_only",
)  # fmt: skip
_ALIKE = 0.6


def check_files(argv: Sequence[str]) -> None:
    """Raise ValueError for a `--config` file that is no YAML of keys and values, or sets a key twice."""
    for path in _files(argv):
        if not path.exists():
            raise ValueError(f"--config {path}: there is no such file")
        node = _composed(path)
        if not isinstance(node, yaml.MappingNode):
            what = (
                "is empty" if node is None else "holds a list" if _is_list(node) else "holds a single value"
            )
            raise ValueError(f"{path} {what}; a configuration is keys with values, such as 'trainer:'")
        for key, line, before in _repeated(node, ""):
            raise ValueError(f"{path}, line {line}: {key} is set a second time (first in line {before})")


def explained(message: str, *, argv: Sequence[str]) -> str:
    """A parser's message as a sentence, with the place where what it speaks of was given."""
    key, sentence, known = _told(message)
    place = _place(key, argv, value=_given(message)) if key else ""
    wrong = re.search(r"(?:no argument|no) '([^']+)'", sentence)
    near = _nearest(wrong[1], known) if wrong and known else ""
    text = f"{place}{sentence}{near}"
    return text if near else did_you_mean(text)


def innermost(message: str) -> str:
    """The deepest part of a nested parser message: what is wrong, without the ways it might be right."""
    lines = [line for line in message.splitlines() if line.strip()]
    useful = [line for line in lines if not line.strip().lstrip("- ").startswith(_NOISE)]
    deepest = max(useful, key=lambda line: len(line) - len(line.lstrip(" -")), default=message)
    return deepest.strip().lstrip("- ")


def _told(message: str) -> tuple[str, str, list[str]]:
    """(dotted key without `init_args`, sentence, names that would be valid there)."""
    parents = re.findall(r'Parser key "([^"]+)"', message)
    classes = re.findall(r"class_path '([^']+)'", message)
    text = innermost(message)
    key = ".".join(parents)
    if unknown := re.search(r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'", text):
        name = unknown[1] or unknown[2]
        key = f"{key}.{name}" if unknown[1] and key else name
        if unknown[1] and classes:
            kind = classes[-1].rpartition(".")[2]
            return key, f"{kind} has no argument '{name}'", _arguments(classes[-1])
        return _of_command(key)
    if found := re.match(r"unrecognized arguments: --([\w.+-]+)", text):
        own = found[1].rstrip("+")
        return _of_command(own) if text.count("--") == 1 else (own, text, [])
    if wrong := re.match(r"Expected a (?:<class '([\w.]+)'>|(\S+))(?:\. Got value: .*)?$", text):
        kind, given = wrong[1] or wrong[2], _given(message)
        wanted = _PLAIN.get(kind, f"a {kind}")
        return key, f"{key} is {given}, but it must be {wanted}" if given else f"{key} must be {wanted}", []
    if missing := re.search(r"the following arguments are required: (.+)$", text):
        kind = f" ({classes[-1].rpartition('.')[2]})" if classes else ""
        where = f"{key}{kind} lacks" if key else "the configuration lacks"
        return key, f"{where} {missing[1]}", []
    if absent := re.match(r"No module named '([^']+)'", text):
        return (
            key,
            (
                f"{key}: there is no module {absent[1]} here: it has to lie in the current folder or to be "
                f"installed (class_path {classes[-1] if classes else absent[1]})"
            ),
            [],
        )
    where = f"{key}: " if key and f'"{key}"' not in text else ""
    return key, f"{where}{text}", []


def _given(message: str) -> str:
    """The value of the innermost key, where the message tells it."""
    if plain := re.search(r"Got value: (.*)", message):
        return plain[1]
    values = re.findall(r"Given value: (.*)", message)
    return values[0] if values and not values[0].startswith(("{", "Namespace")) else ""


def _of_command(key: str) -> tuple[str, str, list[str]]:
    """About a key that the command itself doesn't know."""
    first, _, rest = key.partition(".")
    known: dict[str, Any] = {"trainer": Trainer, "privacy": DifferentialPrivacy, "run": Run}
    if first in known and rest:
        return key, f"{first} has no argument '{rest}'", _names(known[first])
    if first in _AT_TOP:
        return key, f"there is no '{key}'", []
    return key, f"there is no '{first}' in a configuration", list(_AT_TOP)


def _arguments(class_path: str) -> list[str]:
    try:
        kind = locate(class_path)
    except ErrorDuringImport:
        return []
    if kind is None:  # the parser knows it by its short name
        import lightning_dp

        kind = getattr(lightning_dp, class_path.rpartition(".")[2], None)
    return _names(kind) if inspect.isclass(kind) else []


def _names(kind: type) -> list[str]:
    """Names of the arguments that a class takes, those that it hands on to its bases too."""
    if is_dataclass(kind):
        return [field.name for field in fields(kind)]
    names: list[str] = []
    for one in kind.__mro__:
        own = vars(one).get("__init__")
        if own is None:
            continue
        parameters = inspect.signature(own).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in dict.fromkeys(names) if name != "self"]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    if near := get_close_matches(name, names, n=1, cutoff=_ALIKE):
        return f"; did you mean {near[0]}?"
    return f"; it has {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else ""


def check_nulls(config: Any, *, argv: Sequence[str], filled_in: Iterable[str], prefix: str = "") -> None:
    """Raise ValueError for an argument of a class that is null and may not be, which no parser looks at.

    Args:
        config: of the fit, or of a part of it, as parsed.
        argv: of the command.
        filled_in: names of arguments that are null until the data is there.
        prefix: dotted key of `config`.
    """
    values = vars(config) if hasattr(config, "__dict__") else config if isinstance(config, dict) else {}
    kind = locate(values["class_path"]) if isinstance(values.get("class_path"), str) else None
    own = values.get("init_args")
    if inspect.isclass(kind) and own is not None:
        hints = inspect.signature(kind).parameters
        for name, value in vars(own).items():
            wanted = _PLAIN.get(_name_of(hints[name].annotation)) if name in hints else None
            if value is None and wanted and hints[name].default is not None and name not in filled_in:
                key = _short(f"{prefix}.{name}" if prefix else name)
                place = _place(key, argv, value="null")
                raise ValueError(f"{place}{kind.__name__}.{name} is null, but it must be {wanted}")
    for name, value in values.items():
        inner = f"{prefix}.{name}" if prefix else name
        check_nulls(value, argv=argv, filled_in=filled_in, prefix=inner)


def _name_of(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


# --- where things are ------------------------------------------------------------------------------


def _place(key: str, argv: Sequence[str], *, value: str = "") -> str:
    """Where a key was given last: on the command line, else in a file; "" where it stands nowhere.

    Args:
        key: dotted, without `init_args`.
        argv: of the command.
        value: that was refused, "" where it is not known.
    """
    for number, argument in reversed(list(enumerate(argv))):
        name = re.match(r"--([\w.]+)", argument)
        if name and _short(name[1]) == key:
            own = argument.partition("=")[2] or "".join(argv[number + 1 : number + 2])
            if value in ("", own):
                return f"--{name[1]}: "
    for path in reversed(list(_files(argv))):
        node = _composed(path)  # `check_files` has read it before
        lines = [line for own, line in _keys(node, "") if own == key]
        if lines:
            return f"{path}, line {lines[-1]}: "
    return ""


def _files(argv: Sequence[str]) -> Iterator[Path]:
    for number, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-c"):
            given = value if equals else argv[number + 1] if number + 1 < len(argv) else ""
            if given and "\n" not in given and not given.lstrip().startswith("{"):  # else YAML itself
                yield Path(given)


def _composed(path: Path) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: it is not UTF-8; save the file in that encoding") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = error.problem or error.context or "it can't be read"
        tab = "; indent by blanks, not by tabs" if "\\t" in what else ""
        raise ValueError(f"{path}{where}: no YAML: {what}{tab}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return node


def _is_list(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


def _keys(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
    """(dotted key without `init_args`, line) of all mappings inside; lists are looked through."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    for name, value in node.value:
        own = str(name.value)
        key = prefix if own == "init_args" else f"{prefix}.{own}" if prefix else own
        yield key, name.start_mark.line + 1
        yield from _keys(value, key)


def _repeated(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int, int]]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for name, value in node.value:
        own, line = str(name.value), name.start_mark.line + 1
        key = f"{prefix}.{own}" if prefix else own
        if own in seen and own != "<<":
            yield key, line, seen[own]
        seen[own] = line
        yield from _repeated(value, key)


def _short(key: str) -> str:
    return ".".join(part for part in key.split(".") if part != "init_args")
