#!/usr/bin/env python3
"""Weir side by side with nginx, HAProxy, Varnish and two bare hyper programs, in one run.

The proxy has one core, the load (and what stands behind the proxy) the other. Rounds alternate over the contestants, so
that a noisy machine is noisy for all of them. Prints medians, spread, p99, CPU a request and memory, and writes the
tables of docs/benchmarks.md between its markers.
"""
import argparse
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROXY_CORE, LOAD_CORE = "0", "1"
CONNECTIONS = 64
TICKS = os.sysconf("SC_CLK_TCK")

ZIPF = """
local weights, sum = {}, 0
for i = 1, 1000 do sum = sum + 1 / i; weights[i] = sum end
math.randomseed(7)
request = function()
  local x, low, high = math.random() * sum, 1, 1000
  while low < high do
    local mid = math.floor((low + high) / 2)
    if weights[mid] < x then low = mid + 1 else high = mid end
  end
  return wrk.format("GET", "/key/" .. low)
end
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port, what):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit(f"{what} did not open port {port}")


class Bench:
    """Starts programs in a directory of its own, and ends them by their pids."""

    def __init__(self, bin_dir):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="weir-compare-"))
        self.bin = bin_dir
        self.started = []

    def start(self, core, *command, port, what, **kwargs):
        log = open(self.dir / f"{what}-{port}.log", "w")
        process = subprocess.Popen(["taskset", "-c", core, *map(str, command)], stdout=log, stderr=log, cwd=self.dir,
                                   start_new_session=True, **kwargs)
        self.started.append(process)
        wait_for(port, what)
        return process.pid

    def end(self, keep=0):
        for process in self.started[keep:]:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        del self.started[keep:]

    def write(self, name, text):
        path = self.dir / name
        path.write_text(text)
        return path


def family(pid):
    """The process and all its descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
            except OSError:
                pass
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_seconds(pid):
    total = 0
    for member in family(pid):
        try:
            fields = pathlib.Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / TICKS


def memory_mib(pid):
    total = 0
    for member in family(pid):
        try:
            match = re.search(r"Pss:\s+(\d+)", pathlib.Path(f"/proc/{member}/smaps_rollup").read_text())
            total += int(match.group(1)) if match else 0
        except OSError:
            pass
    return total / 1024


def weir(bench, upstream, route, *, redis=None, access=False, cache="", limits=""):
    port, admin = free_port(), free_port()
    store = f'[redis]\nurl = "redis://127.0.0.1:{redis}/0"\nnamespace = "compare"\n' if redis else ""
    config = bench.write(f"weir-{port}.toml", f"""
[server]
listen = "127.0.0.1:{port}"
workers = 1
[admin]
listen = "127.0.0.1:{admin}"
[log]
format = "json"
access = {str(access).lower()}
[upstream]
url = "http://127.0.0.1:{upstream}"
{store}
{cache}
{limits}
[[route]]
name = "all"
path = "/{{*path}}"
{route}
""")
    return bench.start(PROXY_CORE, bench.bin / "weir", "run", "--config", config, port=port, what="weir"), port


NGINX_CACHE = "proxy_cache c; proxy_cache_valid 200 1h; add_header X-Cache $upstream_cache_status;"


def nginx(bench, upstream, location, *, access=False, http=""):
    port = free_port()
    log = f"{bench.dir}/nginx-access-{port}.log" if access else "off"
    modules = "\n".join(f"load_module {m};" for m in sorted(pathlib.Path("/usr/lib/nginx/modules").glob("*.so"))
                        if m.name in ("ndk_http_module.so", "ngx_http_lua_module.so"))
    config = bench.write(f"nginx-{port}.conf", f"""
{modules}
user root; daemon off; worker_processes 1; pid {bench.dir}/nginx-{port}.pid; error_log {bench.dir}/nginx-error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {log};
  keepalive_requests 100000000;
  proxy_cache_path {bench.dir}/nginx-cache-{port} levels=1:2 keys_zone=c:64m max_size=1g;
  proxy_temp_path {bench.dir}/nginx-tmp-{port}; client_body_temp_path {bench.dir}/nginx-body-{port};
  sendfile on; tcp_nopush on; open_file_cache max=10000; {http}
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; {location} }} }}
}}""")
    return bench.start(PROXY_CORE, "nginx", "-c", config, port=port, what="nginx"), port


def haproxy(bench, upstream, frontend, *, access=False):
    port = free_port()
    log = f"log stdout format raw local0\n  option httplog\n" if access else "no log\n"
    config = bench.write(f"haproxy-{port}.cfg", f"""
global
  nbthread 1
  maxconn 4096
cache c
  total-max-size 256
  max-object-size 1048576
  max-age 3600
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  http-reuse always
frontend f
  bind 127.0.0.1:{port}
  {log}
  {frontend}
  default_backend b
backend b
  {"" if "cache-use" not in frontend else "http-response cache-store c"}
  server s 127.0.0.1:{upstream} maxconn 512
""")
    return bench.start(PROXY_CORE, "haproxy", "-f", config, port=port, what="haproxy"), port


def varnish(bench, upstream, *, passes=False, access=False):
    port = free_port()
    vcl = bench.write(f"varnish-{port}.vcl", f"""
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{upstream}"; }}
sub vcl_recv {{ {"return (pass);" if passes else "unset req.http.Cookie; return (hash);"} }}
""")
    pid = bench.start(PROXY_CORE, "varnishd", "-F", "-n", bench.dir / f"varnish-{port}", "-a", f"127.0.0.1:{port}", "-f", vcl,
                      "-s", "malloc,256m", "-p", "thread_pools=1", port=port, what="varnish")
    if access:
        log = bench.dir / f"varnish-access-{port}.log"
        subprocess_ = subprocess.Popen(["taskset", "-c", PROXY_CORE, "varnishncsa", "-n", bench.dir / f"varnish-{port}", "-w", log],
                                       start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bench.started.append(subprocess_)
    return pid, port


LUA_REDIS = """content_by_lua_block {
  local redis = require "nginx.redis"
  local red = redis:new()
  red:set_timeouts(1000, 1000, 1000)
  local ok, err = red:connect("127.0.0.1", %d)
  local body = red:get("page:" .. ngx.var.uri)
  red:set_keepalive(10000, 128)
  if body and body ~= ngx.null then ngx.header["Content-Length"] = #body; ngx.print(body) else ngx.exit(404) end
}"""


def scenarios(bench, origin):
    cache = "cache.enabled = true"
    hit = {
        "weir": lambda **k: weir(bench, origin, cache, **k),
        "nginx": lambda **k: nginx(bench, origin, f"proxy_pass http://u; {NGINX_CACHE}", **k),
        "haproxy": lambda **k: haproxy(bench, origin, "http-request cache-use c", **k),
        "varnish": lambda **k: varnish(bench, origin, **k),
    }
    bare = {"bare hyper": lambda: (bench.start(PROXY_CORE, bench.bin / "examples/bare", "origin", port := free_port(), port=port,
                                               what="bare"), port)}
    forward = {"plain hyper forwarder": lambda: (
        bench.start(PROXY_CORE, bench.bin / "examples/bare", "forward", port := free_port(), origin, port=port, what="forward"), port)}
    redis_port = free_port()

    def with_redis(start):
        def run():
            bench.start(LOAD_CORE, "redis-server", "--port", redis_port, "--save", "", "--bind", "127.0.0.1", port=redis_port, what="redis")
            subprocess.run(["redis-cli", "-p", str(redis_port), "set", "page:/", "x" * 1024], stdout=subprocess.DEVNULL, check=True)
            return start()
        return run

    limit = '[[limit]]\nname = "hot"\nkey = ["ip"]\nrate = "1000000/s"\nburst = 1000000\n'
    return {
        "hit, 1 KiB": ("/", None, {**hit, **bare}),
        "hit, 100 KiB": ("/?size=102400", None, {**hit, **bare}),
        "thousand keys by Zipf": ("/", ZIPF, {**hit, **bare}),
        "pass-through": ("/", None, {
            "weir": lambda: weir(bench, origin, ""),
            "nginx": lambda: nginx(bench, origin, "proxy_pass http://u;"),
            "haproxy": lambda: haproxy(bench, origin, ""),
            "varnish": lambda: varnish(bench, origin, passes=True),
            **forward}),
        "hit from Redis": ("/", None, {
            "weir": with_redis(lambda: weir(bench, origin, cache, redis=redis_port, cache='[cache]\nmemory = "0B"\n')),
            "nginx + lua-resty-redis": with_redis(lambda: nginx(bench, origin, LUA_REDIS % redis_port))}),
        "hit, limit on one hot identity": ("/", None, {
            "weir": lambda: weir(bench, origin, cache + '\nlimits = ["hot"]', limits=limit),
            "nginx": lambda: nginx(bench, origin, f"proxy_pass http://u; {NGINX_CACHE} limit_req zone=l burst=100000 nodelay;",
                                   http="limit_req_zone $binary_remote_addr zone=l:10m rate=1000000r/s;"),
            "haproxy": lambda: haproxy(bench, origin, "stick-table type ip size 100k expire 30s store http_req_rate(1s)\n"
                                       "  http-request track-sc0 src\n  http-request deny deny_status 429 if { sc_http_req_rate(0) gt 1000000 }\n"
                                       "  http-request cache-use c")}),
        "hit, 1 KiB, access log on": ("/", None, {name: (lambda start=start: start(access=True)) for name, start in hit.items()}),
    }


def load(port, path, script, seconds):
    command = ["taskset", "-c", LOAD_CORE, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", f"http://127.0.0.1:{port}{path}"]
    if script:
        command[-1:-1] = ["-s", str(script)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out).group(1))
    requests = int(re.search(r"(\d+) requests in", out).group(1))
    value, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    errors = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", out)))
    errors += sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", out)))
    return rate, requests, float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit], errors


def run(scenario, path, script, contestants, bench, rounds, seconds):
    results = {name: [] for name in contestants}
    names = list(contestants)
    keep = len(bench.started)
    for round_ in range(rounds):
        for name in names[round_ % len(names):] + names[:round_ % len(names)]:
            pid, port = contestants[name]()
            load(port, path, script, 1)  # fills the cache and warms the path
            before = cpu_seconds(pid)
            rate, requests, p99, errors = load(port, path, script, seconds)
            used = cpu_seconds(pid) - before
            results[name].append((rate, p99, used / requests * 1e6, memory_mib(pid), errors))
            bench.end(keep)
    return results


def table(scenario, results):
    rows = [f"### {scenario}", "", "| | requests/s (median) | spread | p99 ms | CPU us/request | memory MiB | errors |",
            "|---|---|---|---|---|---|---|"]
    medians = {}
    for name, rounds in results.items():
        rates = [r[0] for r in rounds]
        medians[name] = statistics.median(rates)
        p99, cpu, memory = (statistics.median(r[i] for r in rounds) for i in (1, 2, 3))
        rows.append(f"| {name} | {medians[name]:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {p99:.2f} | {cpu:.1f} | {memory:.0f} "
                    f"| {sum(r[4] for r in rounds)} |")
    yardsticks = ("weir", "bare hyper", "plain hyper forwarder")
    peers = {n: m for n, m in medians.items() if n not in yardsticks}
    if "weir" in medians and peers:
        best = max(peers, key=peers.get)
        rows += ["", f"Weir / best peer ({best}): **{medians['weir'] / peers[best]:.2f}**"]
        for yardstick in yardsticks[1:]:
            if yardstick in medians:
                rows.append(f"; Weir / {yardstick}: **{medians['weir'] / medians[yardstick]:.2f}**")
    return "\n".join(rows[:-1]) + ("\n" + rows[-1]) + "\n"


def install():
    wanted = {"nginx": "nginx", "haproxy": "haproxy", "varnishd": "varnish", "wrk": "wrk", "redis-server": "redis-server",
              "redis-cli": "redis-tools", "taskset": "util-linux"}
    missing = [package for program, package in wanted.items() if not shutil.which(program)]
    if not pathlib.Path("/usr/lib/nginx/modules/ngx_http_lua_module.so").exists():
        missing.append("libnginx-mod-http-lua")
    if not pathlib.Path("/usr/share/lua/5.1/nginx/redis.lua").exists():
        missing.append("lua-nginx-redis")
    if missing:
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run([*sudo, "apt-get", "update"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*sudo, "apt-get", "install", "-y", "--no-install-recommends", *missing], check=True, env=environment,
                       stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", help="scenarios whose name contains this")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    install()
    bench = Bench(ROOT / "target/release")
    text = []
    try:
        origin = free_port()
        bench.start(LOAD_CORE, bench.bin / "examples/bare", "origin", origin, port=origin, what="origin")
        zipf = bench.write("zipf.lua", ZIPF)
        for scenario, (path, script, contestants) in scenarios(bench, origin).items():
            if options.only and options.only not in scenario:
                continue
            results = run(scenario, path, zipf if script else None, contestants, bench, options.rounds, options.seconds)
            text.append(table(scenario, results))
            print(text[-1], flush=True)
    finally:
        bench.end()
        shutil.rmtree(bench.dir, ignore_errors=True)
    if options.write:
        page = ROOT / "docs/benchmarks.md"
        begin, end = "<!-- figures -->", "<!-- end of figures -->"
        head, rest = page.read_text().split(begin)
        page.write_text(head + begin + "\n\n" + "\n".join(text) + "\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
