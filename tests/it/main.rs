//! Weir from the outside: every test starts the real binary, between a scripted upstream and a Redis of its own.
//!
//! Tests run in parallel and share nothing; ports are taken from the system. Waiting is for gates, counts and conditions
//! with a deadline, never for a length of time. Some scale with the environment: see [`harness::scale`].

mod harness;

mod admin;
mod between_clients;
mod caching;
mod caching_rules;
mod clocks;
mod cold;
mod confirmation;
mod cut_off;
mod deception;
mod expiry;
mod explain;
mod failing;
mod failover;
mod fleet;
mod flood;
mod forwarding;
mod framing;
mod intents;
mod invalidation;
mod leases;
mod life;
mod limit_afterwards;
mod limit_algorithms;
mod limit_answers;
mod limit_attacks;
mod limit_peers;
mod limit_view;
mod limits;
mod limits_delay;
mod limits_fleet;
mod limits_tiers;
mod methods;
mod once;
mod overload;
mod poisoning;
mod proxy_protocol;
mod ranges;
mod real;
mod redis_access;
mod redis_faults;
mod redis_harness;
mod redis_sizes;
mod redis_start;
mod redis_tls;
mod redis_ways;
mod reports;
mod restarts;
mod routing;
mod search;
mod selftest;
mod slow;
mod stampede;
mod statuses;
mod storm;
mod tidy;
mod tls;
mod tls_upstream;
mod trips;
mod warm;
mod wholeness;
mod wire;
