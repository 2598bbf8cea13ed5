#!/usr/bin/env python3
"""What Redis costs: stored answers from memory and from Redis side by side; commands, bytes and Redis' own time for each
kind of request; and how busy Redis is under a mixed load. Prints each beside what it is to be, and exits with 1 if one is
not. `--weir NAME=PATH`, as often as wanted, measures other binaries in the same rounds.
"""
import argparse
import collections
import http.client
import pathlib
import re
import statistics
import subprocess
import sys
import time

import contestants as c
from harness import Bench, DEBIAN, Load, cpu_s, fail, fetch, free_port, install

HIT_MIN = 0.45
"""Hits from Redis a second, of those from memory."""
BUSY_MAX = 0.15
"""Share of a core that Redis takes for the mixed load."""
MIXED_RATE, MIXED_KEYS, PAUSE_MS = 20_000, 2000, 3
"""Its requests a second; the keys of those that Redis answers; and what a connection waits between two."""
TOOLS = ("wrk", "redis-server", "redis-cli", "taskset")

LIMITS = """[[limit]]
name = "lent"
key = ["ip"]
rate = "1000000/s"
burst = 1000000
[[limit]]
name = "central"
key = ["ip"]
rate = "1000000/s"
burst = 1000000
loans = false
"""
ROUTES = """[[route]]
name = "pages"
path = "/pages/{*rest}"
cache.ttl = "1h"
[[route]]
name = "lent"
path = "/lent/{*rest}"
cache.ttl = "1h"
limits = ["lent"]
[[route]]
name = "central"
path = "/central/{*rest}"
cache.ttl = "1h"
limits = ["central"]
[[route]]
name = "writes"
path = "/writes/{id}"
invalidates.tags = ["page:{id}"]
"""
KINDS = {
    "hit in memory": ("GET", "/pages/one", 0), "hit in memory, lent limit": ("GET", "/lent/one", 0),
    "hit in memory, limit asked of Redis": ("GET", "/central/one", 0),
    "hit in Redis": ("GET", "/pages/{}", 1), "miss": ("GET", "/pages/new-{}", 0), "write that invalidates": ("PUT", "/writes/{}", 0),
}
"""Method, path, and whether another pod has stored it before."""
HOUSEKEEPING = ("proof", "drain", "read_log", "roll", "hot", "hottest", "limit_tiers", "limit_repay", "limit_renew")
"""Scripts that no request sends."""
ONES, QUIET_S = 2000, 5
"""Requests of each kind that are counted; and how long nothing is asked, to know what goes on in any case."""


def counted(port):
    """What Redis has done so far: microseconds of CPU, bytes read, bytes written, reads."""
    said = subprocess.run(["redis-cli", "-p", str(port), "INFO", "everything"], capture_output=True, text=True, check=True).stdout
    pairs = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    cpu = float(pairs["used_cpu_user"]) + float(pairs["used_cpu_sys"])
    return [cpu * 1e6, *(int(pairs[f"total_{field}"]) for field in ("net_input_bytes", "net_output_bytes", "reads_processed"))]


def sent(*pods):
    """Commands and scripts that requests have sent so far."""
    pages = [fetch(pod.admin, "/metrics")[1].decode() for pod in pods]
    counts = [re.findall(r'^weir_redis_commands_total\{command="(\w+)",result="ok"\} (\d+)', page, re.M) for page in pages]
    return sum(int(number) for page in counts for name, number in page if name not in HOUSEKEEPING)


def one_by_one(port, method, path):
    """So that each has its whole cost."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for nth in range(ONES):
        # The host is part of a key, and its port would be the pod's own.
        connection.request(method, path.format(nth), headers={"Host": "compare.example"})
        answer = connection.getresponse()
        answer.read()
        if answer.status >= 400:
            fail(f"{method} {path}: {answer.status}")


def kinds(bench, origin, binary):
    """A table of what each kind of request costs Redis."""
    redis = c.Redis(bench).port
    pods = [c.weir(bench, origin, ROUTES, redis=redis, tables=LIMITS, binary=binary) for _ in range(2)]
    for pod in pods:
        for kind in ("pages", "lent", "central"):
            one_by_one(pod.port, "GET", f"/{kind}/one")
    one_by_one(pods[1].port, "GET", "/pages/{}")
    time.sleep(1)
    # Proofs, subscriptions and the question itself go on without requests.
    idle = counted(redis)
    time.sleep(QUIET_S)
    idle = [(after - before) / QUIET_S for after, before in zip(counted(redis), idle)]
    print("| request | commands | bytes to Redis | bytes from it | us of Redis |\n|---|---|---|---|---|")
    for title, (method, path, _) in KINDS.items():
        before, asked, began = counted(redis), sent(pods[0]), time.monotonic()
        one_by_one(pods[0].port, method, path)
        time.sleep(0.2)
        took = time.monotonic() - began
        cost = [(after - one - rest * took) / ONES for after, one, rest in zip(counted(redis), before, idle)]
        used_us, to, back, _ = (max(0.0, value) for value in cost)
        print(f"| {title} | {(sent(pods[0]) - asked) / ONES:.2f} | {to:,.0f} | {back:,.0f} | {used_us:.1f} |")
    print()
    bench.end(keep=1)


def hits(bench, origin, binaries, rounds, seconds):
    """From memory and from Redis, in turn."""
    ways = {}
    for name, path in binaries.items():
        redis = c.Redis(bench).port
        for title, more in (("memory", ""), ("Redis", '[cache]\nmemory = "0"\n')):
            running = c.weir(bench, origin, 'cache.ttl = "1h"', redis=redis, tables=more, binary=path)
            for key in range(c.KEYS):
                fetch(running.port, f"/{key}")
            ways[name, title] = running, redis
    script = bench.write("keys.lua", f"""local n = 0
request = function() n = n + 1 return wrk.format("GET", "/" .. (n % {c.KEYS})) end
""")
    results, depth = collections.defaultdict(list), {}
    turns = list(ways)
    for nth in range(rounds + 1):
        for turn in turns[nth % len(turns):] + turns[:nth % len(turns)]:
            running, redis = ways[turn]
            before, asked = counted(redis), sent(running)
            load = Load(bench.load_core, running.port, "/", seconds if nth else 1, script)
            if load.errors or load.refused:
                fail(f"{turn}: {load.errors} errors, {load.refused} refused")
            if nth:
                results[turn].append(load.rate)
                trips, reads = sent(running) - asked, counted(redis)[-1] - before[-1]
                depth[turn] = trips / load.requests, trips / max(1, reads)
    is_less = False
    for name in binaries:
        memory, shared = results[name, "memory"], results[name, "Redis"]
        ratio = statistics.median(one / other for one, other in zip(shared, memory))
        trips, piped = depth[name, "Redis"]
        is_less |= ratio < HIT_MIN
        print(f"{name}: hits from memory {statistics.median(memory):,.0f} a second ({min(memory):,.0f} to {max(memory):,.0f}), from Redis "
              f"{statistics.median(shared):,.0f} ({min(shared):,.0f} to {max(shared):,.0f}): {ratio:.3f}, to be {HIT_MIN} or more; "
              f"{trips:.2f} commands a hit, {piped:.1f} commands read by Redis at once")
    for name in list(binaries)[1:]:
        first = next(iter(binaries))
        for title in ("memory", "Redis"):
            each = [one / other for one, other in zip(results[name, title], results[first, title])]
            low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
            print(f"{name} / {first}: {title}: {middle:.3f} ({low:.3f} to {high:.3f})")
    bench.end(keep=1)
    return is_less


def mixed(bench, origin, binary, seconds):
    """How busy Redis is while memory answers nine of ten requests, half of them with a limit, and Redis or the service the
    others."""
    redis = c.Redis(bench)
    # A memory so small that what is asked for once a round is not in it any more.
    running = c.weir(bench, origin, ROUTES, redis=redis.port, tables=LIMITS + '[cache]\nmemory = "1MiB"\n', binary=binary)
    script = bench.write("mixed.lua", f"""
local n = 0
delay = function() return {PAUSE_MS} end
request = function()
  n = n + 1
  if n % 10 > 0 then return wrk.format("GET", (n % 2 == 0 and "/pages/hot-" or "/lent/hot-") .. (n % 50)) end
  if n % 20 > 0 then return wrk.format("GET", "/pages/cold-" .. (n % {MIXED_KEYS * 20})) end
  return wrk.format("GET", "/pages/new-" .. n .. "-" .. {time.monotonic_ns()})
end
""")
    Load(bench.load_core, running.port, "/", 2, script)
    used, asked, began = cpu_s(redis.pid), sent(running), time.monotonic()
    load = Load(bench.load_core, running.port, "/", seconds, script)
    share = (cpu_s(redis.pid) - used) / (time.monotonic() - began)
    each = (sent(running) - asked) / load.requests
    print(f"mixed load: {load.rate:,.0f} requests a second, {each:.2f} commands each: Redis takes {share:.1%} of a core, "
          f"so {share / load.rate * MIXED_RATE:.1%} at {MIXED_RATE:,} a second, to be {BUSY_MAX:.0%} or less")
    bench.end(keep=1)
    return share / load.rate * MIXED_RATE > BUSY_MAX


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="of each way in a round")
    parser.add_argument("--weir", action="append", default=[], metavar="NAME=PATH", help="a binary to measure; the last is looked at closely")
    options = parser.parse_args()
    install({tool: DEBIAN[tool] for tool in TOOLS})
    with Bench() as bench:
        binaries = dict(one.split("=", 1) for one in options.weir) or {"weir": str(bench.bin / "weir")}
        binaries = {name: pathlib.Path(path).resolve() for name, path in binaries.items()}
        origin = free_port()
        bench.origin(origin)
        last = list(binaries.values())[-1]
        kinds(bench, origin, last)
        is_less = hits(bench, origin, binaries, options.rounds, options.seconds)
        is_less |= mixed(bench, origin, last, options.seconds * 5)
    sys.exit(is_less)


if __name__ == "__main__":
    main()
