"""Trainings that the page starts: ``frevl train`` as a process of its own, kept in ``STORE/runs``."""
