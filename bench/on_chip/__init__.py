"""The parts of ``bench/accelerator.py``, a file a theme."""
