"""Enumerations for people: each member says what it means."""

from enum import StrEnum


class Explained(StrEnum):
    """A member is written as ``NAME = "name", "What it means."``; it is its name everywhere, also in JSON and SQL."""

    meaning: str

    def __new__(cls, name: str, meaning: str = "") -> "Explained":
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member
