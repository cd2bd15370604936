"""Scores of published benchmarks: choice sets such as SugarCrepe and Winoground, WUPS of DAQUAR."""
