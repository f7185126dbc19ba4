"""Search beyond best-of-N at the same cost: noise near the best noise, and the best parts of several candidates.

`search_noise` (`noise_search.py`) draws N candidates like best-of-N, but after the first round near the best one so
far. `fuse` (`fusion.py`) takes best-of-N's candidates and blends them region by region (`blending.py`). docs/search.md
says what to expect.
"""

from restoration.search.fusion import Fused, fuse, fuse_candidates
from restoration.search.noise_search import search_noise

__all__ = ["Fused", "fuse", "fuse_candidates", "search_noise"]
