"""Programs under measurement: started on a core, watched through /proc, ended by their pids; and the load."""
import http.client
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
CONNECTIONS = 64
START_S, END_S = 10, 3
"""Longest wait for a program to open its port, and to end when asked."""
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

DEBIAN = {"nginx": "nginx", "haproxy": "haproxy", "varnishd": "varnish", "wrk": "wrk", "redis-server": "redis-server",
          "redis-cli": "redis-tools", "taskset": "util-linux"}
"""The package that brings a program."""
LUA_FILES = {"/usr/lib/nginx/modules/ngx_http_lua_module.so": "libnginx-mod-http-lua",
             "/usr/share/lua/5.1/nginx/redis.lua": "lua-nginx-redis"}


def fail(why):
    """A measurement that is not what it says is worth nothing: no figures then."""
    sys.exit(f"compare: {why}")


def install(programs, files=()):
    os.environ["PATH"] += ":/usr/sbin:/usr/local/sbin"
    missing = sorted({DEBIAN[program] for program in programs if not shutil.which(program)}
                     | {LUA_FILES[file] for file in files if not os.path.exists(file)})
    if not missing:
        return
    if not shutil.which("apt-get"):
        fail(f"no apt-get here: install {', '.join(missing)} by hand, then try again")
    if os.geteuid() and not shutil.which("sudo"):
        fail(f"neither root nor sudo: install {', '.join(missing)}, then try again")
    print(f"installing {', '.join(missing)}", file=sys.stderr)
    # RUNLEVEL=1 keeps Debian from starting what it installs.
    apt = [*(["sudo"] if os.geteuid() else []), "env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "-q"]
    for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        subprocess.run([*apt, *command], check=True, stdout=subprocess.DEVNULL)


def two_cores():
    """One for the proxy, one for the load and what stands behind the proxy."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        fail("two cores are needed: one for the proxy, one for the load")
    return str(cores[0]), str(cores[1])


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fetch(port, path, connection=None):
    """Status and body of one GET."""
    connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


class Bench:
    """Starts programs in a directory of its own, and ends them whatever happens."""

    def __init__(self):
        self.bin = ROOT / "target/release"
        self.proxy_core, self.load_core = two_cores()
        self.started = []
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="weir-compare-"))

    def __enter__(self):
        # Ended from outside, it still ends what it started.
        for sign in ENDS:
            signal.signal(sign, lambda number, _: fail(f"ended by {signal.Signals(number).name}"))
        return self

    def __exit__(self, *_):
        for sign in ENDS:
            signal.signal(sign, signal.SIG_IGN)
        self.end()
        shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, name, text):
        path = self.dir / name
        path.write_text(text)
        return path

    def spawn(self, core, what, *command):
        """The pid of a program, on `core` or on all, whose output goes to `what`.log."""
        pinned = ["taskset", "-c", core] if core else []
        with open(self.dir / f"{what}.log", "w") as log:
            process = subprocess.Popen([*pinned, *map(str, command)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       cwd=self.dir, start_new_session=True)
        self.started.append(process)
        return process.pid

    def start(self, core, what, port, *command):
        """The pid of a program that has opened `port`."""
        pid = self.spawn(core, what, *command)
        process, until = self.started[-1], time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                return pid
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > until:
                said = (self.dir / f"{what}.log").read_text()[-2000:]
                fail(f"{what} did not open its port; it said:\n{said}")
            time.sleep(0.005)

    def origin(self, port):
        return self.start(self.load_core, f"origin-{port}", port, self.bin / "examples/bare", "origin", port)

    def end(self, keep=0):
        """Ends all but the first `keep`, their children too (Varnish's cache is a child in a group of its own)."""
        ended = self.started[keep:]
        members = [pid for process in ended for pid in family(process.pid)]
        for process in ended:
            process.terminate()
        until = time.monotonic() + END_S
        for process in ended:
            try:
                process.wait(max(0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
        for pid in members:
            if stat(pid):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        for process in ended:
            process.wait()
        del self.started[keep:]


def stat(pid):
    """The fields of /proc/PID/stat behind the name, or nothing once the process is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if fields[0] == "Z" else fields
    except OSError:
        return None


def family(*pids):
    """The processes and all their descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [*pids]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu_s(*pids):
    """Processor seconds used so far, the kernel's share included."""
    spent = [stat(member) for member in family(*pids)]
    return sum(int(fields[11]) + int(fields[12]) for fields in spent if fields) / TICKS


def memory_mib(*pids, kind="Pss"):
    """Resident memory; as Pss, what several processes share counts once."""
    total_kib = 0
    for member in family(*pids):
        try:
            match = re.search(rf"^{kind}:\s+(\d+)", pathlib.Path(f"/proc/{member}/smaps_rollup").read_text(), re.M)
            total_kib += int(match.group(1)) if match else 0
        except OSError:
            pass
    return total_kib / 1024


class Load:
    """What wrk reports of `seconds` on CONNECTIONS connections, each asking again as soon as it is answered.

    `args` are the script's. `refused` are answers that are neither 2xx nor 3xx.
    """

    def __init__(self, core, port, path, seconds, script=None, *args):
        command = ["taskset", "-c", core, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
        command += ["-s", str(script)] if script else []
        command += [f"http://127.0.0.1:{port}{path}", *(["--", *map(str, args)] if args else [])]
        # A process group of its own: Ctrl-C is for the program that ends everything in order.
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, timeout=seconds + 30)
        self.requests, self.rate, p99 = (re.search(pattern, done.stdout) for pattern in (
            r"(\d+) requests in", r"Requests/sec:\s+([\d.]+)", r"99%\s+([\d.]+)(us|ms|s|m)\b"))
        if done.returncode or not (self.requests and self.rate and p99) or self.requests.group(1) == "0":
            fail(f"wrk got nothing from port {port}:\n{done.stdout}{done.stderr}")
        self.requests, self.rate = int(self.requests.group(1)), float(self.rate.group(1))
        self.p99_ms = float(p99.group(1)) * {"us": 0.001, "ms": 1, "s": 1000, "m": 60000}[p99.group(2)]
        errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done.stdout)
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
        self.errors = sum(map(int, errors.groups())) if errors else 0
        self.refused = int(refused.group(1)) if refused else 0
