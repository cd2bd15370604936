"""Workers on the nodes of a Ray cluster: plain actors that join each other and call the function."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import PurePath
from types import ModuleType
from typing import Any

from frevl.errors import FrevlError, TrainingError, UsageError
from frevl.machine import grant_processors
from frevl.store.many_nodes.connection import connected, refuse_other_code, versions_here
from frevl.store.many_nodes.head import Head
from frevl.store.remote.address import place_of
from frevl.training.workers.distributed import WorkerEndedError, error_of, joined
from frevl.training.workers.team import Place

__all__ = ["on_ray"]

_log = logging.getLogger("frevl")
_MOST_DEATHS = 3  # worker deaths in one call; after each, training continues from the last complete epoch
_PLACES = ("store", "pairs", "dev", "run", "initialise_from")  # arguments that are paths, unless they are data
_PATIENCE = 300.0  # seconds for all workers to start: each loads PyTorch


class _Worker:
    """The actor that runs on a node."""

    def greet(self) -> tuple[str, str, dict[str, str]]:
        """Return the node, its address, and the versions running there."""
        import ray

        grant_processors(1)
        return socket.gethostname(), ray.util.get_node_ip_address(), versions_here()

    def host(self) -> int:
        """Host the store through which the workers meet; return its port."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        self._store: Any = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)  # noqa: S104 - other nodes ask
        port: int = self._store.port
        return port

    def work(
        self, where: tuple[str, int], place: Place, device: str, work: Callable[..., Any], arguments: Mapping[str, Any]
    ) -> tuple[str, Any]:
        """Take part; return the result of worker 0, or the kind of an error and its message."""
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        try:
            store = self._store if place.rank == 0 else TCPStore(*where, is_master=False)
            with joined(store, place, device):
                found = work(**arguments)
        except FrevlError as error:
            return type(error).__name__, str(error)
        return "", found if place.rank == 0 else None


def on_ray(
    work: Callable[..., Any], arguments: Mapping[str, Any], *, workers: int | None, address: str, device: str
) -> Any:
    """Call a function in workers of a cluster, and return what worker 0 returns.

    Either all workers start together or none does, on as few nodes as possible, with one core each and, for ``cuda``,
    one accelerator each. If one dies or loses its node, all are restarted, and training continues from the last
    complete epoch.

    Args:
        work: A module-level function; when called, it finds itself one of several workers.
        arguments: Arguments of the call. Store, pairs, run and the like must be paths with the same meaning on all
            nodes; relative paths refer to this process.
        workers: Number of workers.
        address: See `frevl.store.many_nodes.connection.connected`.
        device: Device of the training.

    Raises:
        UsageError: No number of workers is given, or the cluster is too small.
        MissingExtraError: Ray is not installed.
        FrevlError: A worker failed; a node runs another version of frevl; or workers die repeatedly.
    """
    if workers is None:
        raise UsageError("--ray needs --workers N, the number of processes that share every step")
    accelerators = 1 if device.startswith("cuda") else 0
    arguments = {**_without_relative_paths(arguments), "progress": False}
    with connected(address) as ray:
        there = ray.cluster_resources()
        for kind, needed in (("CPU", workers), ("GPU", accelerators * workers)):
            if there.get(kind, 0) < needed:
                raise UsageError(
                    f"--workers: found {workers}, but the cluster has {there.get(kind, 0):.0f} "
                    f"{'processors' if kind == 'CPU' else 'accelerators'}; use fewer, or add nodes"
                )
        for deaths in range(1, _MOST_DEATHS + 1):
            try:
                return _once(ray, work, arguments, workers, accelerators, device)
            except (ray.exceptions.RayActorError, WorkerEndedError) as error:
                reason = " ".join(str(error).split())[:200]
                if deaths < _MOST_DEATHS:
                    _log.warning("frevl: a worker has ended (%s); all continue from the last complete epoch", reason)
    raise TrainingError(
        f"--ray: workers have ended {_MOST_DEATHS} times, the last time with: {reason}; every complete epoch is kept: "
        "run the same command again to continue"
    )


def _without_relative_paths(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Make all paths absolute, because workers run in the folder in which their node was started."""
    return {
        name: place_of(value).absolute() if name in _PLACES and isinstance(value, str | PurePath) else value
        for name, value in arguments.items()
    }


def _once(
    ray: ModuleType,
    work: Callable[..., Any],
    arguments: Mapping[str, Any],
    workers: int,
    accelerators: int,
    device: str,
) -> Any:
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    head = Head(ray)
    group = placement_group([{"CPU": 1, **({"GPU": 1} if accelerators else {})}] * workers, strategy="PACK")
    actors: list[Any] = []
    try:
        placed_all = group.ready()
        if not head.wait([placed_all], _PATIENCE)[0]:
            raise TrainingError(
                f"--ray: the cluster had no room for {workers} workers at once within {_PATIENCE:.0f} s; wait for "
                "other jobs, or use fewer"
            )
        ray.get(placed_all)
        remote = ray.remote(num_cpus=1, num_gpus=accelerators, max_restarts=0, max_concurrency=1)(_Worker)
        placed = remote.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
        actors += [placed.remote() for _ in range(workers)]
        greeted = [actor.greet.remote() for actor in actors]
        head.wait(greeted, _PATIENCE, len(greeted))
        greetings = ray.get(greeted, timeout=1.0)
        for node, _, versions in greetings:
            refuse_other_code(node, versions)
        # With an accelerator each, Ray shows a worker only its own, as the first one.
        nodes = [ip for _, ip, _ in greetings]
        where = (nodes[0], ray.get(actors[0].host.remote()))
        started = [
            actor.work.remote(where, _place(rank, nodes, accelerators), device, work, arguments)
            for rank, actor in enumerate(actors)
        ]
        left, answers = list(started), {}
        while left:
            done, left = head.wait(left)
            answers[done[0]] = ray.get(done[0])
            if answers[done[0]][0] and left:  # others learn why it failed; a worker that died is silent
                more, left = head.wait(left, 30.0, len(left))
                answers |= {one: ray.get(one) for one in more}
                break
        failed = [answers[one] for one in started if one in answers and answers[one][0]]
        if failed:
            # Report the original error, not its consequences: a worker that lost another knows no more than that.
            raise error_of(*next((one for one in failed if one[0] != WorkerEndedError.__name__), failed[0]))
        return answers[started[0]][1]
    except ray.exceptions.RayTaskError as error:
        raise TrainingError(f"A worker failed: {' '.join(str(error.cause).split()):.300}") from error
    finally:
        with suppress(ray.exceptions.RayError):
            for actor in actors:
                ray.kill(actor)
            if not head.is_gone:  # otherwise it would be queried for a minute
                remove_placement_group(group)


def _place(rank: int, nodes: list[str], accelerators: int) -> Place:
    local = nodes[:rank].count(nodes[rank])
    return Place(rank, len(nodes), 0 if accelerators else local, 1 if accelerators else nodes.count(nodes[rank]))
