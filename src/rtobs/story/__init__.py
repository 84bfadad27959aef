"""One journey told from its spans: where the message was, how long it waited, who tried what, and how it ended.

Pure: text and parsed JSON in, a story out. Must not know files, networks or terminals; ``rtobs story`` brings those.
"""
