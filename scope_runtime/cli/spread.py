"""Options that several commands share, as one dataclass: typer sees its fields one by one."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

R = TypeVar("R")


def spread(command: Callable[..., R]) -> Callable[..., R]:
    """The command as typer wants it: each parameter that is a dataclass becomes its fields, in its place.

    The fields are annotated as a command's parameters are, and have defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    whole: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            parameters.append(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            )
            continue
        whole[name] = kind
        of = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=each.default,
                annotation=of[each.name],
            )
            for each in dataclasses.fields(kind)
        ]

    @functools.wraps(command)
    def called(**given: Any) -> R:
        for name, kind in whole.items():
            given[name] = kind(**{f.name: given.pop(f.name) for f in dataclasses.fields(kind)})
        return command(**given)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called
