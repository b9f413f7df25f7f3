"""Enumerations whose members say what they mean, so that nobody has to explain them elsewhere."""

from enum import StrEnum
from typing import Self


class Explained(StrEnum):
    """A member is its name and what that means."""

    meaning: str

    def __new__(cls, name: str, meaning: str = "") -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member
