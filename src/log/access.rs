//! The access log: one line a request.

use std::io::Write;
use std::net::IpAddr;

use super::line;
use crate::clock::WallMs;
use crate::metrics::{Outcome, Tier};

/// What is said of a request that ended.
///
/// The query is left out: it may hold secrets. So are all fields but the request id.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// When it ended.
    pub time_ms: WallMs,
    /// Who asked, as trusted proxies tell it.
    pub client: IpAddr,
    /// Method.
    pub method: &'a str,
    /// Authority, or empty.
    pub host: &'a str,
    /// Path, without the query.
    pub path: &'a str,
    /// Status sent; 0 where the client left first.
    pub status: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// Which tier answered, where one did.
    pub tier: Option<Tier>,
    /// The limit that denied it, if one did.
    pub limit: Option<&'a str>,
    /// Limits that only count, and would have denied it.
    pub dry_run: &'a [&'a str],
    /// Route's name, `-` for none.
    pub route: &'a str,
    /// From head to last byte.
    pub duration_us: u64,
    /// From the upstream request to its response head, where there was one.
    pub upstream_us: Option<u64>,
    /// Bytes of the body sent.
    pub bytes: u64,
    /// `X-Request-Id`, where there is one.
    pub request_id: Option<&'a str>,
}

impl Access<'_> {
    /// Appends the line as a JSON object and its line end.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"timestamp\":\"");
        line::timestamp(out, self.time_ms);
        out.extend_from_slice(b"\",\"level\":\"INFO\",\"target\":\"access\"");
        json_text(out, "client", |out| write(out, self.client));
        json_text(out, "method", |out| line::json(out, self.method));
        json_text(out, "host", |out| line::json(out, self.host));
        json_text(out, "path", |out| line::json(out, self.path));
        json_number(out, "status", u64::from(self.status));
        json_text(out, "outcome", |out| out.extend_from_slice(self.outcome.as_str().as_bytes()));
        if let Some(tier) = self.tier {
            json_text(out, "tier", |out| out.extend_from_slice(tier.as_str().as_bytes()));
        }
        json_text(out, "route", |out| line::json(out, self.route));
        if let Some(limit) = self.limit {
            json_text(out, "limit", |out| line::json(out, limit));
        }
        for (nth, limit) in self.dry_run.iter().enumerate() {
            out.extend_from_slice(if nth == 0 { b",\"dry_run\":[\"" } else { b"\",\"" });
            line::json(out, limit);
        }
        if !self.dry_run.is_empty() {
            out.extend_from_slice(b"\"]");
        }
        json_number(out, "duration_us", self.duration_us);
        if let Some(upstream_us) = self.upstream_us {
            json_number(out, "upstream_us", upstream_us);
        }
        json_number(out, "bytes", self.bytes);
        if let Some(id) = self.request_id {
            json_text(out, "request_id", |out| line::json(out, id));
        }
        out.extend_from_slice(b"}\n");
    }

    /// Appends the line for people, and its line end.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        line::timestamp(out, self.time_ms);
        out.extend_from_slice(b"  INFO access: ");
        write(out, self.client);
        out.push(b' ');
        line::word(out, self.method);
        out.push(b' ');
        line::word(out, self.host);
        out.push(b' ');
        line::word(out, self.path);
        out.push(b' ');
        number(out, u64::from(self.status));
        out.push(b' ');
        out.extend_from_slice(self.outcome.as_str().as_bytes());
        out.extend_from_slice(b" route=");
        line::word(out, self.route);
        if let Some(tier) = self.tier {
            out.extend_from_slice(b" tier=");
            out.extend_from_slice(tier.as_str().as_bytes());
        }
        if let Some(limit) = self.limit {
            out.extend_from_slice(b" limit=");
            line::word(out, limit);
        }
        for (nth, limit) in self.dry_run.iter().enumerate() {
            out.extend_from_slice(if nth == 0 { b" dry_run=" } else { b"," });
            line::word(out, limit);
        }
        out.extend_from_slice(b" took=");
        millis(out, self.duration_us);
        if let Some(upstream_us) = self.upstream_us {
            out.extend_from_slice(b" upstream=");
            millis(out, upstream_us);
        }
        out.extend_from_slice(b" bytes=");
        number(out, self.bytes);
        if let Some(id) = self.request_id {
            out.extend_from_slice(b" id=");
            line::word(out, id);
        }
        out.push(b'\n');
    }
}

fn json_text(out: &mut Vec<u8>, name: &'static str, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":\"");
    value(out);
    out.push(b'"');
}

fn json_number(out: &mut Vec<u8>, name: &'static str, value: u64) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    number(out, value);
}

fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Microseconds as milliseconds with three decimals.
fn millis(out: &mut Vec<u8>, us: u64) {
    number(out, us / 1000);
    out.push(b'.');
    line::digits(out, us, 3);
    out.extend_from_slice(b"ms");
}

fn write(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    write!(out, "{value}").expect("writing to memory does not fail");
}
