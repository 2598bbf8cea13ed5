#!/usr/bin/env python3
"""Weir side by side with nginx, HAProxy, Varnish and two bare hyper programs, in one run.

The proxy has one core, the load (and what stands behind the proxy) the other. Rounds alternate over the contestants, so
that a noisy machine is noisy for all of them. Every round proves that it measured what it says: the origin counts what
reaches it, Redis what is read from it. Prints medians, spread, p99, CPU a request and memory; `--write` puts them into
docs/benchmarks.md.
"""
import argparse
import collections
import functools
import http.client
import itertools
import pathlib
import platform
import re
import statistics
import subprocess

import contestants as c
from harness import DEBIAN, LUA_FILES, ROOT, Bench, Load, cpu_s, fail, fetch, free_port, install, memory_mib

PAGE, BEGIN, END = ROOT / "docs/benchmarks.md", "<!-- figures -->", "<!-- end of figures -->"
YARDSTICKS = ("bare hyper", "plain hyper forwarder")
LOG_LINE_MIN_BYTES = 40
DENIED_AT_LEAST = 0.95

# Drawn once and then cycled through, so that the load's own work is the same for everybody and small.
DRAWN = """
local sum, sums, drawn, at = 0, {}, {}, 0
for i = 1, %d do sum = sum + %s; sums[i] = sum end
math.randomseed(7)
function init()
  for n = 1, 65536 do
    local x, low, high = math.random() * sum, 1, #sums
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < x then low = middle + 1 else high = middle end
    end
    drawn[n] = wrk.format("GET", "/key/" .. low)
  end
end
function request()
  at = at %% #drawn + 1
  return drawn[at]
end
"""
ZIPF, UNIFORM = DRAWN % (c.KEYS, "1 / i"), DRAWN % (c.KEYS, "1")

Scenario = collections.namedtuple("Scenario", "contestants path size script is_hit redis access denies",
                                  defaults=["/", 1024, None, True, None, False, False])
Round = collections.namedtuple("Round", "rate p99_ms cpu_us memory_mib errors redis_reads")


class Origin:
    """What stands behind the contestants; it counts, and each look at its count is not counted."""

    def __init__(self, bench):
        self.port = free_port()
        bench.origin(self.port)

    def count(self):
        return int(fetch(self.port, "/count")[1])


def scenarios(bench, origin):
    def all_but_weir(with_nginx, with_haproxy, **kwargs):
        return {"nginx": functools.partial(c.nginx, bench, origin.port, with_nginx, **kwargs),
                "haproxy": functools.partial(c.haproxy, bench, origin.port, with_haproxy, **kwargs)}

    cached = "cache.enabled = true"
    start_weir = functools.partial(c.weir, bench, origin.port)
    varnish = functools.partial(c.varnish, bench, origin.port)
    hit = {"weir": functools.partial(start_weir, cached), **all_but_weir(c.NGINX_CACHE, c.HAPROXY_CACHE), "varnish": varnish}
    hit_or_bare = {**hit, "bare hyper": functools.partial(c.bare, bench, "origin")}
    logged = {name: functools.partial(start, access=True) for name, start in hit.items()}
    return {
        "hit, 1 KiB": Scenario(hit_or_bare),
        "hit, 100 KiB": Scenario(hit_or_bare, path="/?size=102400", size=102400),
        "thousand keys by Zipf": Scenario(hit_or_bare, script=ZIPF),
        "pass-through": Scenario({
            "weir": functools.partial(start_weir, ""),
            **all_but_weir(c.NGINX_PASS, ""),
            "varnish": functools.partial(varnish, "return (pass);"),
            "plain hyper forwarder": functools.partial(c.bare, bench, "forward", origin.port)}, is_hit=False),
        "hit from Redis": Scenario({
            "weir": lambda redis: start_weir(cached, redis=redis.port, tables='[cache]\nmemory = "0B"\n'),
            "nginx + lua-resty-redis": lambda redis: c.nginx(bench, origin.port, c.NGINX_REDIS % redis.port, lua=True)},
            path="/key/1", script=UNIFORM, redis=functools.partial(c.Redis, bench)),
        "hit, limit on one hot identity": Scenario({
            "weir": lambda: start_weir(cached + '\nlimits = ["hot"]', tables='[[limit]]\nname = "hot"\nkey = ["ip"]\n'
                                       'rate = "1000000/s"\nburst = 1000000\n'),
            "nginx": lambda: c.nginx(bench, origin.port, f"{c.NGINX_CACHE} limit_req zone=l burst=100000 nodelay;",
                                     http="limit_req_zone $binary_remote_addr zone=l:10m rate=1000000r/s;"),
            "haproxy": lambda: c.haproxy(bench, origin.port, c.HAPROXY_LIMIT % 1_000_000 + c.HAPROXY_CACHE)}),
        "limit that denies nearly all": Scenario({
            "weir": lambda: start_weir(cached + '\nlimits = ["hot"]', tables='[[limit]]\nname = "hot"\nkey = ["ip"]\n'
                                       'rate = "100/s"\nburst = 100\n'),
            "nginx": lambda: c.nginx(bench, origin.port, f"{c.NGINX_CACHE} limit_req zone=l burst=99 nodelay;",
                                     http="limit_req_zone $binary_remote_addr zone=l:10m rate=100r/s; "
                                          "limit_req_status 429; limit_req_log_level info;"),
            "haproxy": lambda: c.haproxy(bench, origin.port, c.HAPROXY_LIMIT % 100 + c.HAPROXY_CACHE)}, denies=True),
        "hit, 1 KiB, access log on": Scenario(logged, access=True),
    }


def measure(bench, origin, name, start, scenario, script, seconds):
    """One round of one contestant, or the end of everything if it is not what the scenario says."""
    redis = scenario.redis() if scenario.redis else None
    running = start(redis) if redis else start()
    paths = [f"/key/{key}" for key in range(1, c.KEYS + 1)] if scenario.script else [scenario.path] * 3
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    for path in paths:
        status, body = fetch(running.port, path, connection)
        if status != 200 or len(body) != scenario.size:
            fail(f"{name} answered {status} with {len(body)} bytes for {path}")
    connection.close()
    Load(bench.load_core, running.port, scenario.path, 1, script)

    asked, read, used = origin.count(), redis.hits() if redis else 0, cpu_s(*running.pids)
    load = Load(bench.load_core, running.port, scenario.path, seconds, script)
    used, asked = cpu_s(*running.pids) - used, origin.count() - asked
    if scenario.is_hit and asked:
        fail(f"{name} was to answer from its cache, and asked the origin {asked} times for {load.requests} requests")
    if not scenario.is_hit and asked < load.requests:
        fail(f"{name} was to pass everything through, and asked the origin {asked} times for {load.requests} requests")
    reads = (redis.hits() - read) / load.requests if redis else None
    if redis and reads < 0.5:
        fail(f"{name} was to answer from Redis, and read it {reads:.2f} times a request")
    if scenario.denies and load.refused < DENIED_AT_LEAST * load.requests:
        fail(f"{name} was to deny nearly all, and denied {load.refused} of {load.requests} requests")
    if scenario.access and running.log.stat().st_size < load.requests * LOG_LINE_MIN_BYTES:
        fail(f"{name} was to log each of {load.requests} requests, and wrote {running.log.stat().st_size} bytes")
    return Round(load.rate, load.p99_ms, used / load.requests * 1e6, memory_mib(*running.pids),
                 load.errors + (0 if scenario.denies else load.refused), reads)


def run(bench, origin, scenario, rounds, seconds, without):
    starts = {name: start for name, start in scenario.contestants.items() if name not in without}
    script = bench.write("keys.lua", scenario.script) if scenario.script else None
    results = {name: [] for name in starts}
    names, keep = list(starts), len(bench.started)
    for nth in range(rounds):
        first = nth % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(measure(bench, origin, name, starts[name], scenario, script, seconds))
            bench.end(keep)
    return results


def table(title, results):
    rows = ["| | requests/s (median) | spread | p99 ms | CPU us/request | memory MiB | errors |", "|---|---|---|---|---|---|---|"]
    medians = {}
    for name, rounds in results.items():
        rates, p99s, cpus, memories = ([getattr(r, field) for r in rounds] for field in ("rate", "p99_ms", "cpu_us", "memory_mib"))
        medians[name] = statistics.median(rates)
        rows.append(f"| {name} | {medians[name]:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {statistics.median(p99s):.2f} "
                    f"| {statistics.median(cpus):.1f} | {statistics.median(memories):.0f} | {sum(r.errors for r in rounds)} |")
    remarks = []
    peers = {name: median for name, median in medians.items() if name != "weir" and name not in YARDSTICKS}
    if "weir" in medians:
        best = max(peers, key=peers.get, default=None)
        compared = ([(f"the best peer ({best})", peers[best])] if best else []) + [(y, medians[y]) for y in YARDSTICKS if y in medians]
        remarks.append("; ".join(f"Weir / {what}: **{medians['weir'] / rate:.2f}**" for what, rate in compared))
    if all(rounds[0].redis_reads is not None for rounds in results.values()):
        remarks.append("Redis reads a request: " + ", ".join(
            f"{name} {statistics.median(r.redis_reads for r in rounds):.2f}" for name, rounds in results.items()))
    return "\n".join([f"### {title[0].upper()}{title[1:]}", "", *rows, *itertools.chain(*(("", remark) for remark in remarks if remark)), ""])


def machine():
    """What was measured on what, in one line."""
    def version(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        match = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
        return match.group() if match else "?"

    processor = re.search(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
    programs = {"nginx": ("nginx", "-v"), "HAProxy": ("haproxy", "-v"), "Varnish": ("varnishd", "-V"), "Redis": ("redis-server", "-v")}
    return ", ".join([processor.group(1) if processor else platform.machine(), f"Linux {platform.release()}",
                      *(f"{name} {version(*command)}" for name, command in programs.items())])


def write_page(text):
    head, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each round")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--without", action="append", default=[], help="leave this contestant out")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks.md")
    options = parser.parse_args()
    if options.write and (options.only or options.without):
        parser.error("--write is for a whole run")
    if options.write and not (PAGE.exists() and BEGIN in PAGE.read_text() and END in PAGE.read_text()):
        fail(f"docs/benchmarks.md needs the lines {BEGIN} and {END}, for the figures to stand between")
    install(DEBIAN, LUA_FILES)
    with Bench() as bench:
        origin = Origin(bench)
        chosen = {title: scenario for title, scenario in scenarios(bench, origin).items() if options.only in title}
        text = [f"{options.rounds} rounds of {options.seconds} s each, on {machine()}.\n"]
        print(text[0])
        for title, scenario in chosen.items():
            text.append(table(title, run(bench, origin, scenario, options.rounds, options.seconds, options.without)))
            print(text[-1], flush=True)
    if options.write:
        write_page("\n".join(text))


if __name__ == "__main__":
    main()
