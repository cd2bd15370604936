"""Trainings started from the page: ``frevl train`` in a separate process, kept in ``STORE/runs``."""
