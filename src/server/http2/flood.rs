//! Frames that cost their receiver work and bring nothing: followed by their heads alone, and counted against what a
//! well-behaved client needs.
//!
//! The framing library answers each such frame as the RFC has it, for as long as they come. What an attack looks like is
//! not in the frame but in the proportion: resets to answers, housekeeping to data (CVE-2023-44487, CVE-2025-8671 and the
//! floods of CVE-2019-9511 to 9518).

use tokio::time::{Duration, Instant};

use crate::config::Http2Limits;

/// What the limits count within.
pub(super) const WINDOW: Duration = Duration::from_secs(10);

/// The connection preface of a client (RFC 9113 section 3.4), which stands before its first frame.
pub(super) const PREFACE: usize = 24;

/// A frame's head (RFC 9113 section 4.1).
const HEAD: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
/// The farewell (RFC 9113 section 6.8).
pub(super) const GOAWAY: u8 = 0x7;
const END_STREAM: u8 = 0x1;

/// Housekeeping that a client may send for each frame of an answer: one update of the stream's window, one of the
/// connection's, a ping to measure with, and one to spare.
const EARNED_BY_FRAME: u32 = 4;

/// What came too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// Streams that were begun and reset, by either side.
    Resets,
    /// Pings, settings, priorities, window updates, empty data, continuations, unknown frames.
    Control,
}

/// What a frame's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    pub length: u32,
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

/// Finds the frames in bytes that pass in pieces of any size.
pub(super) struct Walker {
    /// Bytes of payload, or of the preface, still to pass.
    skip: usize,
    head: [u8; HEAD],
    /// How much of the next head has passed.
    have: usize,
}

impl Walker {
    /// Begins so many bytes before the first frame.
    pub(super) fn new(skip: usize) -> Self {
        Self { skip, head: [0; HEAD], have: 0 }
    }

    /// Calls `each` for every frame whose head is complete with these bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD - self.have).min(bytes.len());
            if taken == 0 {
                return;
            }
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEAD {
                return;
            }
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
            let length = u32::from_be_bytes([0, l0, l1, l2]);
            self.have = 0;
            self.skip = length as usize;
            each(Frame { length, kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]) });
        }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.skip == 0 && self.have == 0
    }
}

/// What one connection has sent of what brings nothing.
pub(super) struct Tally {
    limits: Http2Limits,
    resets: u32,
    control: u32,
    since: Instant,
}

impl Tally {
    pub(super) fn new(limits: Http2Limits, now: Instant) -> Self {
        Self { limits, resets: 0, control: 0, since: now }
    }

    /// Counts a frame of the client.
    pub(super) fn came(&mut self, frame: Frame, now: impl FnOnce() -> Instant) -> Option<Flood> {
        match frame.kind {
            HEADERS => None,
            DATA if frame.length > 0 || frame.flags & END_STREAM != 0 => None,
            RST_STREAM => self.reset(now),
            _ => {
                self.control += 1;
                (self.control > self.limits.control_frames && !self.is_over(now)).then_some(Flood::Control)
            }
        }
    }

    /// Counts a frame of ours: an answer earns what belongs to it, and a reset that the client provoked is its own.
    pub(super) fn went(&mut self, frame: Frame, now: impl FnOnce() -> Instant) -> Option<Flood> {
        if frame.kind == RST_STREAM {
            return self.reset(now);
        }
        if matches!(frame.kind, DATA | HEADERS) {
            self.control = self.control.saturating_sub(EARNED_BY_FRAME);
            if frame.flags & END_STREAM != 0 {
                self.resets = self.resets.saturating_sub(1);
            }
        }
        None
    }

    fn reset(&mut self, now: impl FnOnce() -> Instant) -> Option<Flood> {
        self.resets += 1;
        (self.resets > self.limits.resets && !self.is_over(now)).then_some(Flood::Resets)
    }

    /// Whether the window has passed, in which case the next one begins. The clock is read only by who is at a limit.
    fn is_over(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let now = now();
        let is_over = now.saturating_duration_since(self.since) >= WINDOW;
        if is_over {
            (self.resets, self.control, self.since) = (0, 0, now);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Http2Limits = Http2Limits { resets: 3, control_frames: 5, ..crate::server::sample::LIMITS.http2 };

    fn frame(length: u32, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
        let mut bytes = length.to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(vec![b'x'; length as usize]);
        bytes
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let frames = [(0, 4, 0, 0), (30, 1, 5, 1), (0, 0, 1, 1), (8, 6, 0, 0x8000_0000)];
        for (length, kind, flags, stream) in frames {
            bytes.extend(frame(length, kind, flags, stream));
        }
        for step in 1..=bytes.len() {
            let (mut walker, mut found) = (Walker::new(PREFACE), Vec::new());
            for piece in bytes.chunks(step) {
                walker.feed(piece, |frame| found.push((frame.length, frame.kind, frame.flags, frame.stream)));
            }
            assert_eq!(found, [(0, 4, 0, 0), (30, 1, 5, 1), (0, 0, 1, 1), (8, 6, 0, 0)], "pieces of {step}");
            assert!(walker.is_between());
        }
        let mut walker = Walker::new(0);
        walker.feed(&frame(30, 1, 5, 1)[..20], |_| {});
        assert!(!walker.is_between());
    }

    fn tally() -> (Tally, Instant) {
        let now = Instant::now();
        (Tally::new(LIMITS, now), now)
    }

    const RESET: Frame = Frame { length: 4, kind: RST_STREAM, flags: 0, stream: 1 };
    const PING: Frame = Frame { length: 8, kind: 6, flags: 0, stream: 0 };
    const ANSWER: Frame = Frame { length: 100, kind: DATA, flags: END_STREAM, stream: 1 };

    #[test]
    fn more_than_the_limit_in_a_window_is_a_flood() {
        let (mut tally, now) = tally();
        for _ in 0..3 {
            assert_eq!(tally.came(RESET, || now), None);
        }
        assert_eq!(tally.came(RESET, || now + WINDOW / 2), Some(Flood::Resets));
        let (mut tally, now) = self::tally();
        for _ in 0..5 {
            assert_eq!(tally.came(PING, || now), None);
        }
        assert_eq!(tally.came(PING, || now), Some(Flood::Control));
    }

    #[test]
    fn the_same_number_over_a_longer_time_is_none() {
        let (mut tally, now) = tally();
        for second in 0..1_000 {
            assert_eq!(tally.came(RESET, || now + WINDOW * second), None);
            assert_eq!(tally.came(PING, || now + WINDOW * second), None);
        }
    }

    #[test]
    fn answers_earn_what_belongs_to_them() {
        let (mut tally, now) = tally();
        for _ in 0..1_000 {
            assert_eq!(tally.came(RESET, || now), None);
            for _ in 0..4 {
                assert_eq!(tally.came(PING, || now), None);
            }
            assert_eq!(tally.went(ANSWER, || now), None);
        }
    }

    #[test]
    fn resets_that_a_client_provokes_are_its_own() {
        let (mut tally, now) = tally();
        let flooded: Vec<_> = (0..4).map(|_| tally.went(RESET, || now)).collect();
        assert_eq!(flooded, [None, None, None, Some(Flood::Resets)]);
    }

    #[test]
    fn data_and_heads_are_no_housekeeping_and_empty_data_is() {
        let (mut tally, now) = tally();
        for _ in 0..100 {
            assert_eq!(tally.came(ANSWER, || now), None);
            assert_eq!(tally.came(Frame { length: 0, ..ANSWER }, || now), None);
            assert_eq!(tally.came(Frame { kind: HEADERS, flags: 4, ..ANSWER }, || now), None);
        }
        let empty = Frame { length: 0, flags: 0, ..ANSWER };
        let flooded = (0..6).find_map(|_| tally.came(empty, || now));
        assert_eq!(flooded, Some(Flood::Control));
    }
}
