//! In front of programs that nobody here wrote, Weir's answers are theirs, byte for byte.

use std::path::Path;
use std::process::Command;

use crate::harness::{Answer, Foreign, Scratch, get, nginx, noise, python, request, weir};

/// Sizes of the files served.
const SIZES: &[usize] = &[0, 1, 1023, 4096, (64 << 10) + 1, 1 << 20, 10 << 20, 100 << 20];

/// Large enough to pass the cache by.
const CACHED: &str = r#"
[[route]]
name = "files"
path = "/{*path}"
cache.ttl = "60s"
"#;

fn tree() -> Scratch {
    let tree = Scratch::new();
    for size in SIZES {
        std::fs::write(tree.path().join(format!("{size}.txt")), noise(*size)).expect("a file");
    }
    tree
}

/// What must not differ between a direct answer and Weir's. That ranges are accepted goes without saying in one.
fn essence(answer: &Answer) -> (u16, usize, Vec<Option<&str>>) {
    let mut fields = vec!["content-length", "content-type", "content-range", "etag", "last-modified", "allow"];
    if answer.status != 206 {
        fields.push("accept-ranges");
    }
    let fields = fields.into_iter();
    (answer.status, answer.body.len(), fields.map(|name| answer.header(name)).collect())
}

async fn equal(service: &Foreign, ranges: bool) {
    let weir = weir(CACHED).to(format!("http://{}", service.address)).start().await;
    let mut compared = 0;
    for size in SIZES {
        let path = format!("/{size}.txt");
        let mut requests = vec![get(&path), get(&path), request("HEAD", &path)];
        if ranges && *size > 1000 {
            requests.extend(["bytes=0-9", "bytes=-7", "bytes=500-"].map(|range| get(&path).header("range", range)));
            requests.push(get(&path).header("range", format!("bytes={}-", size + 5).as_str()));
        }
        for request in requests {
            let direct = request.send(service.address).await;
            let through = weir.send(request).await;
            if direct.status == 416 {
                // What an error's body says is up to whoever answers.
                assert_eq!(through.header("content-range"), direct.header("content-range"), "{path}: {through:?}");
                assert_eq!(through.status, 416, "{path}: {through:?}");
            } else {
                assert_eq!(essence(&direct), essence(&through), "{path}\n{direct:?}\n{through:?}");
                assert!(direct.body == through.body, "{path}: the bytes differ");
            }
            compared += 1;
        }
        if let (Some(tag), true) = (get(&path).send(service.address).await.header("etag"), *size > 0) {
            let again = weir.send(get(&path).header("if-none-match", tag)).await;
            assert_eq!((again.status, again.body.len()), (304, 0), "{path}: {again:?}");
        }
    }
    for request in [request("POST", "/1.txt").body("x"), request("PUT", "/1.txt").body("x"), get("/absent")] {
        let direct = request.send(service.address).await;
        let through = weir.send(request).await;
        assert_eq!((direct.status, direct.body), (through.status, through.body));
    }
    eprintln!("{compared} answers are equal");
}

#[tokio::test]
async fn nginx_answers_the_same_through_weir() {
    let tree = tree();
    match nginx(tree.path()) {
        Some(service) => equal(&service, true).await,
        None => eprintln!("nginx is not installed: not compared"),
    }
}

#[tokio::test]
async fn pythons_file_server_answers_the_same_through_weir() {
    let tree = tree();
    match python(tree.path()) {
        // It knows no ranges: Weir may answer them from what it stored.
        Some(service) => equal(&service, false).await,
        None => eprintln!("python3 is not installed: not compared"),
    }
}

#[tokio::test]
async fn curl_gets_the_same_bytes_over_both_protocols() {
    let tree = tree();
    let (Some(service), true) = (python(tree.path()), installed("curl", "--version")) else {
        eprintln!("python3 or curl is not installed: not compared");
        return;
    };
    let weir = weir(CACHED).to(format!("http://{}", service.address)).start().await;
    let output = tree.path().join("got");
    for size in SIZES {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://{}/{size}.txt", weir.proxy);
            let got = curl(&[protocol, &url], &output).await;
            assert!(got == noise(*size), "{protocol} {size}: {} bytes", got.len());
        }
    }
}

async fn curl(arguments: &[&str], output: &Path) -> Vec<u8> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "20", "--output"]).arg(output).args(arguments);
    let said = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("curl runs");
    assert!(said.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said.stderr));
    // An empty answer makes no file.
    let got = std::fs::read(output).unwrap_or_default();
    let _ = std::fs::remove_file(output);
    got
}

/// Counts the answers that are not the file.
const COMPARE: &str = r#"
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args)
  local file = assert(io.open(args[1], "rb"))
  expected, differ, seen = file:read("*a"), 0, 0
  file:close()
end
function response(status, headers, body)
  seen = seen + 1
  if status ~= 200 or body ~= expected then differ = differ + 1 end
end
function done(summary)
  local e = summary.errors
  io.write(string.format("seen %d differ %d errors %d\n", threads[1]:get("seen"), threads[1]:get("differ"),
    e.connect + e.read + e.write + e.timeout))
end
"#;

#[tokio::test]
async fn wrk_gets_the_same_bytes_under_load() {
    let tree = tree();
    let (Some(service), true) = (nginx(tree.path()), installed("wrk", "--version")) else {
        eprintln!("nginx or wrk is not installed: not compared");
        return;
    };
    let weir = weir(CACHED).to(format!("http://{}", service.address)).start().await;
    let script = tree.write("compare.lua", COMPARE).display().to_string();
    for size in SIZES {
        let file = tree.path().join(format!("{size}.txt")).display().to_string();
        let url = format!("http://{}/{size}.txt", weir.proxy);
        let (connections, mut seconds) = if *size > 1 << 20 { ("-c1", 4) } else { ("-c4", 1) };
        loop {
            let length = format!("-d{seconds}s");
            let load = ["-t1", connections, &length, "--timeout", "60s", "-s", &script, &url, "--", &file];
            let said = run("wrk", &load).await;
            let line = said.lines().find(|line| line.starts_with("seen ")).unwrap_or_else(|| panic!("wrk said {said}"));
            assert!(line.ends_with(" differ 0 errors 0"), "{size}: {line}");
            eprintln!("{size} bytes: {line}");
            // Long enough for some answers of every size, on this machine.
            if !line.starts_with("seen 0 ") {
                break;
            }
            seconds *= 2;
            assert!(seconds < 60, "{size}: no answer ended");
        }
    }
}

#[tokio::test]
async fn h2load_gets_as_many_bytes_as_it_should() {
    const REQUESTS: usize = 24;
    let tree = tree();
    let (Some(service), true) = (nginx(tree.path()), installed("h2load", "--version")) else {
        eprintln!("nginx or h2load is not installed: not compared");
        return;
    };
    let weir = weir(CACHED).to(format!("http://{}", service.address)).start().await;
    for size in SIZES {
        let url = format!("http://{}/{size}.txt", weir.proxy);
        let count = REQUESTS.to_string();
        let said = run("h2load", &["-n", &count, "-c", "3", "-m", "4", &url]).await;
        assert!(said.contains(&format!("status codes: {REQUESTS} 2xx, 0 3xx, 0 4xx, 0 5xx")), "{size}: {said}");
        assert!(said.contains(&format!("{REQUESTS} succeeded, 0 failed, 0 errored")), "{size}: {said}");
        assert!(said.contains(&format!("({}) data", REQUESTS * size)), "{size}: {said}");
    }
}

fn installed(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok()
}

async fn run(program: &'static str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
