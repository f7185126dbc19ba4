"""Zoom-IQA inside other people's libraries. One module a host; importing this package imports none of them."""
