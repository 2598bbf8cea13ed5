//! Every key and channel, with its hash tag, the reason for it, and its TTL.
//!
//! `ns` stands for `redis.namespace`. The table for people is in `docs/redis.md`.

/// Builds the names under one namespace.
#[derive(Debug, Clone)]
pub struct Keys {
    namespace: String,
}

impl Keys {
    /// Names under `namespace`.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned() }
    }

    /// A stored answer: `ns:e:{hash}`. Tagged by the hash, so that one script reaches entry and lease. TTL: the entry's
    /// own.
    pub fn entry(&self, hash: &[u8; 16]) -> Vec<u8> {
        self.tagged("e", hash)
    }

    /// A part of what is not stored whole: `ns:p:{hash}`, the hash being that of the whole's key, so that storing the whole
    /// removes it. TTL: the part's own.
    pub fn part(&self, hash: &[u8; 16]) -> Vec<u8> {
        self.tagged("p", hash)
    }

    /// The right to fetch one key: `ns:f:{hash}`, in its entry's slot. TTL: the lease's.
    pub fn lease(&self, hash: &[u8; 16]) -> Vec<u8> {
        self.tagged("f", hash)
    }

    /// A bucket: `ns:l:scope:{identity}`. `identity` is an HMAC in hex. Tagged by it, so that one script takes from all
    /// limits of one identity, and the identities of a hot limit spread over the slots. A scope holds no braces: names do
    /// not. TTL: the time that the bucket needs to fill up, what it has lent included.
    pub fn bucket(&self, scope: &str, identity: &str) -> Vec<u8> {
        [&self.namespace, ":l:", scope, ":{", identity, "}"].concat().into_bytes()
    }

    /// Which identities have which tier of limits: `ns:tiers:name`, a hash. No tag: it is read by itself. No TTL: it is the
    /// operator's.
    pub fn tiers(&self, name: &str) -> Vec<u8> {
        format!("{}:tiers:{name}", self.namespace).into_bytes()
    }

    /// Channel on which every logged invalidation is announced.
    pub fn bus(&self) -> String {
        format!("{}:bus", self.namespace)
    }

    /// Channel that wakes who waits for a key; the payload is the key's hash, in 16 bytes or 32 hex digits.
    pub fn bell(&self) -> String {
        format!("{}:bell", self.namespace)
    }

    /// Channel on which foreign programs publish invalidations.
    pub fn door(&self) -> String {
        format!("{}:invalidate", self.namespace)
    }

    /// Stream to which foreign programs add invalidations. No TTL: it is theirs, and Weir empties it.
    pub fn door_stream(&self) -> Vec<u8> {
        format!("{}:invalidate:in", self.namespace).into_bytes()
    }

    /// The counter, a hash of incarnation, sequence and the master's `run_id`. No TTL: it is what tells a Redis that
    /// lost its data from one that did not.
    pub fn counter(&self) -> Vec<u8> {
        self.beside_the_door("seq")
    }

    /// The log, a stream with ids `<seq>-0`. No TTL; bounded by count and age.
    pub fn log(&self) -> Vec<u8> {
        self.beside_the_door("log")
    }

    /// Content hashes of what was logged lately, and under which number. TTL a minute.
    pub fn seen(&self) -> Vec<u8> {
        self.beside_the_door("seen")
    }

    /// Pods by when they were last heard of, a sorted set. TTL as long as a pod may trust what it has.
    pub fn pods(&self) -> Vec<u8> {
        self.beside_the_door("pods")
    }

    /// How far each of them has followed the log, a hash. TTL as theirs.
    pub fn applied(&self) -> Vec<u8> {
        self.beside_the_door("applied")
    }

    /// Writes under way, by when they are overdue, a sorted set. TTL an hour.
    pub fn intents(&self) -> Vec<u8> {
        self.beside_the_door("intents")
    }

    /// What each of them invalidates, a hash. TTL an hour.
    pub fn intended(&self) -> Vec<u8> {
        self.beside_the_door("intended")
    }

    /// What is read most: `ns:hot:{ns:hot}`, a sorted set of keys' hashes. A tag of its own, for itself and the next, which one
    /// script reads. TTL a day.
    pub fn hot(&self) -> Vec<u8> {
        format!("{0}:hot:{{{0}:hot}}", self.namespace).into_bytes()
    }

    /// Exists while that need not fade, in its slot. TTL five seconds.
    pub fn hot_turn(&self) -> Vec<u8> {
        format!("{0}:hotturn:{{{0}:hot}}", self.namespace).into_bytes()
    }

    /// Channel on which pods are asked to say how far they are.
    pub fn roll(&self) -> String {
        format!("{}:roll", self.namespace)
    }

    /// What the breaker's probe reads; it never exists. No tag: of a Cluster's servers every one says who has it, or that nobody
    /// has.
    pub fn probe(&self) -> Vec<u8> {
        format!("{}:probe", self.namespace).into_bytes()
    }

    /// What stands in front of all of them.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// One key of each kind.
    pub fn one_of_each(&self) -> Vec<Vec<u8>> {
        let hash = [0; 16];
        vec![
            self.entry(&hash),
            self.part(&hash),
            self.lease(&hash),
            self.bucket("probe", "probe"),
            self.tiers("probe"),
            self.door_stream(),
            self.counter(),
            self.log(),
            self.seen(),
            self.pods(),
            self.applied(),
            self.intents(),
            self.intended(),
            self.hot(),
            self.hot_turn(),
            self.probe(),
        ]
    }

    fn tagged(&self, kind: &str, hash: &[u8; 16]) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.namespace.len() + kind.len() + 36);
        for part in [self.namespace.as_bytes(), b":", kind.as_bytes(), b":{"] {
            key.extend_from_slice(part);
        }
        let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
        key.extend(hash.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        key.push(b'}');
        key
    }

    /// The door's name is fixed by what foreign programs write to, and has no tag: Cluster hashes all of it. Tagging the
    /// others with that whole name puts them into its slot, so that one script moves from door to log.
    fn beside_the_door(&self, kind: &str) -> Vec<u8> {
        format!("{0}:{kind}:{{{0}:invalidate:in}}", self.namespace).into_bytes()
    }
}

/// Slots of a Cluster.
pub const SLOTS: usize = 16_384;

/// A key's slot: CRC16 (XMODEM) of its hash tag, or of the whole of it (Redis Cluster specification, "Key distribution
/// model" and "Hash tags").
pub fn slot(key: &[u8]) -> u16 {
    let crc = tag(key).iter().fold(0, |crc: u16, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]);
    crc % SLOTS as u16
}

/// Which of `keys` lie in one slot, each by its place, in their order; the groups by the slot.
pub fn by_slot(keys: &[&[u8]]) -> Vec<Vec<usize>> {
    let mut places: Vec<(u16, usize)> = keys.iter().enumerate().map(|(place, key)| (slot(key), place)).collect();
    places.sort_unstable();
    let groups = places.chunk_by(|one, other| one.0 == other.0);
    groups.map(|group| group.iter().map(|(_, place)| *place).collect()).collect()
}

/// What lies between the first `{` and the next `}`, unless that is nothing.
fn tag(key: &[u8]) -> &[u8] {
    let tagged = || {
        let open = key.iter().position(|byte| *byte == b'{')? + 1;
        let length = key[open..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[open..open + length])
    };
    tagged().unwrap_or(key)
}

/// CRC16 of each byte by itself, of the polynomial 0x1021.
const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As `CLUSTER KEYSLOT` says.
        for (key, expected) in
            [("123456789", 12739), ("foo", 12182), ("{foo}bar", 12182), ("a{}b", 13694), ("{a}{b}", 15495), ("", 0)]
        {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn what_one_script_touches_lies_in_one_slot() {
        let keys = Keys::new("shop-prod");
        assert_eq!(keys.door_stream(), b"shop-prod:invalidate:in");
        assert_eq!(keys.door(), "shop-prod:invalidate");
        for key in [keys.counter(), keys.log(), keys.seen(), keys.pods(), keys.applied(), keys.intents()] {
            assert_eq!(tag(&key), keys.door_stream());
        }
        assert_eq!(slot(&keys.hot()), slot(&keys.hot_turn()));
        let hash = [7; 16];
        assert_eq!(tag(&keys.entry(&hash)), tag(&keys.lease(&hash)));
        assert_eq!(tag(&keys.entry(&hash)), tag(&keys.part(&hash)));
        for scope in ["a", "catalog/a", "a:h", "a:sliding_log:h", "a:concurrency"] {
            assert_eq!(tag(&keys.bucket(scope, "0123456789abcdef")), b"0123456789abcdef");
        }
        assert_eq!(keys.bucket("catalog/a:h", "0f"), b"shop-prod:l:catalog/a:h:{0f}");
        assert_eq!(keys.entry(&hash), b"shop-prod:e:{07070707070707070707070707070707}");
    }

    #[test]
    fn keys_are_grouped_by_their_slots_in_their_order() {
        let keys: [&[u8]; 5] = [b"{foo}1", b"123456789", b"{foo}2", b"foo", b"{b}{foo}"];
        let mut groups = by_slot(&keys);
        groups.sort();
        assert_eq!(groups, [vec![0, 2, 3], vec![1], vec![4]]);
        assert!(by_slot(&[]).is_empty());
    }
}
