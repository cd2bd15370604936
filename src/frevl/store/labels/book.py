"""The state defined by all lines of a labels file: classes, and every labeller's answer for every image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from frevl.store.labels.entries import Entry

__all__ = ["LabelBook"]


_DIGEST_BITS = 24


@dataclass
class _Class:
    name: str
    into: int | None = None  # the class into which it was merged
    labels: int = 0


@dataclass
class LabelBook:
    """The state after all entries; `take` adds an entry.

    A label refers to its class rather than to a name, so it follows renames. A former name of a class still leads to
    it, unless another class has that name, so labels from a page opened earlier are not lost.

    Attributes:
        entries: All entries, in file order.
        undone: Requests that do not count.
        digest: Checksum of all lines read, the same for every reader.
    """

    entries: list[Entry] = field(default_factory=list)
    undone: set[str] = field(default_factory=set)
    digest: int = 0

    def __post_init__(self) -> None:
        entries, self.entries = self.entries, []
        self._requests: dict[str, list[Entry]] = {}
        self._forget()
        for entry in entries:
            self.take(entry)

    def _forget(self) -> None:
        self._classes: list[_Class] = []
        self._names: dict[str, int] = {}  # present names
        self._former: dict[str, int] = {}
        # By image and labeller: the labeller's successive answers, as (request, class).
        self._said: dict[str, dict[str, list[tuple[str, int | None]]]] = {}
        self._by: dict[str, list[str]] = {}  # requests of a labeller that can be undone

    # ---- adding

    def take(self, entry: Entry) -> None:
        """Add an entry."""
        self.entries.append(entry)
        self._requests.setdefault(entry.request, []).append(entry)
        if entry.action == "undo":
            self._undo(entry)
        else:
            self._apply(entry)

    def _apply(self, entry: Entry) -> None:
        if entry.request in self.undone:
            return
        own = self._by.setdefault(entry.by, [])
        if not own or own[-1] != entry.request:
            own.append(entry.request)
        if entry.action == "label":
            number = None if entry.name is None else self._number(entry.name)
            said = self._said.setdefault(entry.image, {}).setdefault(entry.by, [])
            self._count(said, -1)
            said.append((entry.request, number))
            self._count(said, 1)
        elif entry.action == "define":
            self._define(entry.name or "")
        elif entry.name is not None and entry.name in self._names:
            self._rename(entry.name, entry.to)

    def _rename(self, name: str, to: str) -> None:
        if name == to:
            return
        number = self._names.pop(name)
        self._former[name] = number
        if to in self._names:
            into = self._names[to]
            self._classes[number].into = into
            self._classes[into].labels += self._classes[number].labels
        else:
            self._former.pop(to, None)
            self._names[to] = number
            self._classes[number].name = to

    def _define(self, name: str) -> int:
        if name not in self._names:
            self._former.pop(name, None)
            self._names[name] = len(self._classes)
            self._classes.append(_Class(name))
        return self._names[name]

    def _number(self, name: str) -> int:
        """Return the class with this current or former name; a new one if there is none."""
        if name in self._names:
            return self._names[name]
        return self._root(self._former[name]) if name in self._former else self._define(name)

    def _root(self, number: int) -> int:
        into = self._classes[number].into
        while into is not None:
            number, into = into, self._classes[into].into
        return number

    def _count(self, said: list[tuple[str, int | None]], step: int) -> None:
        if said and said[-1][1] is not None:
            self._classes[self._root(said[-1][1])].labels += step

    def _undo(self, undo: Entry) -> None:
        request = undo.name or ""
        undone = [entry for entry in self._requests.get(request, ()) if entry.action != "undo"]
        if request in self.undone or not undone:
            return
        self.undone.add(request)
        if any(entry.action != "label" for entry in undone):  # class names have changed, so start from the beginning
            self._forget()
            for entry in self.entries:
                if entry.action != "undo":
                    self._apply(entry)
            return
        for by in {entry.by for entry in undone}:
            self._by[by] = [one for one in self._by[by] if one != request]
        for image, by in {(entry.image, entry.by) for entry in undone}:
            of_image = self._said[image]
            said = of_image[by]
            self._count(said, -1)
            said[:] = [one for one in said if one[0] != request]
            self._count(said, 1)
            if not said:
                del of_image[by]
            if not of_image:
                del self._said[image]

    # ---- asking

    @property
    def version(self) -> int:
        """A number that increases with every entry and differs between files; equal numbers mean equal labels.

        It is the same in every process, and below 2^53 for up to half a billion entries, so that a page reads it
        exactly.
        """
        return len(self.entries) << _DIGEST_BITS | self.digest & ((1 << _DIGEST_BITS) - 1)

    def knows(self, request: str) -> bool:
        """Return whether this request was already written."""
        return request in self._requests

    def last_of(self, by: str) -> str | None:
        """Return a labeller's last request that can be undone."""
        own = self._by.get(by)
        return own[-1] if own else None

    def of_request(self, request: str) -> list[Entry]:
        """Return the entries of a request."""
        return list(self._requests.get(request, ()))

    def name_of(self, name: str) -> str | None:
        """Return the current name of a class, given a current or former name; None if there is none."""
        if name in self._names:
            return name
        return self._classes[self._root(self._former[name])].name if name in self._former else None

    def renamed(self) -> dict[str, str]:
        """Return the former class names, with their current names."""
        return {former: self._classes[self._root(number)].name for former, number in self._former.items()}

    def classes(self) -> dict[str, int]:
        """Return all classes in order of definition, each with its number of labels over all labellers."""
        return {self._classes[number].name: self._classes[number].labels for number in sorted(self._names.values())}

    def of(self, image: str) -> dict[str, str]:
        """Return each labeller's answer for an image."""
        found = {}
        for by, said in self._said.get(image, {}).items():
            number = said[-1][1]
            if number is not None:
                found[by] = self._classes[self._root(number)].name
        return found

    def images(self) -> Iterable[str]:
        """Return the images that anyone has labelled, in order of their first label."""
        return self._said.keys()

    def labellers(self) -> dict[str, int]:
        """Return all labellers, with the number of images they labelled."""
        counts: dict[str, int] = dict.fromkeys(self._by, 0)
        for image in self._said:
            for by in self.of(image):
                counts[by] = counts.get(by, 0) + 1
        return counts

    def agreed(self, by: str | None = None) -> dict[str, str]:
        """Return the class of every image on which all or most labellers agree.

        Args:
            by: Consider only this labeller's answers.
        """
        found = {}
        for image in self._said:
            said = self.of(image)
            name = said.get(by) if by is not None else most(said.values())
            if name is not None:
                found[image] = name
        return found

    def disputed(self) -> list[str]:
        """Return the images with a tie between classes."""
        return [image for image in self._said if (said := self.of(image)) and most(said.values()) is None]

    def both(self) -> dict[tuple[str, str], tuple[list[str], list[str]]]:
        """Return, for every two labellers with images in common, the classes that each gave them."""
        pairs: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
        for image in self._said:
            said = self.of(image)
            for first, second in combinations(sorted(said), 2):
                lists = pairs.setdefault((first, second), ([], []))
                lists[0].append(said[first])
                lists[1].append(said[second])
        return pairs


def most(names: Iterable[str]) -> str | None:
    """Return the most frequent name; None for a tie, or if there are none."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    best = sorted(counts.values(), reverse=True)[:2]
    if not best or (len(best) == 2 and best[0] == best[1]):
        return None
    return max(counts, key=lambda name: counts[name])
