"""The contestants and their configurations: each the fastest that its manual offers for one worker on one core."""
import collections
import os
import socket
import subprocess

from harness import fail, free_port

Running = collections.namedtuple("Running", "port pids log admin", defaults=[None, None])
"""A contestant that answers on `port`; `log` is its access log, and `admin` its other port, where it has one."""

KEYS = 1000


ALL = """[[route]]
name = "all"
path = "/{*path}"
"""


def weir(bench, upstream, route, access=False, redis=None, tables="", binary=None):
    """`route` is the fields of one that takes everything, or whole tables of routes."""
    port, admin = free_port(), free_port()
    if redis:
        tables += f'[redis]\nurl = "redis://127.0.0.1:{redis}/0"\nnamespace = "compare"\n'
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
{tables}
{"" if route.startswith("[[route]]") else ALL}{route}
""")
    pid = bench.start(bench.proxy_core, f"weir-{port}", port, binary or bench.bin / "weir", "run", "--config", config)
    return Running(port, [pid], bench.dir / f"weir-{port}.log", admin)


def bare(bench, role, *args):
    port = free_port()
    pid = bench.start(bench.proxy_core, f"{role}-{port}", port, bench.bin / "examples/bare", role, port, *args)
    return Running(port, [pid])


NGINX_PASS = "proxy_pass http://u;"
NGINX_CACHE = NGINX_PASS + " proxy_cache c; proxy_cache_valid 200 1h;"
NGINX_REDIS = """default_type application/octet-stream;
content_by_lua_block {
  local red = require("nginx.redis"):new()
  red:set_timeout(1000)
  local ok, why = red:connect("127.0.0.1", %d)
  if not ok then ngx.log(ngx.ERR, why) return ngx.exit(502) end
  local body = red:get("page:" .. ngx.var.uri)
  red:set_keepalive(10000, 128)
  if not body or body == ngx.null then return ngx.exit(404) end
  ngx.header["Content-Length"] = #body
  ngx.print(body)
}"""


# Measured: without sendfile 1.4 times as fast for 1 KiB and the same for 100 KiB, where tcp_nopush would cost 40 ms.
def nginx(bench, upstream, location, access=False, http="", lua=False):
    port = free_port()
    log = bench.dir / f"nginx-access-{port}.log"
    lua_modules = [f"/usr/lib/nginx/modules/{name}.so" for name in ("ndk_http_module", "ngx_http_lua_module")]
    if lua:
        http += ' lua_package_path "/usr/share/lua/5.1/?.lua;;";'
    config = bench.write(f"nginx-{port}.conf", f"""
{"".join(f"load_module {module};" for module in lua_modules if lua)}
{"" if os.geteuid() else "user root;"}
daemon off; worker_processes 1; pid {bench.dir}/nginx-{port}.pid; error_log stderr;
events {{ worker_connections 4096; }}
http {{
  access_log {f"{log} combined buffer=64k flush=1s" if access else "off"};
  keepalive_requests 100000000;
  proxy_cache_path {bench.dir}/nginx-cache-{port} levels=1:2 keys_zone=c:64m max_size=1g;
  proxy_temp_path {bench.dir}/nginx-tmp-{port}; client_body_temp_path {bench.dir}/nginx-body-{port};
  fastcgi_temp_path {bench.dir}/nginx-tmp-{port}; uwsgi_temp_path {bench.dir}/nginx-tmp-{port};
  scgi_temp_path {bench.dir}/nginx-tmp-{port};
  sendfile off; output_buffers 2 128k; open_file_cache max=10000; {http}
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:{port};
    location / {{ proxy_http_version 1.1; proxy_set_header Connection ""; {location} }} }}
}}""")
    pid = bench.start(bench.proxy_core, f"nginx-{port}", port, "nginx", "-e", "stderr", "-c", config)
    return Running(port, [pid], log)


HAPROXY_CACHE = "http-request cache-use c\n  http-response cache-store c"
HAPROXY_LIMIT = """stick-table type ip size 100k expire 30s store http_req_rate(1s)
  http-request track-sc0 src
  http-request deny deny_status 429 if { sc_http_req_rate(0) gt %d }
  """


def haproxy(bench, upstream, rules, access=False):
    port = free_port()
    # total-max-size is in MiB, max-object-size in bytes.
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
listen l
  bind 127.0.0.1:{port}
  {f"log stdout format raw local0{chr(10)}  option httplog" if access else "no log"}
  {rules}
  server s 127.0.0.1:{upstream} maxconn 512
""")
    pid = bench.start(bench.proxy_core, f"haproxy-{port}", port, "haproxy", "-db", "-f", config)
    return Running(port, [pid], bench.dir / f"haproxy-{port}.log")


def varnish(bench, upstream, subroutine="unset req.http.Cookie; return (hash);", access=False):
    port = free_port()
    state = bench.dir / f"varnish-{port}"
    vcl = bench.write(f"varnish-{port}.vcl", f"""vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{upstream}"; }}
sub vcl_recv {{ {subroutine} }}
""")
    pids = [bench.start(bench.proxy_core, f"varnish-{port}", port, "varnishd", "-j", "none", "-F", "-n", state, "-a",
                        f"127.0.0.1:{port}", "-f", vcl, "-s", "malloc,256m", "-p", "thread_pools=1")]
    log = bench.dir / f"varnish-access-{port}.log"
    if access:
        pids.append(bench.spawn(bench.proxy_core, f"varnishncsa-{port}", "varnishncsa", "-n", state, "-w", log))
    return Running(port, pids, log)


class Redis:
    """A Redis of its own beside the load, with the pages that nginx answers from."""

    def __init__(self, bench):
        self.port = free_port()
        self.pid = bench.start(bench.load_core, f"redis-{self.port}", self.port, "redis-server", "--port", self.port, "--bind", "127.0.0.1",
                               "--save", "", "--dir", bench.dir)
        pages = "".join(f"SET page:/key/{key} {'x' * 1024}\r\n" for key in range(1, KEYS + 1))
        subprocess.run(["redis-cli", "-p", str(self.port), "--pipe"], input=pages, text=True, check=True, capture_output=True)

    def hits(self):
        """Keys found by reads so far."""
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            s.sendall(b"INFO stats\r\n")
            text = b""
            while b"keyspace_hits:" not in text or not text.endswith(b"\r\n"):
                if not (piece := s.recv(65536)):
                    fail("Redis left")
                text += piece
        return int(text.split(b"keyspace_hits:")[1].split(b"\r\n")[0])
