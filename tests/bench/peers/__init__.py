"""What others cost for the same hop, each in a virtual environment of its own: ``make bench-peers``, by hand only.

A peer's module runs there and imports nothing of the project but FLOOR; ``__main__`` makes the environments.
"""
