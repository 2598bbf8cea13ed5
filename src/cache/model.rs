//! The RFCs once more, written down slowly and sentence by sentence, to hold the cache's own code against: RFC 9111 in
//! [`storing`], RFC 9110's conditional and range requests in [`serving`], the grammars in [`text`]. It shares no code
//! with what it judges.
//!
//! Each question is answered twice: what the RFCs permit at most (`may_…`, `at_most`), and what Weir does, which is that
//! with the [`Choice`]s applied. The tests hold Weir to the second exactly, and to the first as a bound.

mod serving;
mod storing;
mod tests;
mod text;

use text::{Argument, lines};

/// A message's fields, names in lower case.
type Fields = Vec<(String, String)>;

/// What a route says, as far as it matters here; times in seconds.
#[derive(Debug, Clone, Default)]
struct Route {
    ttl: Option<u64>,
    ignores_lifetimes: bool,
    stale_while_revalidate: u64,
    stale_if_error: u64,
    stores_cookies: bool,
    shares_credentials: bool,
    keys_authorization: bool,
}

/// A request, its answer, and when; times in milliseconds.
#[derive(Debug, Clone)]
struct History {
    route: Route,
    method: &'static str,
    request: Fields,
    status: u16,
    answer: Fields,
    asked_at: u64,
    received_at: u64,
}

/// Where Weir does not do what the RFCs would have or let it do, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Choice {
    /// Stricter: 400, 401, 414 and their like answer what one client sent; stored, they would be everybody's.
    ClientsOwnStatus,
    /// Stricter: a part that nobody asked for is not stored, so that none becomes a whole.
    NoParts,
    /// Stricter: a cookie is somebody's. The route can say otherwise.
    NoCookies,
    /// Stricter: an answer to credentials that are no part of the key may be one person's. Only the service can say that
    /// it is not, by a lifetime.
    Credentials,
    /// Stricter: `Vary: *` can never be used again, and what cannot be read or is endless makes no key.
    VaryMakesAKey,
    /// Stricter: `private` and `no-cache` that name fields mean the whole answer, as sections 5.2.2.4 and 5.2.2.7 permit.
    NamedFieldsMeanAll,
    /// Stricter: what can be neither used nor confirmed only takes room.
    NothingGained,
    /// Stricter: of a directive that comes twice the least counts, where section 4.2.1 has the first or none.
    LeastOfSeveral,
    /// Stricter: a singleton field that comes twice is as one that cannot be read.
    OneLine,
    /// Stricter: an `Age` that is not one number is the greatest (section 4.2.1); 5.1 would permit the first member.
    AgeIsOneNumber,
    /// Stricter: a guess is a tenth of the time since `Last-Modified`, and a day at most.
    GuessesAreShort,
    /// Stricter: what a request prefers (section 5.2.1) is what it gets, where the route honours it.
    ClientsWord,
    /// Laxer, by the service's own word: beside `s-maxage` its `stale-while-revalidate` and `stale-if-error` count, as
    /// services that say both mean them; section 5.2.2.10 alone would forbid it. Nobody else's word does.
    StaleBesideSMaxage,
    /// Laxer, by the operator's word: the route keys by, or shares, what section 3.5 guards; or it ignores lifetimes or has
    /// one of its own.
    OperatorsWord,
    /// Laxer: a 304 that names no validator confirms the one answer that was asked about. Section 4.3.4 would want one
    /// where the stored answer has one; but the request named no other.
    Bare304,
}

/// What an answer says to shared caches.
struct Said {
    directives: Vec<(String, Argument)>,
    /// Said by a field meant for this cache (RFC 9213 section 2.2): `Expires` does not count.
    is_targeted: bool,
}

impl Said {
    fn by(answer: &Fields) -> Self {
        for name in ["weir-cache-control", "cdn-cache-control"] {
            let lines = lines(answer, name);
            if !lines.is_empty()
                && let Some(directives) = text::dictionary(&lines)
            {
                return Self { directives, is_targeted: true };
            }
        }
        Self { directives: text::directives(&lines(answer, "cache-control")), is_targeted: false }
    }

    fn has(&self, name: &str) -> bool {
        self.directives.iter().any(|(own, argument)| own == name && *argument != Argument::Not)
    }

    /// With whatever argument.
    fn names(&self, name: &str) -> bool {
        self.directives.iter().any(|(own, _)| own == name)
    }

    /// Without an argument, so that it means the whole answer.
    fn has_plain(&self, name: &str) -> bool {
        self.directives.iter().any(|(own, argument)| own == name && *argument == Argument::Absent)
    }

    /// Of each time that it is said; `None` is what cannot be read.
    fn seconds(&self, name: &str) -> Vec<Option<u64>> {
        let named = self.directives.iter().filter(|(own, _)| own == name);
        let read = named.map(|(_, argument)| match argument {
            Argument::Seconds(seconds) => Some(*seconds),
            Argument::Absent | Argument::Not | Argument::Other => None,
        });
        read.collect()
    }

    /// Section 4.2.1: the first; what cannot be read is no lifetime at all.
    fn first(&self, name: &str) -> Option<u64> {
        self.seconds(name).first().map(|seconds| seconds.unwrap_or(0))
    }

    /// [`Choice::LeastOfSeveral`].
    fn least(&self, name: &str) -> Option<u64> {
        self.seconds(name).into_iter().map(|seconds| seconds.unwrap_or(0)).min()
    }
}
