//! Panics: a line in the log and a counter each, wherever they happen.
//!
//! What a panic ends is decided where it unwinds to: one request, or one task behind it.

use std::panic::PanicHookInfo;

use prometheus::IntCounter;

/// Most characters of a panic's message that are logged.
const MESSAGE_MAX: usize = 200;

/// From now on panics are counted and logged in the log's own format, instead of being printed.
pub(super) fn count(counter: IntCounter) {
    std::panic::set_hook(Box::new(move |panic| {
        counter.inc();
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let thread = std::thread::current();
        let message = message(panic);
        tracing::error!(place, thread = thread.name().unwrap_or_default(), message, "a panic: this is a fault of Weir");
    }));
}

fn message(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    text.chars().take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_panic_is_counted() {
        let counter = IntCounter::new("panics", "of this test").expect("a counter");
        let before = std::panic::take_hook();
        count(counter.clone());
        let panicked = std::thread::spawn(|| panic!("as asked")).join();
        // Other tests have their messages printed.
        std::panic::set_hook(before);
        assert!(panicked.is_err());
        assert!(counter.get() >= 1, "others may panic meanwhile");
    }
}
