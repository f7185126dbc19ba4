"""Candidates for image restoration, judged by `zoomiqa_reward`.

>>> from restoration import classical_candidates
"""

from restoration.classical import classical_candidates, degrade_for_demo

__all__ = ["classical_candidates", "degrade_for_demo"]
