#!/usr/bin/env python3
"""What Weir takes of a pod: time until it is ready, memory at rest, memory with 256 MiB of 1 KiB objects.

Prints each beside what it may be, and exits with 1 if one is more.
"""
import http.client
import re
import statistics
import sys
import time

from harness import Bench, Load, fail, fetch, free_port, install, memory_mib

STARTS = 11
READY_S_MAX = 10
CACHE_MIB = 256
OBJECTS = CACHE_MIB << 10
"""So many bodies of 1 KiB are CACHE_MIB; a cache of that size holds fewer, since an entry weighs more than its body."""
PASSES = 2
"""The second finds what the first was cut off from, and churns a cache that is full."""
FILL_S_MAX = 300

FILL = f"""
local at
function init(args) at = tonumber(args[1]) end
function request()
  at = at % {OBJECTS} + 1
  return wrk.format("GET", "/o/" .. at)
end
"""


def start(bench, origin, cache_mib=CACHE_MIB):
    """A Weir that is ready, its ports, and the milliseconds from its exec."""
    port, admin = free_port(), free_port()
    config = bench.write("weir.toml", f"""
[server]
listen = "127.0.0.1:{port}"
[admin]
listen = "127.0.0.1:{admin}"
[log]
access = false
[upstream]
url = "http://127.0.0.1:{origin}"
[cache]
memory = "{cache_mib}MiB"
[[route]]
name = "all"
path = "/{{*path}}"
cache.enabled = true
""")
    begun = time.monotonic()
    pid = bench.spawn(None, "weir", bench.bin / "weir", "run", "--config", config)
    while not is_ready(admin):
        if time.monotonic() - begun > READY_S_MAX:
            fail(f"weir is not ready; it said:\n{(bench.dir / 'weir.log').read_text()[-2000:]}")
        time.sleep(0.001)
    return pid, port, admin, (time.monotonic() - begun) * 1000


def is_ready(admin):
    try:
        return fetch(admin, "/readyz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def metric(admin, name):
    return int(float(re.search(rf"^{name} (\S+)$", fetch(admin, "/metrics")[1].decode(), re.M).group(1)))


def fill(bench, port):
    """Asks for every object PASSES times."""
    script, asked, until = bench.write("fill.lua", FILL), 0, time.monotonic() + FILL_S_MAX
    while asked < PASSES * OBJECTS:
        if time.monotonic() > until:
            fail(f"weir answered {asked} of {PASSES * OBJECTS} requests in {FILL_S_MAX} s")
        asked += Load(bench.load_core, port, "/", 2, script, asked % OBJECTS).requests


def filled(bench, origin, cache_mib):
    """Resident MiB and entries after a fill of a cache of `cache_mib`."""
    keep = len(bench.started)
    pid, port, admin, _ = start(bench, origin, cache_mib)
    fill(bench, port)
    resident, entries = memory_mib(pid, kind="Rss"), metric(admin, "weir_cache_entries")
    bench.end(keep)
    return resident, entries


def main():
    install(["wrk", "taskset"])
    misses = []

    def report(what, value, most, unit, detail):
        misses.extend([what] if value > most else [])
        print(f"{what}: {value:.1f} {unit} (at most {most:.1f}; {detail})", flush=True)

    with Bench() as bench:
        origin = free_port()
        bench.origin(origin)
        keep = len(bench.started)
        ready_ms, idle_mib = [], []
        for _ in range(STARTS):
            pid, _, _, ms = start(bench, origin)
            ready_ms.append(ms)
            time.sleep(0.2)
            idle_mib.append(memory_mib(pid, kind="Rss"))
            bench.end(keep)
        report("from exec to ready", statistics.median(ready_ms), 100, "ms", f"{STARTS} starts, the slowest {max(ready_ms):.1f}")
        report("resident at rest", max(idle_mib), 20, "MiB", f"the most of {STARTS} starts")
        resident, entries = filled(bench, origin, CACHE_MIB)
        report("resident with a full cache", resident, 1.35 * CACHE_MIB, "MiB",
               f"{resident / CACHE_MIB:.2f} times {CACHE_MIB} MiB, {entries} objects of 1 KiB")
        resident, entries = filled(bench, origin, 2 * CACHE_MIB)
        print(f"for comparison: {resident:.0f} MiB for {entries} objects, {resident * 1024 / entries:.2f} KiB each")
    sys.exit(f"too much: {', '.join(misses)}" if misses else 0)


if __name__ == "__main__":
    main()
