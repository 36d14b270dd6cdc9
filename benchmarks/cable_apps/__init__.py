"""The servers and clients that benchmarks/cable.py puts beside each other."""
