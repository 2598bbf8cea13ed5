"""A catalogue that takes 200 ms an answer and says how many it gave."""

import itertools
import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ASKED = itertools.count(1)


class Catalogue(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200, {"ok": True})
        time.sleep(0.2)
        return self.answer(200, {"path": self.path, "asked": next(ASKED)})

    def do_PUT(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self.answer(200, {"path": self.path, "written": True})

    def answer(self, status, value):
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    # The first process of a container gets no default handler: without this the pod's end would wait for a SIGKILL.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer(("127.0.0.1", 3000), Catalogue).serve_forever()
