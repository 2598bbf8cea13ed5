//! The number in the last server-sent event that holds one, found as the events pass (HTML Living Standard, section
//! 9.2.6, "Interpreting an event stream").

use super::number::Search;

/// Looks through a stream of events.
#[derive(Debug, Clone)]
pub struct Events {
    search: Search,
    at: At,
    /// Whether the line before ended with CR, of which LF may be the rest.
    is_behind_cr: bool,
    /// Bytes of the event's data so far.
    length: usize,
    /// Most bytes of an event's data that are looked through.
    most: usize,
    last: Option<f64>,
    was_cut: bool,
}

/// Where in a line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In its name, of which so many characters are those of `data`.
    Name(usize),
    /// Behind the colon, in front of what may be one space.
    Colon,
    Data,
    /// In a line that is none of our business.
    Other,
}

const DATA: &[u8] = b"data";

impl Events {
    /// Looks by `search` through at most so many bytes of each event's data.
    pub fn new(search: Search, most: usize) -> Self {
        Self { search, at: At::Name(0), is_behind_cr: false, length: 0, most, last: None, was_cut: false }
    }

    /// The last number, that of an event which has not ended included.
    pub fn last(&self) -> Option<f64> {
        self.search.found().or(self.last)
    }

    /// Whether an event was too large to be looked through.
    pub fn was_cut(&self) -> bool {
        self.was_cut
    }

    /// A piece of the stream.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while let Some(&byte) = piece.first() {
            let is_rest = std::mem::take(&mut self.is_behind_cr) && byte == b'\n';
            if is_rest {
                piece = &piece[1..];
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                self.is_behind_cr = byte == b'\r';
                self.end_line();
                piece = &piece[1..];
                continue;
            }
            let mut taken = 1;
            match (self.at, byte) {
                (At::Name(length), b':') => self.at = if length == DATA.len() { At::Colon } else { At::Other },
                (At::Name(length), _) if DATA.get(length) == Some(&byte) => self.at = At::Name(length + 1),
                (At::Colon, b' ') => self.at = At::Data,
                (At::Colon | At::Data, _) => {
                    taken = memchr::memchr2(b'\n', b'\r', piece).unwrap_or(piece.len());
                    self.at = At::Data;
                    self.data(&piece[..taken]);
                }
                (At::Name(_) | At::Other, _) => {
                    taken = memchr::memchr2(b'\n', b'\r', piece).unwrap_or(piece.len());
                    self.at = At::Other;
                }
            }
            piece = &piece[taken..];
        }
    }

    /// The stream is over; an event that was not ended counts.
    pub fn end(&mut self) {
        self.end_event();
    }

    fn data(&mut self, piece: &[u8]) {
        let room = self.most - self.length;
        self.length += piece.len().min(room);
        self.search.feed(&piece[..piece.len().min(room)]);
        self.was_cut |= piece.len() > room && !self.search.is_over();
    }

    fn end_line(&mut self) {
        match std::mem::replace(&mut self.at, At::Name(0)) {
            // An empty line ends the event.
            At::Name(0) => self.end_event(),
            // Its lines are one text, with a line's end in between.
            At::Colon | At::Data => self.data(b"\n"),
            At::Name(_) | At::Other => {}
        }
    }

    fn end_event(&mut self) {
        // A number that was cut off is none.
        if self.length < self.most {
            self.search.end();
        }
        self.last = self.last();
        self.search.restart();
        self.length = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::syntax::pointer::Pointer;

    const MOST: usize = 64;

    fn events() -> Events {
        Events::new(Search::new(Arc::new(Pointer::parse("/usage/total").unwrap())), MOST)
    }

    /// What is found, in pieces of every size alike.
    fn last(stream: &str) -> (Option<f64>, bool) {
        let mut all = (1..=stream.len().max(1)).map(|size| {
            let mut events = events();
            stream.as_bytes().chunks(size).for_each(|piece| events.feed(piece));
            events.end();
            (events.last(), events.was_cut())
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "{stream:?}");
        first
    }

    #[test]
    fn the_last_event_that_holds_a_number_says_it() {
        for (stream, expected) in [
            ("data: {\"usage\":{\"total\":7}}\n\n", Some(7.0)),
            ("data: {\"usage\":{\"total\":7}}\r\n\r\n", Some(7.0)),
            ("data: {\"usage\":{\"total\":7}}\r\r", Some(7.0)),
            ("data:{\"usage\":{\"total\":7}}\n\n", Some(7.0)),
            ("data: {\"usage\":{\"total\":1}}\n\ndata: {\"usage\":{\"total\":2}}\n\ndata: [DONE]\n\n", Some(2.0)),
            ("data: {\"usage\":{\"total\":1}}\n\ndata: {\"usage\":null}\n\n", Some(1.0)),
            (": hello\nevent: x\nid: 1\nretry: 5\ndata: {\"usage\":{\"total\":3}}\n\n", Some(3.0)),
            // Several lines are one text.
            ("data: {\"usage\":\ndata: {\"total\":\ndata\ndata: 4}}\n\n", Some(4.0)),
            ("data: {\"usage\":\r\ndata: {\"total\":4}}\r\n\r\n", Some(4.0)),
            // Not data, though it looks like it.
            ("dat: {\"usage\":{\"total\":7}}\n\n", None),
            ("datas: {\"usage\":{\"total\":7}}\n\n", None),
            (" data: {\"usage\":{\"total\":7}}\n\n", None),
            ("x: data: {\"usage\":{\"total\":7}}\n\n", None),
            // Two events, of which neither is whole.
            ("data: {\"usage\":\n\ndata: {\"total\":4}}\n\n", None),
            // Cut off behind the number, before the event's end, and inside of it.
            ("data: {\"usage\":{\"total\":7}}", Some(7.0)),
            ("data: {\"usage\":{\"total\":7}}\n\ndata: {\"usage\":{\"to", Some(7.0)),
            ("", None),
            ("\n\n\n", None),
        ] {
            assert_eq!(last(stream), (expected, false), "{stream:?}");
        }
    }

    #[test]
    fn an_event_that_is_too_large_holds_nothing_and_those_beside_it_do() {
        let large = format!("data: {{\"text\":\"{}\",\"usage\":{{\"total\":9}}}}\n\n", "x".repeat(MOST));
        let small = "data: {\"usage\":{\"total\":5}}\n\n";
        assert_eq!(last(&large), (None, true));
        assert_eq!(last(&format!("{small}{large}")), (Some(5.0), true));
        assert_eq!(last(&format!("{large}{small}")), (Some(5.0), true));
        // What was found before is found.
        let early = format!("data: {{\"usage\":{{\"total\":9}},\"text\":\"{}\"}}\n\n", "x".repeat(MOST));
        assert_eq!(last(&early), (Some(9.0), false));
    }

    #[test]
    fn a_number_that_is_cut_off_is_none() {
        let mut events = Events::new(Search::new(Arc::new(Pointer::parse("").unwrap())), 4);
        events.feed(b"data: 123456\n\n");
        assert_eq!((events.last(), events.was_cut()), (None, true));
        events.feed(b"data: 123\n\n");
        assert_eq!(events.last(), Some(123.0));
    }
}
