"""The parts of ``bench/accelerator.py``, a file per theme."""
