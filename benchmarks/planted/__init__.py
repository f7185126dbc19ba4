"""Planted cases for the filters of the curation: answers of which it is known whether they are true, and a scripted
teacher that writes them over HTTP. Used by `benchmarks/curation.py`, `examples/curate.py` and the tests.
"""
