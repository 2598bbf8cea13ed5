"""Reads streams of requests with h11: on standard input, each behind its length as four bytes; a JSON line for each."""
import hashlib
import json
import sys

import h11


def requests(stream):
    found, error = [], None
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(stream)
    connection.receive_data(b"")
    current = body = None
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                hosts = [value for name, value in event.headers if name == b"host"]
                current = {
                    "method": event.method.decode("latin1"),
                    "target": event.target.decode("latin1"),
                    "host": b"|".join(hosts).decode("latin1"),
                }
                body = hashlib.sha1()
            elif isinstance(event, h11.Data):
                body.update(event.data)
            elif isinstance(event, h11.EndOfMessage):
                current["body"] = body.hexdigest()
                found.append(current)
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is h11.MUST_CLOSE:
                    break
                connection.start_next_cycle()
            else:
                break
    except h11.RemoteProtocolError as problem:
        error = str(problem)
    return {"requests": found, "error": error}


while True:
    length = sys.stdin.buffer.read(4)
    if len(length) < 4:
        break
    answer = requests(sys.stdin.buffer.read(int.from_bytes(length, "big")))
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
