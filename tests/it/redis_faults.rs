//! redis_faults
