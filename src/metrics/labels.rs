//! Closed sets of label values.

/// Declares a closed enum of label values with one `as_str` for header, log and label.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Text in headers, logs and labels.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }
    };
}

labels! {
    /// How a request ended; each has exactly one.
    Outcome {
        /// Fresh, from the cache.
        Hit = "hit",
        /// Stale, from the cache, where that is allowed.
        Stale = "stale",
        /// From the cache, after the upstream confirmed it.
        Revalidated = "revalidated",
        /// From the upstream, on a route that caches.
        Miss = "miss",
        /// From a fetch that another request had started.
        Collapsed = "collapsed",
        /// From the upstream, past the cache.
        Pass = "pass",
        /// Denied by a limit.
        Denied = "denied",
        /// Refused as malformed, ambiguous or unroutable.
        Refused = "refused",
        /// The upstream could not be reached or did not answer; the answer is our own.
        Failed = "failed",
        /// Not sent, to protect the upstream; the answer is our own.
        Shed = "shed",
        /// The client left before its answer began.
        Cancelled = "cancelled",
        /// An invalidation by method.
        Purged = "purged",
    }
}

labels! {
    /// Where something was looked up.
    Tier {
        /// This process.
        Memory = "memory",
        /// The shared store.
        Redis = "redis",
    }
}

labels! {
    /// What a lookup found.
    Lookup {
        /// A fresh entry.
        Hit = "hit",
        /// A stale one.
        Stale = "stale",
        /// Nothing usable.
        Miss = "miss",
        /// An entry that an invalidation had overtaken.
        Invalidated = "invalidated",
        /// Bytes that do not decode.
        Corrupt = "corrupt",
        /// The store did not answer.
        Unavailable = "unavailable",
    }
}

labels! {
    /// How a fetch for the cache ended.
    Fill {
        /// Stored.
        Stored = "stored",
        /// The stored answer was confirmed.
        Revalidated = "revalidated",
        /// The answer may not be stored.
        Uncacheable = "uncacheable",
        /// Larger than may be stored, or no room to hold it.
        TooLarge = "too_large",
        /// Cut short, or never answered.
        Failed = "failed",
        /// Overtaken by a newer fill or an invalidation.
        Superseded = "superseded",
    }
}

labels! {
    /// Why a request was not sent to the upstream.
    Shed {
        /// As many wait as may.
        QueueFull = "queue_full",
        /// As many wait for the same fetch as may.
        KeyQueueFull = "key_queue_full",
        /// It would have to wait for too long.
        ExpectedWait = "expected_wait",
        /// It has waited for too long.
        QueueTimeout = "queue_timeout",
        /// Nobody waits for it, and there is no room to spare.
        NoSpare = "no_spare",
        /// The breaker is open.
        BreakerOpen = "breaker_open",
        /// Its body is not whole, and as many as may were on their way for too long.
        Uploads = "uploads",
    }
}

labels! {
    /// What became of an attempt that could be made again.
    Retry {
        /// It was made.
        Made = "made",
        /// It was not: too many were made of late.
        OverBudget = "over_budget",
    }
}

labels! {
    /// What a limit said.
    Decision {
        /// Let through.
        Allowed = "allowed",
        /// Denied.
        Denied = "denied",
        /// Would have been denied (`dry_run`).
        DryRun = "dry_run",
        /// Has to wait (`max_delay`); what comes of it is counted as well.
        Delayed = "delayed",
    }
}

labels! {
    /// Who decided.
    Source {
        /// Redis.
        Redis = "redis",
        /// This process.
        Local = "local",
        /// The `redis_down` rule.
        Fallback = "fallback",
        /// What this pod was lent, or was told before.
        Loan = "loan",
        /// The limit's own rule on whom it is for: `deny`, `missing`.
        Rule = "rule",
    }
}

labels! {
    /// How it became known what a request costs its limit, where only its answer says.
    Settled {
        /// The answer said it; or its status is one that is charged.
        Said = "said",
        /// It said more than `max`.
        Capped = "capped",
        /// It did not say it, or no number: `default`.
        Missing = "missing",
        /// It was too large to be looked through: `default`.
        TooLarge = "too_large",
        /// It was encoded, and could not be read: `default`.
        Encoded = "encoded",
        /// There was none, or it ended before it said it: `default`.
        Unfinished = "unfinished",
        /// Nothing: its status is not one that is charged, or the service was not asked.
        Returned = "returned",
    }
}

labels! {
    /// How reading a hash of tiers ended.
    TiersRead {
        /// Read; what it says holds.
        Ok = "ok",
        /// It has more identities than one may have; what was read before holds.
        TooLarge = "too_large",
        /// Redis did not answer, or by an error; what was read before holds.
        Unavailable = "unavailable",
    }
}

labels! {
    /// The way an invalidation came in.
    Door {
        /// `POST /invalidate`.
        Admin = "admin",
        /// `PUBLISH` from a foreign program.
        Publish = "publish",
        /// `XADD` from a foreign program.
        Stream = "stream",
        /// `PURGE` on a route that allows it.
        Purge = "purge",
        /// `invalidates` of a route, or an unsafe method.
        Write = "write",
    }
}

labels! {
    /// How a Redis command ended.
    RedisResult {
        /// Answered.
        Ok = "ok",
        /// Answered with an error.
        Error = "error",
        /// Not answered in time.
        Timeout = "timeout",
        /// Not sent: no connection, or the breaker is open.
        Unavailable = "unavailable",
        /// Another server has it.
        Redirected = "redirected",
    }
}

labels! {
    /// What Redis is used for.
    RedisPart {
        /// What requests read.
        Commands = "commands",
        /// What requests and housekeeping run there.
        Scripts = "scripts",
        /// Hearing at once of what others invalidate.
        Bus = "bus",
        /// Hearing at once of what programs add to the stream.
        Stream = "stream",
        /// Finding out which servers there are, from Sentinels or a Cluster.
        Topology = "topology",
    }
}

impl RedisPart {
    /// Whether requests wait for it.
    pub fn is_asked_by_requests(self) -> bool {
        matches!(self, Self::Commands | Self::Scripts)
    }
}

labels! {
    /// Why Redis did not do what it was asked.
    RedisFault {
        /// Nothing listens there.
        NobodyListens = "nobody_listens",
        /// There is no TLS with it.
        Tls = "tls",
        /// The way there fails otherwise.
        Unreachable = "unreachable",
        /// No answer in time.
        Late = "late",
        /// The connection ended.
        Dropped = "dropped",
        /// It is a replica.
        ReadOnly = "readonly",
        /// It is a replica whose master is away.
        MasterDown = "masterdown",
        /// It reads its disk.
        Loading = "loading",
        /// It is full.
        Oom = "oom",
        /// It cannot save.
        Misconf = "misconf",
        /// It has too few replicas.
        NoReplicas = "noreplicas",
        /// It runs a script that does not end.
        Busy = "busy",
        /// The Cluster does not have all slots, or not its majority.
        ClusterDown = "clusterdown",
        /// The slot is on its way to another server.
        TryAgain = "tryagain",
        /// User or password are wrong, or it serves its own host only.
        Auth = "auth",
        /// The user may not do that.
        NoPerm = "noperm",
        /// It has no room for another connection.
        MaxClients = "maxclients",
        /// Any other error.
        Other = "other",
    }
}

impl RedisFault {
    /// Whether it is an answer that tells of more than one command.
    pub fn is_refusal(self) -> bool {
        let no_answer = [Self::NobodyListens, Self::Tls, Self::Unreachable, Self::Late, Self::Dropped];
        !no_answer.contains(&self) && !matches!(self, Self::TryAgain | Self::Other)
    }
}

labels! {
    /// What a connection begins with before HTTP.
    Layer {
        /// The header that names the client.
        ProxyProtocol = "proxy_protocol",
        /// The handshake.
        Tls = "tls",
    }
}

labels! {
    /// Why a connection ended before HTTP began.
    Fault {
        /// It was not through in time.
        Timeout = "timeout",
        /// The other side left.
        Left = "left",
        /// It said something else, or said it wrong.
        Malformed = "malformed",
        /// It spoke HTTP where TLS was expected.
        PlainHttp = "plain_http",
        /// It had no certificate that is accepted, though it had to.
        Certificate = "certificate",
        /// Both sides have no version, cipher or protocol in common.
        Incompatible = "incompatible",
        /// It did not accept Weir's certificate, or ended the handshake for another reason of its own.
        Refused = "refused",
    }
}

labels! {
    /// How a configuration reload ended.
    Reload {
        /// Taken.
        Applied = "applied",
        /// Refused; the old one stays.
        Rejected = "rejected",
    }
}

labels! {
    /// Why a client's connection was not taken.
    NotTaken {
        /// There are as many as there may be.
        Total = "total",
        /// This address has as many as one may have.
        Client = "client",
    }
}

labels! {
    /// Why a client's connection was ended before its time.
    Ended {
        /// No whole head came in time.
        HeadTimeout = "head_timeout",
        /// A body stood still, in either direction.
        BodyIdle = "body_idle",
        /// HTTP/2 was broken, or misused in a way that the framing library sees.
        Http2Error = "http2_error",
        /// Too many HTTP/2 streams were reset.
        Http2Resets = "http2_resets",
        /// Too many HTTP/2 frames brought nothing.
        Http2ControlFrames = "http2_control_frames",
    }
}
