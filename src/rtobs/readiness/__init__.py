"""Whether code is ready to be relied on: what it opens against what is promised, and what watching it costs.

If it cannot be monitored it is not ready. ``rtobs check`` is the command.
"""
