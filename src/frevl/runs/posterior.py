"""The posterior of a run's last layer: fitted on stored embeddings, saved next to the weights, and used for doubt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from frevl.devices import in_steps
from frevl.errors import RunError, UsageError
from frevl.files import replace_file
from frevl.models.classification.posterior import known_directions, left_over, scatter_of
from frevl.models.hub import POSTERIOR_FILE, weights_digest
from frevl.models.interface import PairNetwork
from frevl.runs.batches import EmbeddedPairs, copied_to

__all__ = ["Posterior", "carried_over", "fit_posterior", "load_posterior", "open_doubt", "save_posterior"]

_ABOUT = "posterior"  # metadata key in the file
_AT_ONCE = 1_024
_MOST_WORK = 4e10  # multiplications for a scatter matrix, about a second; more rows are sampled evenly
_WIDEST = 4_096  # maximum input width; the scatter matrix of wider ones would not fit in memory
_PROBES = 8
_SLACK = 1e-4  # tolerance for the length of a direction, which is below 1


@dataclass(frozen=True)
class Posterior:
    """The directions in which the inputs of a network's last layer are known from training, by side.

    Attributes:
        directions: ``(r, width)`` float32 from `frevl.models.classification.posterior.known_directions`, by the names
            of `PairNetwork.last_layer_inputs`.
    """

    directions: dict[str, Tensor]

    def doubt(self, network: PairNetwork, pairs: EmbeddedPairs) -> Tensor:
        """Return the ``(n,)`` float32 doubt of pairs.

        0 is fully known, 1 unlike anything in training; for one side, after ``n`` identical inputs the doubt is ``1 /
        (1 + n)``. See `frevl.models.classification.posterior.pair_doubt` for two sides, and
        `frevl.models.ensemble.Average.doubt` for averages.

        Args:
            network: The network it belongs to, in float32; the posterior stays on the CPU.
            pairs: The embedded pairs.
        """
        found = [torch.zeros(0)]
        device = next(network.parameters(), found[0]).device

        def doubt(rows: slice) -> Tensor:
            batch = pairs.inputs(pairs.image_rows[rows], pairs.text_rows[rows], device)
            inputs = network.last_layer_inputs(*batch) or {}
            parts = {side: left_over(inputs[side].cpu(), own) for side, own in self.directions.items()}
            return network.doubt(parts, *batch)

        with torch.inference_mode():
            for rows, part in in_steps(len(pairs), _AT_ONCE, device, doubt) if len(pairs) else ():
                found.append(part)
                if rows.stop % (64 * _AT_ONCE) == 0:
                    pairs.release()
            return torch.cat(found)


def fit_posterior(network: PairNetwork, pairs: EmbeddedPairs, *, stand_for: float = 1.0) -> Posterior | None:
    """Fit the posterior of a network's last layer, in closed form and one pass.

    Args:
        network: A trained network on the CPU.
        pairs: Its training pairs; for the image side each image counts once, for the text side each text.
        stand_for: Number of pairs that each of these represents, if they are a sample.

    Returns:
        The posterior; None if the network has no such layer, or its inputs are too wide.
    """
    if not len(pairs):
        return None
    network.eval()  # evaluation mode: no dropout
    with torch.inference_mode():
        first = network.last_layer_inputs(*pairs.inputs(pairs.image_rows[:1], pairs.text_rows[:1]))
        if first is None or max(one.shape[1] for one in first.values()) > _WIDEST:
            return None
        widths = {side: one.shape[1] for side, one in first.items()}
        found: dict[str, Tensor] = {}
        for kind in dict.fromkeys(_kind(side) for side in widths):
            own = {side: width for side, width in widths.items() if _kind(side) == kind}
            found |= _scatters(network, _of_side(pairs, kind), own)
        if stand_for != 1:
            found = {side: one * stand_for for side, one in found.items()}
        return Posterior({side: known_directions(found[side]) for side in widths})


def _kind(side: str) -> str:
    """Return ``image``, ``text`` or ``pair``, without the number of a member."""
    return side.rpartition(".")[2]


def _of_side(pairs: EmbeddedPairs, side: str) -> EmbeddedPairs:
    """Return pairs in which every item of one side occurs once; for pairs, all of them."""
    if side == "pair":
        return pairs
    own = pairs.image_rows if side == "image" else pairs.text_rows
    order = torch.sort(own, stable=True).indices
    new = torch.ones(len(own), dtype=torch.bool)
    new[1:] = own[order][1:] != own[order][:-1]
    return pairs.select(order[new].sort().values)


def _scatters(network: PairNetwork, pairs: EmbeddedPairs, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the scatter of the inputs of some sides, by side."""
    whole = len(pairs)
    most = max(2 * max(widths.values()), int(_MOST_WORK / sum(width**2 for width in widths.values())))
    if whole > most:
        pairs = pairs.select(torch.arange(most) * whole // most)
    found: dict[str, Tensor] = {}
    for batch in pairs.batches(_AT_ONCE):
        inputs = network.last_layer_inputs(*batch) or {}
        for side in widths:
            part = scatter_of([inputs[side]])
            found[side] = found[side].add_(part) if side in found else part
    return {side: one * (whole / len(pairs)) for side, one in found.items()}


def save_posterior(posterior: Posterior | None, folder: Path) -> None:
    """Write the posterior next to its weights; without one, remove the file of any other weights.

    Raises:
        OSError: The folder cannot be written, or the weights are missing.
    """
    file = folder / POSTERIOR_FILE
    if posterior is None:
        if file.is_file() and not _is_of_these_weights(file, folder):
            file.unlink()
        return
    # One entry, because the library writes several in an order that varies between runs.
    about = {_ABOUT: json.dumps({"format": 1, "weights": weights_digest(folder)}, sort_keys=True)}
    tensors = {side: own.contiguous() for side, own in posterior.directions.items()}
    replace_file(file, lambda path: save_file(tensors, path, metadata=about))


def load_posterior(network: PairNetwork, folder: Path, *, image_dim: int, text_dim: int) -> Posterior:
    """Read the posterior of a run.

    Args:
        network: Network of the run.
        folder: Folder of the run.
        image_dim: Width of an image embedding.
        text_dim: Width of a text embedding.

    Raises:
        UsageError: The run has no posterior.
        RunError: The posterior is damaged, or belongs to other weights.
    """
    file = folder / POSTERIOR_FILE
    if not file.is_file():
        raise UsageError(
            f"{folder}: the run cannot measure doubt: that needs training examples, more than one answer, and a run of "
            "this version or later; train again, or leave out the doubt"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            about = _about(opened.metadata())
            directions = {side: opened.get_tensor(side) for side in opened.keys()}  # noqa: SIM118  # it is no mapping
        expected = network.last_layer_inputs(torch.zeros(1, image_dim), torch.zeros(1, text_dim)) or {}
        problem = _problem(about, directions, expected, folder)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())[:200]
    if problem:
        raise RunError(f"{folder}: the doubt of the run is damaged ('{POSTERIOR_FILE}': {problem}); train again")
    return Posterior(directions)


def open_doubt(
    network: PairNetwork, folder: Path, *, image_dim: int, text_dim: int, device: str
) -> Callable[[EmbeddedPairs], Tensor]:
    """Return what measures doubt on a device: `Posterior.doubt` with the run's posterior and a network in float32.

    Args and errors as in `load_posterior`; the network stays on the CPU.
    """
    posterior = load_posterior(network, folder, image_dim=image_dim, text_dim=text_dim)
    return partial(posterior.doubt, copied_to(network, device))


def carried_over(
    former: PairNetwork, folder: Path, network: PairNetwork, *, image_dim: int, text_dim: int
) -> Posterior | None:
    """Return a run's posterior for a network derived from its own, if the input of the last layer is unchanged.

    Args:
        former: The run's network.
        folder: Folder of the run.
        network: The network derived from it.
        image_dim: Width of an image embedding.
        text_dim: Width of a text embedding.

    Raises:
        RunError: The run's posterior is damaged.
    """
    if not (folder / POSTERIOR_FILE).is_file():
        return None
    posterior = load_posterior(former, folder, image_dim=image_dim, text_dim=text_dim)
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(_PROBES, dim, generator=generator) for dim in (image_dim, text_dim)]
    with torch.inference_mode():
        before, now = (one.last_layer_inputs(*probes) or {} for one in (former, network))
    same = before.keys() == now.keys() and all(torch.allclose(before[side], now[side], atol=1e-5) for side in before)
    return posterior if same else None


def _problem(
    about: Mapping[str, object], directions: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path
) -> str:
    """Return what is wrong with a file; an empty string if nothing is."""
    if about.get("format") != 1:
        return f"expected format 1, found {str(about.get('format'))[:20]}"
    if set(directions) != set(expected):
        return f"expected {' and '.join(sorted(expected)) or 'nothing'}, found {' and '.join(sorted(directions))[:80]}"
    for side, own in directions.items():
        width = expected[side].shape[1]
        if own.dtype != torch.float32 or own.dim() != 2 or own.shape[1] != width or len(own) > width:
            return f"expected rows of {width:,} float32 of the {side}, found {own.dtype} {tuple(own.shape)}"
        if not bool(own.isfinite().all()) or bool((own.square().sum(dim=1) > 1 + _SLACK).any()):
            return f"the rows of the {side} are not directions"
    if about.get("weights") != weights_digest(folder):
        return "it belongs to other weights"
    return ""


def _is_of_these_weights(file: Path, folder: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            return bool(_about(opened.metadata()).get("weights") == weights_digest(folder))
    except (SafetensorError, ValueError):
        return False


def _about(metadata: Mapping[str, str] | None) -> dict[str, object]:
    """Return the file's metadata.

    Raises:
        ValueError: It has no such metadata.
    """
    about = json.loads((metadata or {}).get(_ABOUT, "{}"))
    if not isinstance(about, dict):
        raise ValueError(f"expected an object in '{_ABOUT}', found {about!s:.40}")
    return about
