//! Settings that are right, and change nothing or not what they seem to.

use super::Check;
use crate::config::raw::At;
use crate::config::text::Text;
use crate::syntax::rate::Rate;

impl Check<'_, '_> {
    /// A rate whose bucket holds one request by default, which hardly anybody means by "a thousand an hour".
    pub(super) fn slow_default(&mut self, text: &At<Text<Rate>>, rate: Rate) {
        if rate.amount == 1 || self.was_misread_in_limit(&["burst", "algorithm"]) {
            return;
        }
        let problem = format!("\"{rate}\" without a `burst` admits 1 request at once: by default those of one second");
        let period = match rate.unit() {
            "m" => "a minute",
            "h" => "an hour",
            _ => "a day",
        };
        let remedy = format!(
            "write burst = {} to let those of {period} come at once, or burst = 1 if that is meant",
            rate.amount
        );
        self.warn(&text.span(), problem, remedy);
    }
}
