"""What models, laws and their parts have in common: they can be arguments of jitted functions (``pytrees``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


class Part:
    """Its arrays and floats are arguments of jitted functions; names, whole numbers and functions are structure."""

    _declared: ClassVar[list[type[Part]]] = []
    _tell: ClassVar[Callable[[type[Part]], None] | None] = None

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        Part._declared.append(cls)
        if Part._tell is not None:
            Part._tell(cls)

    @staticmethod
    def when_declared(tell: Callable[[type[Part]], None]) -> None:
        """``tell`` of every class there is, and of every one to come."""
        for kind in Part._declared:
            tell(kind)
        Part._tell = staticmethod(tell)
