//! The grammars of fields, read slowly: RFC 9110 sections 5.6 and 8.8.3, RFC 9111 sections 1.2.2 and 5.2, RFC 9651.

use super::Fields;

/// The values of all lines of a field.
pub fn lines<'f>(fields: &'f Fields, name: &str) -> Vec<&'f str> {
    fields.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str()).collect()
}

/// A directive's argument, as far as caches care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// There is none.
    Absent,
    /// `?0`: it is not said (RFC 9213 section 2.1).
    Not,
    /// A number of seconds.
    Seconds(u64),
    /// Anything else.
    Other,
}

/// The directives of `Cache-Control` in order, names in lower case.
pub fn directives(lines: &[&str]) -> Vec<(String, Argument)> {
    let mut found = Vec::new();
    for line in lines {
        let mut rest: String = (*line).to_owned();
        loop {
            rest = rest.trim_start_matches([',', ' ', '\t']).to_owned();
            if rest.is_empty() {
                break;
            }
            // What is no list is read for the worse: what follows a space is a directive of its own, and a quote that is
            // never closed quotes nothing.
            let name: String = rest.chars().take_while(|c| !"=, \t".contains(*c)).collect();
            rest = rest[name.len()..].to_owned();
            let mut argument = Argument::Absent;
            if let Some(after) = rest.strip_prefix('=') {
                let quoted = quoted_string(after);
                let open = quoted.as_ref().map_or(0, String::len);
                let tail: String = after[open..].chars().take_while(|c| !", \t".contains(*c)).collect();
                let inner = quoted.filter(|_| tail.is_empty()).map(|quoted| quoted[1..quoted.len() - 1].to_owned());
                let text = inner.unwrap_or_else(|| after[..open + tail.len()].to_owned());
                argument = seconds(&text).map_or(Argument::Other, Argument::Seconds);
                rest = after[open + tail.len()..].to_owned();
            }
            found.push((name.to_ascii_lowercase(), argument));
        }
    }
    found
}

/// The quoted string that `text` begins with, quotes included; one that is never closed is none.
fn quoted_string(text: &str) -> Option<String> {
    let mut taken = String::new();
    let mut escaped = false;
    for c in text.chars() {
        if taken.is_empty() && c != '"' {
            return None;
        }
        taken.push(c);
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == '"' && taken.len() > 1 {
            return Some(taken);
        }
    }
    None
}

/// Section 1.2.2: digits, and nothing above 2^31.
pub fn seconds(text: &str) -> Option<u64> {
    if text.is_empty() || text.chars().any(|c| !c.is_ascii_digit()) {
        return None;
    }
    Some(text.parse::<u128>().map_or(1 << 31, |number| number.min(1 << 31) as u64))
}

/// A dictionary of structured fields; of a name that comes twice the last member counts.
pub fn dictionary(lines: &[&str]) -> Option<Vec<(String, Argument)>> {
    let mut members: Vec<(String, Argument)> = Vec::new();
    for member in lines.join(", ").split(',') {
        // The grammar of the histories has no commas in strings.
        let member = member.trim_matches([' ', '\t']);
        let (name, value) = match member.split_once('=') {
            Some((name, value)) if !name.contains(';') => (name, Some(value)),
            _ => (member, None),
        };
        let name = name.split(';').next().unwrap_or_default();
        let mut letters = name.chars();
        let first = letters.next()?;
        let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c);
        if !(first.is_ascii_lowercase() || first == '*') || !letters.all(is_key) {
            return None;
        }
        let argument = match value.map(|value| value.split(';').next().unwrap_or_default()) {
            None | Some("?1") => Argument::Absent,
            Some("?0") => Argument::Not,
            Some(value) => item(value)?,
        };
        members.retain(|(earlier, _)| earlier != name);
        members.push((name.to_owned(), argument));
    }
    Some(members)
}

fn item(text: &str) -> Option<Argument> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.chars().all(|c| c.is_ascii_digit()) {
        let fits = !digits.is_empty() && digits.len() <= 15;
        let number = if text.starts_with('-') { Some(0) } else { seconds(digits) };
        return number.filter(|_| fits).map(Argument::Seconds);
    }
    if let Some((whole, fraction)) = digits.split_once('.') {
        let all_digits = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        let fits = all_digits(whole) && all_digits(fraction) && whole.len() <= 12 && fraction.len() <= 3;
        return fits.then_some(Argument::Other);
    }
    let is_string = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    let is_token = text.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '*')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c));
    (is_string || is_token).then_some(Argument::Other)
}

/// Entity tags of a list in order, up to the first thing that is none; `None` is `*` alone.
pub fn entity_tags(list: &str) -> Option<Vec<String>> {
    let mut rest = list.trim();
    if rest == "*" {
        return None;
    }
    let mut tags = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let weak = if rest.starts_with("W/") { "W/" } else { "" };
        let Some(quoted) = rest[weak.len()..].strip_prefix('"') else { return Some(tags) };
        let Some((inner, after)) = quoted.split_once('"') else { return Some(tags) };
        tags.push(format!("{weak}\"{inner}\""));
        rest = after;
    }
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const DAY_S: u64 = 24 * 60 * 60;

/// Section 5.6.7: milliseconds since 1970, from any of the three forms.
pub fn date(text: &str) -> Option<u64> {
    let text = text.trim();
    fixed(text).or_else(|| rfc850(text)).or_else(|| asctime(text)).map(|seconds| seconds * 1000)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn fixed(text: &str) -> Option<u64> {
    let [name, day, month, year, time, "GMT"] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let weekday = DAYS.iter().position(|day| name == format!("{},", &day[..3]))?;
    moment(weekday, number(year, 4)?, month, number(day, 2)?, time)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &str) -> Option<u64> {
    let [name, date, time, "GMT"] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let weekday = DAYS.iter().position(|day| name == format!("{day},"))?;
    let [day, month, year] = date.split('-').collect::<Vec<_>>()[..] else { return None };
    let year = number(year, 2)?;
    // Section 5.6.7 would have the century turn 50 years from now; it does from 2020 on, whatever the clock says.
    let century = if year < 70 { 2000 } else { 1900 };
    moment(weekday, century + year, month, number(day, 2)?, time)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<u64> {
    let (name, rest) = text.split_once(' ')?;
    let weekday = DAYS.iter().position(|day| name == &day[..3])?;
    let (month, rest) = rest.split_once(' ')?;
    let (day, rest) = rest.split_at_checked(2)?;
    let day = day.strip_prefix(' ').map_or_else(|| number(day, 2), |day| number(day, 1))?;
    let (time, year) = rest.strip_prefix(' ')?.split_once(' ')?;
    moment(weekday, number(year, 4)?, month, day, time)
}

fn number(text: &str, digits: usize) -> Option<u64> {
    let sound = text.len() == digits && text.chars().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| sound)
}

/// A date whose parts contradict each other is none.
fn moment(weekday: usize, year: u64, month: &str, day: u64, time: &str) -> Option<u64> {
    let month = MONTHS.iter().position(|name| *name == month)?;
    let [hours, minutes, seconds] = time.split(':').map(|part| number(part, 2)).collect::<Option<Vec<_>>>()?[..] else {
        return None;
    };
    if year < 1970 || day < 1 || day > month_days(year, month) || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let years: u64 = (1970..year).map(year_days).sum();
    let days = years + (0..month).map(|month| month_days(year, month)).sum::<u64>() + day - 1;
    (weekday_of(days) == weekday).then_some(days * DAY_S + hours * 3600 + minutes * 60 + seconds)
}

/// The first of January 1970 was a Thursday.
fn weekday_of(days: u64) -> usize {
    (days as usize + 3) % 7
}

fn year_days(year: u64) -> u64 {
    365 + u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)))
}

fn month_days(year: u64, month: usize) -> u64 {
    match month {
        1 => year_days(year) - 337,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

/// Writes a date in one of the three forms.
pub fn spell(at_ms: u64, form: usize) -> String {
    let (mut days, of_day) = (at_ms / 1000 / DAY_S, at_ms / 1000 % DAY_S);
    let name = DAYS[weekday_of(days)];
    let (mut year, mut month) = (1970, 0);
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    let (day, month) = (days + 1, MONTHS[month]);
    let time = format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60);
    match form {
        0 => format!("{}, {day:02} {month} {year} {time} GMT", &name[..3]),
        1 => format!("{name}, {day:02}-{month}-{:02} {time} GMT", year % 100),
        _ => format!("{} {month} {day:2} {time} {year}", &name[..3]),
    }
}
