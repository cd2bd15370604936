"""An explorer on a copy of the synthetic store, for tests."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

from starlette.testclient import TestClient

from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.http.limits import Limits
from frevl.deployment.service.models import Service
from frevl.store.reader import Store

__all__ = ["copied", "explored"]


def copied(made, folder):
    """Copy store and images of the made world, so that they may change."""
    shutil.copytree(made.store.path, folder / "store")
    shutil.copytree(made.images, folder / "images")
    return SimpleNamespace(store=folder / "store", images=folder / "images")


@contextmanager
def explored(store, images=None, *, writable=True, scorers=None, encoder=None, trust=False, **more):
    """Explore a store: ``.http`` asks, ``.explorer`` answers."""
    service = Service(scorers or {}, store=Store.open(store), limits=Limits())
    explorer = Explorer(service, images=images, writable=writable, encoder=encoder, **more)
    with TestClient(
        Application(service, explorer=explorer, opens_explorer=True), raise_server_exceptions=trust
    ) as http:
        yield SimpleNamespace(http=http, explorer=explorer, service=service)
