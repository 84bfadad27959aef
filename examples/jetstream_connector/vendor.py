"""A vendor: answers each ticket's tries with statuses of your choice. Run it with `python vendor.py 503 201`."""

import contextlib
import os
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATUSES = [int(word) for word in sys.argv[1:]] or [201]
tries: Counter[str] = Counter()


class Tickets(BaseHTTPRequestHandler):
    """Says what it was asked, and answers; the last status is for all further tries."""

    def do_POST(self) -> None:
        """Take one try."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        status = STATUSES[min(tries[body], len(STATUSES) - 1)]
        tries[body] += 1
        print(f"{body} try {tries[body]} -> {status}", flush=True)
        self.send_response(status)
        if status == 429:
            self.send_header("retry-after", "1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing else."""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Tickets).serve_forever()
