"""The service: HTTP routes, the model worker, the web page."""

from __future__ import annotations
