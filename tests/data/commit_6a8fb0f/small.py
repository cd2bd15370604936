"""`python small.py train ...` is `frevl train ...` with smaller networks, so that the runs take little space.

Fusion `tiny`: width 32, 2 blocks, 4 heads; `dual`: 32 numbers per vector and member, 64 inside. The sizes are in each
run, so a reader needs to know nothing of this. For frevl as of commit 6a8fb0f.
"""

import functools
import sys

import frevl.matching
import frevl.mining
from frevl.cli import main
from frevl.fusion import PRESETS

PRESETS["tiny"].update({"width": 32, "layers": 2, "heads": 4, "ffn_width": 64, "head_width": 32})
small = functools.partial(frevl.matching.fit_members, width=32, hidden=64)
frevl.matching.fit_members = small
frevl.mining.fit_members = small
sys.argv[0] = "frevl"
main()
