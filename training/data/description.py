"""Which pictures a network learns: their name and their classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Description:
    """name: of a-z, 0-9 and _; title: for people; classes: the labels in index order."""

    name: str
    title: str
    classes: tuple[str, ...]

    @property
    def is_cifar10(self) -> bool:
        return self.name == "cifar10"

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "title": self.title, "classes": list(self.classes)}

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """The description of an `as_dict`. Raises KeyError when it is none."""
        return cls(values["name"], values["title"], tuple(values["classes"]))
