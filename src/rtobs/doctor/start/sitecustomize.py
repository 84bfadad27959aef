"""Starts the probe in every interpreter that has this folder on its path, then what it stands in front of."""

import contextlib
import importlib
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  as little as can be is imported here
sys.path[:] = [place for place in sys.path if os.path.abspath(place) != _HERE]  # noqa: PTH100  as above
_ours = sys.modules.pop(__name__)
try:
    from rtobs.doctor.probe import start

    start()
except Exception as error:  # noqa: BLE001  the application is to run whatever is wrong with us
    sys.stderr.write(f"rtobs doctor: the probe could not start: {type(error).__name__}: {error}\n")
with contextlib.suppress(ImportError):
    importlib.import_module(__name__)  # the environment's own
sys.modules.setdefault(__name__, _ours)
