"""A constructor knows its arguments, the user knows settings: what one says of an argument is told of the setting."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from selfdistill.config.errors import UserError

_ARGUMENT = re.compile(r"(?:[A-Z]\w*\.)?([a-z]\w*)(?=[.:=\[]| must )")


def made(key: str, node: DictConfig | Mapping[str, Any], **more: Any) -> Any:
    """What ``node``, which stands under ``key``, describes; ``more`` goes to ``instantiate``.

    Raises:
        UserError: an argument cannot be what it is; the line begins with its setting.
    """
    with named(key, node):
        return instantiate(node, **more)


@contextmanager
def named(key: str, node: DictConfig | Mapping[str, Any]) -> Iterator[None]:
    """A ValueError that begins with an argument which stands in ``node`` is told of the setting below ``key``.

    Any other error passes.

    Raises:
        UserError: the line, beginning with the setting.
    """
    try:
        yield
    except InstantiationException as error:
        place = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)
        if isinstance(error.__cause__, ValueError):
            _tell(key, node, place[1].removeprefix(key).lstrip(".") if place else "", error.__cause__)
        raise
    except ValueError as error:
        _tell(key, node, "", error)
        raise


def _tell(key: str, node: DictConfig | Mapping[str, Any], inner: str, error: ValueError) -> None:
    found = _ARGUMENT.match(str(error))
    if found is None or found[1] == key.partition(".")[0]:  # no argument, or a setting already
        return
    for path, mapping in reversed(list(_along(key, node, inner))):
        if found[1] in mapping:
            raise UserError(f"{path}.{str(error)[found.start(1) :]}") from error


def _along(path: str, node: Any, inner: str) -> Iterator[tuple[str, Mapping[str, Any] | DictConfig]]:
    """The mappings on the way from ``node`` to ``inner``, as Hydra writes it: crops.0 is ``crops0`` or ``crops[0]``."""
    yield path, node
    for part in filter(None, inner.split(".")):
        name, place = part, ""
        if part not in node:
            name = part.rstrip("[]0123456789")
            place = part[len(name) :].strip("[]")
        path, node = f"{path}.{name}", node.get(name)
        if place and isinstance(node, Sequence) and int(place) < len(node):
            path, node = f"{path}.{place}", node[int(place)]
        if not isinstance(node, Mapping | DictConfig):
            return
        yield path, node
