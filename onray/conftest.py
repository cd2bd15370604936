"""What a test with Ray gets: a cluster of several nodes, all on this machine, and work to do on it.

Not part of plain ``pytest``, because it wants the extra ``ray``: ``pytest onray`` runs them.
"""

import os
import secrets
import signal
import subprocess
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# Before Ray is imported: no report, and a secret of this run alone.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0", RAY_AUTH_TOKEN=secrets.token_hex(32)
)
# The nodes run this source, and the work of these tests.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1] / "src"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)

OBJECTS = 80 << 20  # bytes that a node keeps; Ray takes no less


@contextmanager
def forks_allowed():
    """Leave out the warning of Lance: Ray starts its processes by a fork that at once becomes another program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        yield


def children(parent):
    """Return the numbers of the processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def processes_of(node):
    """Return the processes that make up a node."""
    return [one.process for processes in node.all_processes.values() for one in processes]


def wait_for(processes):
    """Wait for processes that were told to end: Python warns of those that it forgets before."""
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)


class Nodes:
    """A cluster on this machine: a head without processors, and nodes that come and go."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": OBJECTS, "include_dashboard": False}
        with forks_allowed():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self.nodes = []

    def add(self, count=1, **environment):
        for _ in range(count):
            own = {"NODE": str(len(self.nodes)), **environment}
            with forks_allowed():
                node = self._cluster.add_node(wait=False, num_cpus=1, object_store_memory=OBJECTS, env_vars=own)
            self.nodes.append(node)
        self._cluster.wait_for_nodes()
        return self.nodes[-1]

    def of(self, actor):
        """Return the node on which an actor runs."""
        from ray._private import state

        found = state.actors(actor._ray_actor_id.hex())["Address"]["NodeID"]
        return next(node for node in self.nodes if node.node_id == found)

    def kill(self, node):
        """End all processes of a node at once, as if its machine had lost power."""
        started = processes_of(node)
        workers = [pid for parent in started for pid in children(parent.pid)]
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        for pid in workers:  # Ray leaves them to end by themselves, and meanwhile they may finish a block
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(started)

    def kill_head(self):
        """End all processes of the head at once."""
        started = processes_of(self._cluster.head_node)
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        wait_for(started)

    def shutdown(self):
        started = [process for node in (self._cluster.head_node, *self.nodes) for process in processes_of(node)]
        self._cluster.shutdown()
        wait_for(started)


@pytest.fixture(scope="session")
def nodes():
    """Four nodes of one processor each."""
    cluster = Nodes()
    cluster.add(4)
    yield cluster
    cluster.shutdown()
