//! Doorbells: who waits for a key is woken when another pod says that it is there.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Most waiters in this process; who comes later is not woken, and polls.
pub const WAITERS: usize = 16_384;

/// Of whom so many are woken at once when it is not known for whom it rang, and who waits for the same as the last; the others poll.
const WOKEN: usize = 256;

/// The process's waiters, by key.
#[derive(Debug, Default)]
pub struct Doorbells(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    count: usize,
    by_key: HashMap<[u8; 16], Vec<Waiter>, ahash::RandomState>,
}

/// A waiter's number, and how to wake it.
type Waiter = (u64, oneshot::Sender<()>);

/// Completes when the bell rings for its key; never, if the bus is away. Whoever holds it polls as a safety net.
///
/// Listen before looking the key up, or the ring between the two is missed. A ring completes once.
#[derive(Debug)]
pub struct Ring {
    waiting: Arc<Mutex<Waiting>>,
    key: [u8; 16],
    id: u64,
    rung: Option<oneshot::Receiver<()>>,
}

impl Doorbells {
    /// Waits for `key`.
    pub fn listen(&self, key: &[u8; 16]) -> Ring {
        let mut waiting = self.0.lock().expect("no panic while held");
        let id = waiting.next;
        waiting.next += 1;
        let rung = (waiting.count < WAITERS).then(|| {
            let (sender, receiver) = oneshot::channel();
            waiting.count += 1;
            waiting.by_key.entry(*key).or_default().push((id, sender));
            receiver
        });
        Ring { waiting: Arc::clone(&self.0), key: *key, id, rung }
    }

    /// Wakes whoever waits for the key that a message names; other messages are nobody's.
    pub fn ring(&self, payload: &[u8]) {
        let Some(key) = key_of(payload) else { return };
        let mut waiting = self.0.lock().expect("no panic while held");
        let woken = waiting.by_key.remove(&key).unwrap_or_default();
        waiting.count -= woken.len();
        drop(waiting);
        wake(woken);
    }

    /// Bells may have rung unheard: whoever waits looks, or as many of them as one may ask for at once.
    pub fn ring_some(&self) {
        let mut waiting = self.0.lock().expect("no panic while held");
        let mut woken = Vec::new();
        while woken.len() < WOKEN
            && let Some(key) = waiting.by_key.keys().next().copied()
        {
            woken.append(&mut waiting.by_key.remove(&key).unwrap_or_default());
        }
        waiting.count -= woken.len();
        drop(waiting);
        wake(woken);
    }
}

impl Future for Ring {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(rung) = &mut self.rung else { return Poll::Pending };
        match Pin::new(rung).poll(cx) {
            Poll::Ready(Ok(())) => {
                self.rung = None;
                Poll::Ready(())
            }
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.rung.is_none() {
            return;
        }
        let mut waiting = self.waiting.lock().expect("no panic while held");
        let Some(list) = waiting.by_key.get_mut(&self.key) else { return };
        let before = list.len();
        list.retain(|(id, _)| *id != self.id);
        let (gone, empty) = (before - list.len(), list.is_empty());
        waiting.count -= gone;
        if empty {
            waiting.by_key.remove(&self.key);
        }
    }
}

fn wake(waiters: Vec<Waiter>) {
    for (_, sender) in waiters {
        // A waiter that left in this moment needs no waking.
        let _ = sender.send(());
    }
}

fn key_of(payload: &[u8]) -> Option<[u8; 16]> {
    match payload.len() {
        16 => payload.try_into().ok(),
        32 => u128::from_str_radix(std::str::from_utf8(payload).ok()?, 16).ok().map(u128::to_be_bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bell_wakes_its_own_waiters_only_and_nothing_is_left_behind() {
        let bells = Doorbells::default();
        let (first, second, other) = (bells.listen(&[1; 16]), bells.listen(&[1; 16]), bells.listen(&[2; 16]));
        bells.ring(&[1; 16]);
        first.await;
        second.await;
        assert_eq!(bells.0.lock().unwrap().count, 1);
        drop(other);
        let waiting = bells.0.lock().unwrap();
        assert_eq!((waiting.count, waiting.by_key.len()), (0, 0));
    }

    #[tokio::test]
    async fn of_all_who_wait_some_are_woken_and_the_others_wait_on() {
        let bells = Doorbells::default();
        let key = |i: usize| [i.to_be_bytes(), i.to_be_bytes()].concat().try_into().unwrap();
        let rings: Vec<_> = (0..WOKEN + 3).map(|i| bells.listen(&key(i))).collect();
        bells.ring_some();
        assert_eq!(bells.0.lock().unwrap().count, 3);
        bells.ring_some();
        let all = async {
            for ring in rings {
                ring.await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), all).await.expect("all are woken");
    }

    #[tokio::test]
    async fn hex_rings_too_and_noise_does_not() {
        let bells = Doorbells::default();
        let ring = bells.listen(&[0xab; 16]);
        bells.ring(b"noise");
        bells.ring("zz".repeat(16).as_bytes());
        bells.ring("ab".repeat(16).as_bytes());
        ring.await;
    }
}
