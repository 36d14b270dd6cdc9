"""Ours beside the peers, in one run. See README.md."""
