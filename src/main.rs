//! The command line: the only place that prints or exits.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use weir::admin::client::{Client, ClientError, Form, Wait};
use weir::app::{self, App, Source};
use weir::config::{self, Config, Overrides, Secret};
use weir::demo;
use weir::limit::view::{Asked, Who};
use weir::message::question::Question;
use weir::syntax::selector::Order;

/// A full cache takes a fifth less memory with it than with the C library's, and what is freed can be used again.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration or the request is wrong.
const WRONG: u8 = 1;

/// Weir could not start: a port is taken, a file cannot be read.
const NO_START: u8 = 2;

/// A sidecar reverse proxy that caches, collapses, limits and invalidates, as one fleet on one Redis.
#[derive(Parser)]
#[command(name = "weir", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the sidecar
    Run(Run),
    /// Run the sidecar in front of a small slow sample service, memory only, and say what to try
    Demo {
        /// Override a setting, such as server.listen=127.0.0.1:8081
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Report every problem of a configuration, with its place and a remedy
    Check {
        /// The configuration
        file: PathBuf,
        /// Override a setting
        #[arg(long = "set", value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// Say which route, key, limits and cache rule a request meets, and whether an answer to it would be stored
    Explain(Explain),
    /// Invalidate stored answers through a Weir's admin port; its whole fleet follows
    Invalidate(Invalidate),
    /// Show a Weir's limits, what they decided and who is denied most; or one identity's state, or its reset
    Limits(Limits),
    /// Make a Weir unready while it goes on serving: for a pod's preStop
    Drain(AdminPort),
    /// Print the JSON Schema of the configuration, for editors
    Schema,
}

#[derive(Args)]
struct Run {
    /// The configuration
    #[arg(long, value_name = "FILE", required_unless_present = "upstream", conflicts_with = "upstream")]
    config: Option<PathBuf>,
    /// Just cache what this service's own headers allow, without a configuration
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Override a setting, such as server.listen=127.0.0.1:8081
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args)]
struct Explain {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Instead of a configuration: as `weir run --upstream URL` has it
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Override a setting
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The request's method
    method: String,
    /// Its URL, or a path with -H 'Host: name'
    url: String,
    /// A field of the request
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// The request's body
    #[arg(short = 'd', long, value_name = "TEXT")]
    body: Option<String>,
    /// Address that the request comes from
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Suppose an answer with this status
    #[arg(long, value_name = "N")]
    status: Option<String>,
    /// Suppose an answer with this field
    #[arg(long, value_name = "NAME: VALUE")]
    response: Vec<String>,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct AdminPort {
    /// Address of the admin port
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9901")]
    admin: String,
    /// File that holds the admin port's token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Args)]
struct Invalidate {
    #[command(flatten)]
    port: AdminPort,
    /// A path with query ("/x?*": any query), on any host, or an absolute URL
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// A tag
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A path prefix
    #[arg(long = "prefix", value_name = "PREFIX")]
    prefixes: Vec<String>,
    /// A route's name
    #[arg(long = "route", value_name = "ROUTE")]
    routes: Vec<String>,
    /// Everything
    #[arg(long)]
    all: bool,
    /// Mark stale instead of gone
    #[arg(long)]
    soft: bool,
    /// Answer only when every pod has applied it
    #[arg(long)]
    wait: bool,
    /// Wait for so long at most, such as 2s; without it, until no pod can serve what was invalidated
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = duration)]
    wait_timeout: Option<Duration>,
}

#[derive(Args)]
struct Limits {
    #[command(flatten)]
    port: AdminPort,
    /// A limit's name, or route/name of one inside a route; without it, all of them
    limit: Option<String>,
    /// Each part of the identity with its value, such as ip=192.0.2.7 or header:x-api-key=abc
    #[arg(value_name = "PART=VALUE", value_parser = part)]
    parts: Vec<(String, String)>,
    /// In place of the parts: the identity's id, as the list of limits shows it
    #[arg(long, value_name = "HEX", requires = "limit", conflicts_with = "parts")]
    id: Option<String>,
    /// Make the identity as good as new
    #[arg(long, requires = "limit")]
    reset: bool,
    /// Print the admin port's JSON
    #[arg(long)]
    json: bool,
}

fn part(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("there is no `=`; write ip=192.0.2.7")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn duration(text: &str) -> Result<Duration, String> {
    weir::syntax::scalar::duration(text).map_err(|error| format!("{}; {}", error.problem, error.remedy))
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(run) => start_run(run),
        Command::Demo { set } => start_demo(set),
        Command::Check { file, set } => check(&file, set),
        Command::Explain(explain) => print_explanation(explain),
        Command::Invalidate(invalidate) => send_invalidation(invalidate),
        Command::Limits(limits) => show_limits(limits),
        Command::Drain(port) => send_drain(&port),
        Command::Schema => {
            println!("{}", config::schema::json());
            ExitCode::SUCCESS
        }
    }
}

fn overrides(set: Vec<String>) -> Overrides {
    Overrides::new(set, std::env::vars_os())
}

fn start_run(run: Run) -> ExitCode {
    let overrides = overrides(run.set);
    let source = match (run.config, run.upstream) {
        (Some(path), _) => Source::File(path),
        (None, upstream) => Source::Upstream(upstream.unwrap_or_default()),
    };
    serve(source, overrides, |_| {})
}

fn start_demo(set: Vec<String>) -> ExitCode {
    let upstream = match demo::serve() {
        Ok(address) => address,
        Err(error) => return fail(NO_START, &format!("the sample service cannot start: {error}")),
    };
    let source = Source::Text { name: "demo.toml".to_owned(), text: demo::config(upstream) };
    serve(source, overrides(set), |addresses| {
        println!("{}\n", demo::guide(&called(), addresses.proxy, addresses.admin));
    })
}

/// How this program was called, for commands to be copied.
fn called() -> String {
    std::env::args().next().unwrap_or_else(|| "weir".to_owned())
}

fn serve(source: Source, overrides: Overrides, announce: impl FnOnce(&app::Addresses)) -> ExitCode {
    let loaded = match source.load(&overrides) {
        Ok(loaded) => loaded,
        Err(report) => return fail(if report.is_of_files() { NO_START } else { WRONG }, &report.to_string()),
    };
    let app = match App::bind(loaded, source, overrides) {
        Ok(app) => app,
        Err(error) => return fail(NO_START, &error.to_string()),
    };
    announce(app.addresses());
    match app.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(NO_START, &error.to_string()),
    }
}

fn check(file: &Path, set: Vec<String>) -> ExitCode {
    match Config::load(file, &overrides(set)) {
        Ok(loaded) => {
            if !loaded.warnings.is_empty() {
                println!("{}", loaded.warnings);
            }
            let count = loaded.config.routes.len();
            println!("{}: fine, {count} route{}", file.display(), if count == 1 { "" } else { "s" });
            ExitCode::SUCCESS
        }
        Err(report) => fail(WRONG, &report.to_string()),
    }
}

fn print_explanation(explain: Explain) -> ExitCode {
    let Explain { config, upstream, set, method, url, headers, body, client, status, response, json } = explain;
    let source = match (config, upstream) {
        (Some(path), None) => Source::File(path),
        (None, Some(url)) => Source::Upstream(url),
        (given, _) => {
            let problem =
                if given.is_some() { "both --config and --upstream are given" } else { "no configuration is given" };
            return fail(WRONG, &format!("error: {problem}\nhelp: name one: --config FILE, or --upstream URL"));
        }
    };
    let loaded = match source.load(&overrides(set)) {
        Ok(loaded) => loaded,
        Err(report) => return fail(WRONG, &report.to_string()),
    };
    match app::explain(&loaded.config, &Question { method, url, headers, body, status, response, client }, json) {
        Ok(page) => {
            print!("{page}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(WRONG, &format!("error: {}\nhelp: {}", error.problem, error.remedy)),
    }
}

fn send_invalidation(invalidate: Invalidate) -> ExitCode {
    let order = Order {
        urls: invalidate.urls,
        tags: invalidate.tags,
        prefixes: invalidate.prefixes,
        routes: invalidate.routes,
        all: invalidate.all,
        soft: invalidate.soft,
    };
    let wait = if invalidate.wait { Wait::All(invalidate.wait_timeout) } else { Wait::None };
    ask(&invalidate.port, |client| client.invalidate(&order, wait))
}

fn show_limits(Limits { port, limit, parts, id, reset, json }: Limits) -> ExitCode {
    let form = if json { Form::Json } else { Form::Text };
    ask(&port, |client| match limit {
        None => client.limits(form),
        Some(limit) => client.limit(&Asked { limit, who: id.map_or(Who::Parts(parts), Who::Id) }, reset, form),
    })
}

fn send_drain(port: &AdminPort) -> ExitCode {
    ask(port, Client::drain)
}

fn ask(port: &AdminPort, call: impl FnOnce(&Client) -> Result<String, ClientError>) -> ExitCode {
    let token = match port.token_file.as_deref().map(std::fs::read_to_string).transpose() {
        Ok(token) => token.map(|token| Secret::new(token.trim())),
        Err(error) => {
            let file = port.token_file.as_deref().unwrap_or(Path::new(""));
            return fail(WRONG, &format!("{}: the token cannot be read: {error}", file.display()));
        }
    };
    let answer = Client::new(&port.admin, token.as_ref()).and_then(|client| call(&client));
    match answer {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => fail(WRONG, &error.to_string()),
    }
}

fn fail(code: u8, text: &str) -> ExitCode {
    eprintln!("{}", text.trim_end());
    ExitCode::from(code)
}
