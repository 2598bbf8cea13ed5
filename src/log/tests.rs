use std::sync::mpsc;

use proptest::prelude::*;

use super::line;
use super::*;
use crate::metrics::{Outcome, Tier};

const JSON: Log = Log { format: LogFormat::Json, access: true };
const TEXT: Log = Log { format: LogFormat::Text, access: true };
const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(lock(&self.0).clone()).expect("lines are UTF-8")
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits in its first write until the gate's other end is dropped.
struct Stuck(mpsc::Receiver<()>, Page);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn access(path: &str) -> Access<'_> {
    Access {
        time_ms: 1_709_210_096_789,
        client: [10, 0, 0, 7].into(),
        method: "GET",
        host: "shop.example",
        path,
        status: 200,
        outcome: Outcome::Hit,
        tier: Some(Tier::Memory),
        limit: None,
        dry_run: &[],
        route: "catalog",
        duration_us: 1042,
        upstream_us: None,
        bytes: 1024,
        request_id: Some("abc"),
    }
}

fn json_line(access: &Access<'_>) -> String {
    let mut out = Vec::new();
    access.write_json(&mut out);
    String::from_utf8(out).expect("lines are UTF-8")
}

fn text_line(access: &Access<'_>) -> String {
    let mut out = Vec::new();
    access.write_text(&mut out);
    String::from_utf8(out).expect("lines are UTF-8")
}

fn shown(ms: u64) -> String {
    let mut out = Vec::new();
    line::timestamp(&mut out, ms);
    String::from_utf8(out).expect("ASCII")
}

#[test]
fn an_access_line_in_json() {
    assert_eq!(
        json_line(&access("/catalog/1")),
        concat!(
            r#"{"timestamp":"2024-02-29T12:34:56.789Z","level":"INFO","target":"access","client":"10.0.0.7","#,
            r#""method":"GET","host":"shop.example","path":"/catalog/1","status":200,"outcome":"hit","#,
            r#""tier":"memory","route":"catalog","duration_us":1042,"bytes":1024,"request_id":"abc"}"#,
            "\n"
        )
    );
}

#[test]
fn an_access_line_for_people() {
    let access = Access { upstream_us: Some(900), tier: None, host: "", request_id: None, ..access("/a") };
    assert_eq!(
        text_line(&access),
        "2024-02-29T12:34:56.789Z  INFO access: 10.0.0.7 GET - /a 200 hit route=catalog took=1.042ms upstream=0.900ms bytes=1024\n"
    );
}

#[test]
fn an_access_line_names_the_limits_that_denied_or_would_have() {
    let access = Access { limit: Some("a"), dry_run: &["b", "c \"d\""], ..access("/a") };
    let value: serde_json::Value = serde_json::from_str(&json_line(&access)).expect("JSON");
    assert_eq!((&value["limit"], &value["dry_run"]), (&"a".into(), &serde_json::json!(["b", "c \"d\""])));
    assert!(text_line(&access).contains(" limit=a dry_run=b,c\\u{20}\"d\" took="), "{}", text_line(&access));
}

#[test]
fn a_long_field_is_cut_between_characters() {
    let path = "/".to_owned() + &"é".repeat(line::FIELD_BYTES);
    let value: serde_json::Value = serde_json::from_str(&json_line(&access(&path))).expect("JSON");
    let logged = value["path"].as_str().expect("text");
    assert!(logged.len() <= line::FIELD_BYTES + 3 && logged.ends_with("é..."), "{}", logged.len());
}

#[test]
fn dates_are_those_of_the_calendar() {
    assert_eq!(shown(0), "1970-01-01T00:00:00.000Z");
    assert_eq!(shown(951_782_400_000), "2000-02-29T00:00:00.000Z");
    assert_eq!(shown(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
}

/// Anything a client could send, with the dangerous characters more often than chance would have them.
fn hostile() -> impl Strategy<Value = String> {
    let one = prop_oneof![
        any::<char>(),
        proptest::sample::select(vec![
            '\r', '\n', '\u{1b}', '\u{9b}', '\u{85}', '\0', '"', '\\', '\u{2028}', '\u{202e}', ' '
        ])
    ];
    proptest::collection::vec(one, 0..200).prop_map(|chars| chars.into_iter().collect())
}

fn one_tame_line(line: &str) -> bool {
    let inside = line.strip_suffix('\n').unwrap_or("\n");
    !inside.chars().any(|c| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}'))
}

proptest! {
    #[test]
    fn a_line_is_one_line(path in hostile(), host in hostile(), id in hostile(), method in hostile(), route in hostile()) {
        let access = Access { host: &host, request_id: Some(&id), method: &method, route: &route, ..access(&path) };
        let json = json_line(&access);
        prop_assert!(one_tame_line(&json), "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        prop_assert_eq!(value["path"].as_str(), Some(path.as_str()));
        prop_assert_eq!(value["request_id"].as_str(), Some(id.as_str()));

        let text = text_line(&access);
        prop_assert!(one_tame_line(&text), "{text:?}");
        prop_assert_eq!(text.trim_end_matches('\n').split_whitespace().count(), 14, "one word a field: {}", text);
    }

    #[test]
    fn an_event_is_one_line(text in hostile()) {
        for config in [JSON, TEXT] {
            let mut out = Vec::new();
            let event = if matches!(config.format, LogFormat::Json) { serde_json::to_string(&text).expect("JSON") } else { text.clone() };
            line::whole(&mut out, &event, config.format);
            out.push(b'\n');
            let out = String::from_utf8(out).expect("UTF-8");
            prop_assert!(one_tame_line(&out), "{out:?}");
            if matches!(config.format, LogFormat::Json) {
                prop_assert_eq!(serde_json::from_str::<String>(&out).expect("JSON"), text.clone());
            }
        }
    }

    #[test]
    fn timestamps_read_back(ms in 0u64..253_402_300_800_000) {
        // httpdate knows the calendar too, to the second.
        let read = httpdate::parse_http_date(&httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_millis(ms)));
        let civil = shown(ms);
        let ours = read.expect("a date").duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        prop_assert_eq!(ours, ms / 1000);
        let http = httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_millis(ms));
        prop_assert_eq!(&http[5..7], &civil[8..10], "day");
        prop_assert_eq!(&http[12..16], &civil[..4], "year");
        prop_assert_eq!(&http[17..25], &civil[11..19], "time");
    }
}

#[test]
fn every_worker_s_lines_arrive_whole() {
    let page = Page::default();
    let sink = Sink::to(page.clone(), JSON);
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let sink = sink.for_worker();
            thread::spawn(move || {
                for n in 0..250 {
                    sink.access(&access(&format!("/{worker}/{n}")));
                }
                sink
            })
        })
        .collect();
    let sinks: Vec<_> = workers.into_iter().map(|worker| worker.join().expect("no panic")).collect();
    sink.flush(SOON);
    let page = page.text();
    assert_eq!(page.lines().count(), 1000);
    assert!(page.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    for worker in 0..sinks.len() {
        let order: Vec<_> = page.lines().filter(|line| line.contains(&format!("\"/{worker}/"))).collect();
        assert!(order[0].contains("/0\"") && order[249].contains("/249\""), "a worker's lines keep their order");
    }
}

#[test]
fn a_slow_reader_costs_lines_and_no_time() {
    let (gate, closed) = mpsc::channel();
    let page = Page::default();
    let sink = Sink::to(Stuck(closed, page.clone()), JSON);
    let line = json_line(&access("/a")).len();
    let sent = 5 * BUFFER_BYTES / line;
    for _ in 0..sent {
        sink.access(&access("/a"));
    }
    let dropped = sink.dropped_total().get() as usize;
    assert!(dropped > 0, "the buffer has a bound");
    drop(gate);
    sink.flush(SOON);
    assert_eq!(page.text().lines().count() + dropped, sent, "a line is written or counted");
}

#[test]
fn a_reader_that_is_gone_is_counted() {
    let sink = Sink::to(Gone, TEXT);
    sink.access(&access("/a"));
    sink.access(&access("/b"));
    sink.flush(SOON);
    assert_eq!(sink.dropped_total().get(), 2);
}

#[test]
fn the_access_log_can_be_off() {
    let page = Page::default();
    let sink = Sink::to(page.clone(), Log { access: false, ..TEXT });
    sink.access(&access("/a"));
    sink.set_access(true);
    sink.access(&access("/b"));
    sink.flush(SOON);
    assert!(!page.text().contains("/a") && page.text().contains("/b"));
}

#[test]
fn lines_are_written_without_a_flush() {
    let page = Page::default();
    let sink = Sink::to(page.clone(), TEXT);
    // Idle first, so that the line must wake the writer.
    sink.flush(SOON);
    sink.access(&access("/a"));
    let waiting = Stopwatch::start();
    while page.text().is_empty() {
        assert!(waiting.elapsed() < SOON);
        thread::yield_now();
    }
}

#[test]
fn events_go_through_the_formatter_as_one_line() {
    let page = Page::default();
    let sink = Sink::to(page.clone(), JSON);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(None).0)
        .with_writer(Events { sink: sink.clone() })
        .json()
        .flatten_event(true)
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        tracing::info!(url = "redis://a\r\nb\u{9b}2J", "the breaker opened");
        tracing::debug!("not at this level");
    });
    sink.flush(SOON);
    let page = page.text();
    assert!(page.lines().count() == 1 && one_tame_line(&page), "{page:?}");
    let value: serde_json::Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!((&value["level"], &value["message"]), (&"INFO".into(), &"the breaker opened".into()));
    assert_eq!(value["url"], "redis://a\r\nb\u{9b}2J");
}

#[test]
fn a_bad_level_falls_back_and_says_so() {
    assert!(filter(None).1.is_none() && filter(Some("")).1.is_none() && filter(Some("debug")).1.is_none());
    assert!(filter(Some("weir=kv=deep")).1.is_some());
}
