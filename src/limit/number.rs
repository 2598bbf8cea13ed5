//! The number at a pointer of a JSON text, found as the text passes: nothing of it is kept but where in it one is.
//!
//! Strict where it matters: what stands at the pointer is a number by RFC 8259 or none. Elsewhere no more is checked than
//! is needed to know where one is: what passes is somebody else's, and goes to the client whatever it is.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::syntax::pointer::Pointer;

/// Objects and arrays that may be open at once: one bit is kept of each.
const DEPTH_MAX: usize = 128;

/// Most characters of a number that are read; a longer one is too large, if it is whole, and else is none.
const NUMBER_MAX: usize = 64;

/// Looks for one number.
#[derive(Debug, Clone)]
pub struct Search {
    pointer: Arc<Pointer>,
    at: At,
    /// Open objects and arrays.
    depth: usize,
    /// One bit for each, the last one lowest: set for objects.
    objects: u128,
    /// Steps of the pointer that lead to the value at hand, or to what it is in; `depth` of them if to itself. Behind an
    /// object or array on the way, until the next value, more.
    on: usize,
    /// Elements so far, of the array at each step of the pointer.
    elements: SmallVec<[u64; 4]>,
    key: Key,
    digits: SmallVec<[u8; 24]>,
    found: Option<f64>,
}

/// Where in the text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In front of a value.
    Value,
    /// In front of an array's first value, or its end.
    First,
    /// In front of a member's name; or of an object's end, at its beginning.
    Name {
        is_first: bool,
    },
    Colon,
    /// Behind a value.
    Behind,
    /// In a string, or in a name.
    Text {
        is_name: bool,
    },
    Escape {
        is_name: bool,
    },
    /// In `\u`, with so many digits to come.
    Unicode {
        is_name: bool,
        left: u8,
        code: u16,
    },
    /// In a number, a literal, or what cannot be told from one yet.
    Word {
        is_wanted: bool,
    },
    /// Nothing more is of interest.
    Over,
}

/// A member's name, as far as it has been compared with the pointer's step.
#[derive(Debug, Clone, Copy, Default)]
struct Key {
    is_same: bool,
    /// Bytes that are the same so far.
    length: usize,
    /// The first half of a pair of surrogates.
    high: Option<u16>,
}

impl Search {
    /// Looks for what stands at `pointer`.
    pub fn new(pointer: Arc<Pointer>) -> Self {
        Self {
            pointer,
            at: At::Value,
            depth: 0,
            objects: 0,
            on: 0,
            elements: SmallVec::new(),
            key: Key::default(),
            digits: SmallVec::new(),
            found: None,
        }
    }

    /// The same, in another text.
    pub fn restart(&mut self) {
        (self.at, self.depth, self.on, self.found) = (At::Value, 0, 0, None);
        self.digits.clear();
        self.elements.clear();
    }

    /// The number, if it has passed.
    pub fn found(&self) -> Option<f64> {
        self.found
    }

    /// Whether there is nothing more to look for.
    pub fn is_over(&self) -> bool {
        self.at == At::Over
    }

    /// A piece of the text.
    pub fn feed(&mut self, mut piece: &[u8]) {
        while let Some(&byte) = piece.first() {
            let mut taken = 1;
            match self.at {
                At::Over => return,
                // Most of a text is in strings that are none of our business.
                At::Text { is_name: false } => {
                    let end = memchr::memchr2(b'"', b'\\', piece);
                    taken = end.map_or(piece.len(), |end| end + 1);
                    match end.map(|end| piece[end]) {
                        Some(b'"') => self.at = At::Behind,
                        Some(_) => self.at = At::Escape { is_name: false },
                        None => {}
                    }
                }
                At::Word { is_wanted } if is_word(byte) => {
                    if is_wanted && self.digits.len() <= NUMBER_MAX {
                        self.digits.push(byte);
                    }
                }
                At::Word { is_wanted } => {
                    self.end_word(is_wanted);
                    taken = 0;
                }
                _ => self.step(byte),
            }
            piece = &piece[taken..];
        }
    }

    /// The text is over.
    pub fn end(&mut self) {
        if let At::Word { is_wanted } = self.at {
            self.end_word(is_wanted);
        }
    }

    fn step(&mut self, byte: u8) {
        self.at = match (self.at, byte) {
            (At::Value | At::First | At::Name { .. } | At::Colon | At::Behind, b' ' | b'\t' | b'\n' | b'\r') => return,
            (At::First, b']') | (At::Name { is_first: true }, b'}') => return self.close(),
            (At::Value | At::First, _) => return self.begin(byte),
            (At::Name { .. }, b'"') => {
                self.key = Key { is_same: self.is_on_way(), ..Key::default() };
                At::Text { is_name: true }
            }
            (At::Colon, b':') => At::Value,
            (At::Behind, b',') if self.depth > 0 && self.is_object() => At::Name { is_first: false },
            (At::Behind, b',') if self.depth > 0 => {
                self.element(false);
                At::Value
            }
            (At::Behind, b'}') if self.depth > 0 && self.is_object() => return self.close(),
            (At::Behind, b']') if self.depth > 0 && !self.is_object() => return self.close(),
            (At::Text { is_name }, b'\\') => At::Escape { is_name },
            (At::Text { .. }, b'"') => {
                self.end_name();
                At::Colon
            }
            (At::Text { .. }, _) => {
                self.compare(&[byte]);
                return;
            }
            (At::Escape { is_name }, b'u') => At::Unicode { is_name, left: 4, code: 0 },
            (At::Escape { is_name }, _) => {
                let Some(meant) = unescaped(byte) else { return self.give_up() };
                if is_name {
                    self.compare(&[meant]);
                }
                At::Text { is_name }
            }
            (At::Unicode { is_name, left, code }, _) => {
                let Some(digit) = char::from(byte).to_digit(16) else { return self.give_up() };
                let code = code << 4 | digit as u16;
                if left > 1 {
                    At::Unicode { is_name, left: left - 1, code }
                } else {
                    if is_name {
                        self.compare_unit(code);
                    }
                    At::Text { is_name }
                }
            }
            _ => return self.give_up(),
        };
    }

    /// The first character of a value.
    fn begin(&mut self, byte: u8) {
        let is_wanted = self.on == self.depth && self.depth == self.pointer.steps().len();
        self.at = match byte {
            b'{' | b'[' if is_wanted || self.depth == DEPTH_MAX => return self.give_up(),
            b'{' => {
                self.open(true);
                At::Name { is_first: true }
            }
            b'[' => {
                self.open(false);
                self.element(true);
                At::First
            }
            b'"' if is_wanted => return self.give_up(),
            b'"' => At::Text { is_name: false },
            _ if is_word(byte) => {
                if is_wanted {
                    self.digits.clear();
                    self.digits.push(byte);
                }
                At::Word { is_wanted }
            }
            _ => return self.give_up(),
        };
    }

    fn open(&mut self, is_object: bool) {
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(is_object);
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
        self.at = At::Behind;
        self.elements.truncate(self.depth);
        if self.depth == 0 {
            self.give_up();
        }
    }

    fn is_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// Whether the object or array at hand lies on the way, with a step to go.
    fn is_on_way(&self) -> bool {
        self.on + 1 >= self.depth && self.depth <= self.pointer.steps().len()
    }

    /// The next element of an array begins.
    fn element(&mut self, is_first: bool) {
        if !self.is_on_way() {
            return;
        }
        self.elements.resize(self.depth, 0);
        let nth = &mut self.elements[self.depth - 1];
        *nth = if is_first { 0 } else { *nth + 1 };
        let is_same = self.pointer.steps()[self.depth - 1].index == Some(*nth);
        self.on = self.depth - usize::from(!is_same);
    }

    fn end_name(&mut self) {
        if self.is_on_way() {
            let Key { is_same, length, high } = self.key;
            let is_same = is_same && high.is_none() && length == self.pointer.steps()[self.depth - 1].name.len();
            self.on = self.depth - usize::from(!is_same);
        }
    }

    /// Compares more of a member's name.
    fn compare(&mut self, bytes: &[u8]) {
        if !self.key.is_same {
            return;
        }
        let rest = self.pointer.steps()[self.depth - 1].name.as_bytes().get(self.key.length..);
        // Half a pair of surrogates is no character, and in no name.
        self.key.is_same = self.key.high.is_none() && rest.is_some_and(|rest| rest.starts_with(bytes));
        self.key.length += bytes.len();
    }

    /// The same with a unit of UTF-16.
    fn compare_unit(&mut self, unit: u16) {
        match self.key.high.take() {
            None if (0xd800..0xdc00).contains(&unit) => self.key.high = Some(unit),
            high => {
                let units = high.into_iter().chain([unit]);
                match char::decode_utf16(units).collect::<Result<String, _>>() {
                    Ok(text) => self.compare(text.as_bytes()),
                    Err(_) => self.key.is_same = false,
                }
            }
        }
    }

    fn end_word(&mut self, is_wanted: bool) {
        if is_wanted {
            self.found = number(&self.digits);
            return self.give_up();
        }
        self.at = At::Behind;
        if self.depth == 0 {
            self.give_up();
        }
    }

    /// It is found, or is not there, or this is no JSON.
    fn give_up(&mut self) {
        self.at = At::Over;
    }
}

/// What numbers and literals are made of.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

fn unescaped(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// A number by RFC 8259 section 6; one too large for a double is infinite.
fn number(word: &[u8]) -> Option<f64> {
    let digits = |text: &[u8]| text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = word.strip_prefix(b"-").unwrap_or(word);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest[0] == b'0') {
        return None;
    }
    if word.len() > NUMBER_MAX {
        // What is left out can only make it larger, or tells of it too late.
        return (rest.len() == whole).then_some(if word[0] == b'-' { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    let mut rest = &rest[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = digits(fraction);
        (length > 0).then_some(())?;
        rest = &fraction[length..];
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let exponent = exponent.strip_prefix(b"-").or_else(|| exponent.strip_prefix(b"+")).unwrap_or(exponent);
        let length = digits(exponent);
        (length > 0).then_some(())?;
        rest = &exponent[length..];
    }
    rest.is_empty().then_some(())?;
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
#[path = "number_tests.rs"]
mod tests;
