"""`rtobs demo`: a small notification platform that runs on one machine and explains itself.

The platform (`role.py`, `roles.py`) runs in processes of its own and speaks to the observer only through OTLP. The
observer (`run.py`) receives that telemetry, shows it live and tells the story at the end; it never looks into the
platform.
"""
