"""Parameters by name, for networks that declare no roles."""

import re
from collections.abc import Iterable, Sequence
from typing import final

from torch import nn

from lightning_dp.adapters.adapter import Adapter


@final
class Matching(Adapter):
    """Parameters whose name contains a match of any pattern.

    Args:
        patterns: regular expressions, searched for in names such as "blocks.0.attention.qkv.weight".

    Raises:
        ValueError: `patterns` is empty or one is not a regular expression.
    """

    def __init__(self, *, patterns: Sequence[str]) -> None:
        super().__init__()
        if not patterns:
            raise ValueError("Matching.patterns is empty: name at least one, or choose adapters.full.Full")
        try:
            self._patterns = [re.compile(pattern) for pattern in patterns]
        except re.error as error:
            raise ValueError(
                f"Matching.patterns has {error.pattern!r}, which is not a regular expression: {error}"
            ) from error

    def choose(self, module: nn.Module) -> Iterable[nn.Parameter]:
        found: list[nn.Parameter] = []
        names = dict(module.named_parameters())
        for pattern in self._patterns:
            matched = [parameter for name, parameter in names.items() if pattern.search(name)]
            if not matched:
                raise ValueError(
                    f"Matching.patterns: {pattern.pattern!r} matches no parameter of "
                    f"{type(module).__name__}, whose names look like {next(iter(names), 'nothing')!r}"
                )
            found += matched
        return found
