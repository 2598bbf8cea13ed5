#!/usr/bin/env python3
"""What a limit costs: a stored answer without a limit, with one in memory, with one that is lent tokens, with one that asks
Redis for each request; all on one hot identity. Prints each beside what it is to be, and exits with 1 if one is less.

The routes of one process take turns, in short rounds, and what is compared is compared within a round: a noisy minute is
noisy for all. `--weir NAME=PATH`, as often as wanted, measures other binaries in the same rounds.
"""
import argparse
import collections
import functools
import pathlib
import statistics
import sys

import contestants as c
from harness import Bench, DEBIAN, Load, cpu_s, fail, fetch, free_port, install

HIT_MIN = 0.9
"""Requests a second with a limit on one hot identity, of those without."""
CENTRAL_MIN = 25_000
"""Decisions a second that Redis makes one by one, with one core for Weir, and one for Redis and the load."""
TOOLS = ("wrk", "redis-server", "redis-cli", "taskset")

LIMITS = "".join(f'[[limit]]\nname = "{name}"\nkey = ["ip"]\nrate = "1000000/s"\nburst = 1000000\n{more}\n'
                 for name, more in (("hot", ""), ("central", "loans = false")))
ROUTES = "".join(f'[[route]]\nname = "{name}"\npath = "/{name}"\ncache.enabled = true\nlimits = [{limits}]\n'
                 for name, limits in (("plain", ""), ("hot", '"hot"'), ("central", '"central"')))

Way = collections.namedtuple("Way", "redis route")
WAYS = {
    "no limit": Way(False, "plain"), "in memory": Way(False, "hot"),
    "no limit, with Redis": Way(True, "plain"), "lent": Way(True, "hot"), "asked of Redis": Way(True, "central"),
}
COMPARED = (("in memory", "no limit"), ("lent", "no limit, with Redis"))
Round = collections.namedtuple("Round", "rate cpu_us")


def measure(bench, running, route, seconds):
    used = cpu_s(*running.pids)
    load = Load(bench.load_core, running.port, f"/{route}", seconds)
    if load.errors:
        fail(f"{load.errors} of {load.requests} requests for /{route} failed")
    return Round(load.rate, (cpu_s(*running.pids) - used) / load.requests * 1e6)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=int, default=2, help="of each route in a round")
    parser.add_argument("--only", default="", help="ways whose name contains this")
    parser.add_argument("--weir", action="append", default=[], metavar="NAME=PATH", help="a binary to measure")
    options = parser.parse_args()
    install({tool: DEBIAN[tool] for tool in TOOLS})
    ways = {name: way for name, way in WAYS.items() if options.only in name}
    with Bench() as bench:
        binaries = dict(one.split("=", 1) for one in options.weir) or {"weir": str(bench.bin / "weir")}
        origin = free_port()
        bench.origin(origin)
        running = {}
        for name, path in binaries.items():
            for has_redis in sorted({way.redis for way in ways.values()}):
                redis = c.Redis(bench).port if has_redis else None
                running[name, has_redis] = c.weir(bench, origin, ROUTES, redis=redis, tables=LIMITS, binary=pathlib.Path(path).resolve())
        results = collections.defaultdict(list)
        turns = [(name, title) for title in ways for name in binaries]
        for nth in range(options.rounds + 1):
            for name, title in turns[nth % len(turns):] + turns[:nth % len(turns)]:
                way = ways[title]
                one = functools.partial(measure, bench, running[name, way.redis], way.route)
                # The first round warms up.
                if nth == 0:
                    fetch(running[name, way.redis].port, f"/{way.route}")
                    one(1)
                else:
                    results[name, title].append(one(options.seconds))
    sys.exit(report(list(binaries), list(ways), results))


def report(binaries, titles, results):
    """Whether something is less than it is to be."""
    print("| | requests/s (median) | spread | CPU us/request |\n|---|---|---|---|")
    for title in titles:
        for name in binaries:
            rates, cpus = ([getattr(one, field) for one in results[name, title]] for field in Round._fields)
            print(f"| {name}: {title} | {statistics.median(rates):,.0f} | {min(rates):,.0f} to {max(rates):,.0f} "
                  f"| {statistics.median(cpus):.2f} |")
    print()
    is_less = False

    def ratios(ones, others, field="rate"):
        """Round by round; the median, and the quartiles."""
        each = [getattr(one, field) / getattr(other, field) for one, other in zip(ones, others)]
        low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
        return middle, f"{middle:.3f} ({low:.3f} to {high:.3f})"

    for name in binaries:
        for limited, plain in COMPARED:
            if limited in titles and plain in titles:
                middle, text = ratios(results[name, limited], results[name, plain])
                is_less |= middle < HIT_MIN
                print(f"{name}: {limited} / {plain}: {text}, to be {HIT_MIN} or more")
        if "asked of Redis" in titles:
            rate = statistics.median(one.rate for one in results[name, "asked of Redis"])
            is_less |= rate < CENTRAL_MIN
            print(f"{name}: asked of Redis: {rate:,.0f} a second, to be {CENTRAL_MIN:,} or more")
    for name in binaries[1:]:
        for title in titles:
            rate, cpu = (ratios(results[name, title], results[binaries[0], title], field)[1] for field in Round._fields)
            print(f"{name} / {binaries[0]}: {title}: rate {rate}, CPU a request {cpu}")
    return is_less


if __name__ == "__main__":
    main()
