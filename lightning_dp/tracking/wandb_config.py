"""What of a run's configuration W&B may get: an allow list, by what a value is and where it stands.

Names of columns, categories, customers and paths stand in a configuration as texts, lists and keys. Of the
data section only numbers, switches, names of classes and a few choices go, of the rest nothing that is a
path.
"""

from typing import Any

_CHOICES = {"unit", "mode", "other_sizes", "other_modes", "unreadable", "short", "class_path", "frequency"}
"""Texts of the data section that are one of a fixed set, or a fact that the documentation calls public."""
_PLACES = {"dir", "ledger", "ckpt_path", "config", "path", "data_dir", "default_root_dir", "start_from"}
_LEFT_OUT = "kept on this machine"


def outgoing_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without paths, columns, categories and customers; what is left out says so."""
    return {
        name: _of_data(value) if name == "data" else _elsewhere(value, name) for name, value in config.items()
    }


def _of_data(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        if "class_path" in value or name == "":
            kept = {key: _of_data(item, key) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item != _LEFT_OUT}
        if name == "init_args":
            return {key: _of_data(item, key) for key, item in value.items()}
        return _LEFT_OUT  # a mapping's keys may be columns
    if value is None or isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, str) and name in _CHOICES else _LEFT_OUT


def _elsewhere(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _elsewhere(item, key) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_elsewhere(item, name) for item in value]
    if isinstance(value, str) and (name in _PLACES or "/" in value or "\\" in value or value.startswith("~")):
        return _LEFT_OUT
    return value
