"""Nodes of a cluster, without a cluster: another frevl is refused by name, and a silent head ends the wait."""

import socket

import pytest

from frevl.errors import FrevlError
from frevl.store.many_nodes import head as head_module
from frevl.store.many_nodes.connection import refuse_other_code, versions_here
from frevl.store.many_nodes.head import Head


@pytest.mark.parametrize("there", [{"frevl": "9.9 (0123456789ab)"}, {}])
def test_a_node_with_another_frevl_is_refused_by_name(there):
    refuse_other_code("node1", versions_here())
    with pytest.raises(
        FrevlError, match=r"the node node1 runs frevl (9\.9 \(0123456789ab\)|unknown), this process runs "
    ):
        refuse_other_code("node1", there)


class Ray:
    """What a head's watch asks of Ray."""

    def __init__(self, address):
        self.gcs_address = address

    def get_runtime_context(self):
        return self

    def wait(self, ones, **_):
        return [], ones


@pytest.mark.slow
def test_a_head_that_does_not_answer_ends_the_wait(monkeypatch):
    monkeypatch.setattr(head_module, "_BETWEEN", 0.01)
    monkeypatch.setattr(head_module, "_PATIENCE", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        head = Head(Ray(address))
        assert head.wait(["one"], timeout=0.2) == ([], ["one"])
        assert not head.is_gone
    with pytest.raises(FrevlError, match=rf"the head of the cluster, {address}, has not answered for"):
        head.wait(["one"])
    assert head.is_gone
