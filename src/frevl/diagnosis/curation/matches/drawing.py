"""Lines whose image and text do not belong together, drawn of the given ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frevl.diagnosis.curation.evidence import TextsOfImages
from frevl.runs.batches import EmbeddedPairs
from frevl.training.retrieval.hard_negatives import centred

__all__ = ["HeldLines"]

_DRAWN = 2  # wrong lines for every given one
_TRIES = 16
_AT_ONCE = 8192
_LIKEST = 10  # texts, one of which is drawn
_MOST_LINES, _MOST_TEXTS = 4_000, 20_000  # that the likest texts are looked for, and among


@dataclass(frozen=True)
class HeldLines:
    """Lines to draw from. A drawn text is of another group, none of the image's own, and not near to one of them.

    Attributes:
        pairs: All lines.
        groups: ``(n,)`` group of every line.
        right: ``(n,)`` bool, lines that are given as right.
        held: Rows of the lines to draw from.
        meaning: ``(texts, d)`` unit vectors, or None where it cannot be told which texts are near.
        near: Cosine from which a text counts as another wording of one.
    """

    pairs: EmbeddedPairs
    groups: Tensor
    right: Tensor
    held: Tensor
    meaning: Tensor | None
    near: float

    def draw_wrong(self, seed: int) -> tuple[Tensor, Tensor]:
        """Draw texts at random, two for each right line.

        Returns:
            Places among ``held`` of the image and of the text of each.
        """
        random, source = torch.Generator().manual_seed(seed), self._source
        rows = source.repeat(_DRAWN)
        columns = source[torch.randint(len(source), (len(rows),), generator=random)]
        wrong = self._is_wrong(rows, columns)
        for _ in range(_TRIES):
            again = (~wrong).nonzero()[:, 0]
            if len(again) == 0:
                break
            columns[again] = source[torch.randint(len(source), (len(again),), generator=random)]
            wrong[again] = self._is_wrong(rows[again], columns[again])
        return rows[wrong], columns[wrong]

    def draw_near(self, texts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Draw for each right line (4,000 at most) one of the ten texts that are most like its own.

        Args:
            texts: ``(texts, d)`` embeddings.
            seed: Of the choice.

        Returns:
            As `draw_wrong`; a line without ten other texts gets one of those that there are, or none.
        """
        random, source = torch.Generator().manual_seed(seed), self._source
        rows = source[torch.randperm(len(source), generator=random)[:_MOST_LINES]]
        offered = source[torch.randperm(len(source), generator=random)[:_MOST_TEXTS]]
        vectors = centred(texts)[self.pairs.text_rows[self.held]]
        chosen = []
        parts = rows.split(max(1, _AT_ONCE * 128 // max(1, len(offered))))  # type: ignore[no-untyped-call]
        for part in parts:
            cosines = vectors[part] @ vectors[offered].T
            likest = cosines.argsort(dim=1, descending=True)[:, : 4 * _LIKEST]
            flat = part[:, None].expand_as(likest).reshape(-1), offered[likest].reshape(-1)
            fits = self._is_wrong(*flat).reshape(likest.shape)
            fits &= fits.cumsum(dim=1) <= _LIKEST
            lots = torch.rand(fits.shape, generator=random).masked_fill(~fits, -1.0)
            best = lots.max(dim=1)
            place = offered[likest.gather(1, best.indices[:, None])[:, 0]]
            chosen.append(torch.stack([part, place])[:, best.values >= 0])
        both = torch.cat([torch.zeros(2, 0, dtype=torch.long), *chosen], dim=1)
        return both[0], both[1]

    @cached_property
    def _source(self) -> Tensor:
        return self.right[self.held].nonzero()[:, 0]

    @cached_property
    def _own(self) -> Tensor:
        """``(images, k)`` texts of every image, -1 where there are fewer."""
        image, text = self.pairs.image_rows[self.held], self.pairs.text_rows[self.held]
        return TextsOfImages.of(image[self._source], text[self._source], int(image.max()) + 1).rows

    def _is_wrong(self, rows: Tensor, columns: Tensor) -> Tensor:
        image, text = self.pairs.image_rows[self.held], self.pairs.text_rows[self.held]
        group = self.groups[self.held]
        wrong = (group[rows] != group[columns]) & (text[rows] != text[columns]) & (image[rows] != image[columns])
        for start in range(0, max(len(rows), 1), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            texts_of_it = self._own[image[rows[part]]]  # (n, k)
            wrong[part] &= (texts_of_it != text[columns[part]][:, None]).all(dim=1)
            if self.meaning is not None:
                cosines = (self.meaning[texts_of_it.clamp(min=0)] * self.meaning[text[columns[part]]][:, None]).sum(
                    dim=2
                )
                wrong[part] &= (cosines.masked_fill(texts_of_it < 0, -1.0) < self.near).all(dim=1)
        return wrong
