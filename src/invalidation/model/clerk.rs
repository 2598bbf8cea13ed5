//! The doors of `invalidation.rs` and the clerk of `clerk.rs`, one await at a time.

use std::collections::VecDeque;

use super::coverage::Seen;
use super::names::Order;
use super::oracle::Standing;
use super::pod::Published;
use super::redis::{Ask, Reply};
use super::world::{Event, From, World};
use super::{Ms, Step};
use crate::invalidation::Position;
use crate::invalidation::mirror::Applied;
use crate::invalidation::pending::Ticket;

/// Longest that a door waits.
const SUBMIT_WAIT: Ms = 1000;

/// Orders that are tried again; few, so that some are given up.
const RETRIES: usize = 3;

/// One order on its way to the log.
#[derive(Debug)]
struct Submission {
    id: u64,
    order: Order,
    since: Option<Position>,
    /// When it came in, or was published.
    ordered: Step,
    is_published: bool,
    /// By what it is pending here, if it is.
    ticket: Option<Ticket>,
    /// Whether somebody waits for it.
    is_awaited: bool,
}

/// The clerk.
#[derive(Debug, Default)]
pub struct Clerk {
    inbox: VecDeque<Submission>,
    /// What Redis is being asked to take.
    hand: Option<Submission>,
    retries: VecDeque<Submission>,
    /// Whether the first of these is being tried.
    is_retrying: bool,
    retry_at: Ms,
    /// Whether an order was given up.
    pub gave_up: bool,
}

impl Clerk {
    fn find(&mut self, id: u64) -> Option<&mut Submission> {
        let all = self.inbox.iter_mut().chain(&mut self.hand).chain(&mut self.retries);
        all.into_iter().find(|submission| submission.id == id)
    }
}

impl World {
    /// An order at a pod's own door.
    pub fn submit(&mut self, pod: usize, order: Order) {
        let id = self.id();
        let waits = self.pods[pod].clerk.retries.is_empty();
        let submission = Submission {
            id,
            order,
            since: None,
            ordered: self.step,
            is_published: false,
            ticket: None,
            is_awaited: waits,
        };
        self.pods[pod].clerk.inbox.push_back(submission);
        let process = self.process(pod);
        if waits {
            self.at(self.now + SUBMIT_WAIT, Event::Impatient(process, id));
        } else {
            self.apply_here(pod, id);
        }
        self.clerk_turn(pod);
    }

    /// A message: applied at once, and nobody waits for its being logged.
    pub fn submit_published(&mut self, pod: usize, Published { order, at }: Published, since: Option<Position>) {
        let id = self.id();
        let submission =
            Submission { id, order, since, ordered: at, is_published: true, ticket: None, is_awaited: false };
        self.pods[pod].clerk.inbox.push_back(submission);
        self.apply_here(pod, id);
        self.clerk_turn(pod);
    }

    pub fn lose_patience(&mut self, pod: usize, id: u64) {
        let submission = self.pods[pod].clerk.find(id);
        if submission.is_some_and(|submission| std::mem::take(&mut submission.is_awaited)) {
            self.apply_here(pod, id);
        }
    }

    /// Applies what will be in the log, and says so to whoever sent it.
    fn apply_here(&mut self, pod: usize, id: u64) {
        let (when, process) = (self.when(), self.process(pod));
        let state = &mut self.pods[pod];
        let Some(submission) = state.clerk.find(id).filter(|submission| submission.ticket.is_none()) else { return };
        submission.is_awaited = false;
        let (order, accepted) = (submission.order, submission.ordered);
        submission.ticket = Some(state.known.pending(order));
        self.note(|| format!("pod {pod} applies {order:?}, which is not logged"));
        self.forget(pod, order);
        self.oracle.acknowledge_here(order, accepted, when, (id, process));
    }

    pub fn clerk_turn(&mut self, pod: usize) {
        let is_first = self.random.one_in(2);
        let clerk = &mut self.pods[pod].clerk;
        if clerk.hand.is_some() || clerk.is_retrying {
            return;
        }
        let retries = !clerk.retries.is_empty() && clerk.retry_at <= self.now;
        if retries && (is_first || clerk.inbox.is_empty()) {
            return self.retry(pod);
        }
        let Some(submission) = clerk.inbox.pop_front() else { return };
        if !clerk.retries.is_empty() {
            self.put_off(pod, submission);
            return self.clerk_turn(pod);
        }
        let ask = Ask::Append { order: submission.order, since: submission.since };
        clerk.hand = Some(submission);
        self.call(pod, From::Clerk, ask);
    }

    fn retry(&mut self, pod: usize) {
        let clerk = &mut self.pods[pod].clerk;
        clerk.is_retrying = !clerk.retries.is_empty();
        match clerk.retries.front() {
            Some(first) => {
                let ask = Ask::Append { order: first.order, since: first.since };
                self.call(pod, From::Clerk, ask);
            }
            None => self.clerk_turn(pod),
        }
    }

    pub fn clerk_answered(&mut self, pod: usize, reply: Option<&Reply>) {
        let clerk = &mut self.pods[pod].clerk;
        let was_retrying = std::mem::take(&mut clerk.is_retrying);
        let logged = match reply {
            Some(Reply::Logged { at, logged, is_new }) => Some((*at, *logged, *is_new)),
            _ => None,
        };
        match (logged, was_retrying) {
            (Some(logged), true) => {
                if let Some(submission) = clerk.retries.pop_front() {
                    self.logged(pod, &submission, logged);
                }
                self.retry(pod);
            }
            (Some(logged), false) => {
                if let Some(submission) = clerk.hand.take() {
                    self.logged(pod, &submission, logged);
                }
                self.clerk_turn(pod);
            }
            (None, _) => {
                let hand = clerk.hand.take();
                let at = self.now + self.random.between(180, 320);
                self.pods[pod].clerk.retry_at = at;
                let process = self.process(pod);
                self.at(at, Event::Clerk(process));
                if let Some(submission) = hand {
                    self.put_off(pod, submission);
                }
                self.clerk_turn(pod);
            }
        }
    }

    fn logged(&mut self, pod: usize, submission: &Submission, (at, logged, is_new): (Position, Step, bool)) {
        let is_ready = self.pods[pod].is_ready();
        let applied = self.pods[pod].known.logged(at, submission.order);
        self.note(|| format!("pod {pod} has logged {:?} at {at:?}: {applied:?}", submission.order));
        self.forget(pod, submission.order);
        if let Some(ticket) = submission.ticket {
            self.pods[pod].known.settle(ticket);
        }
        if applied == Applied::Foreign {
            self.oracle.count(Seen::Foreign);
        }
        if !is_new {
            self.oracle.count(Seen::EqualMessages);
        }
        if applied == Applied::Gap {
            self.oracle.count(Seen::Gaps);
        }
        if applied != Applied::InOrder {
            self.kick(pod);
        }
        let standing = match applied {
            Applied::Foreign => Standing::Elsewhere,
            _ if is_ready => Standing::Level,
            _ => Standing::Unready,
        };
        // An equal record stands for a message only if it refuses all that was fetched before the message.
        let accepted = if submission.is_published { submission.ordered } else { logged };
        let (when, process) = (self.when(), self.process(pod));
        self.oracle.acknowledge(submission.order, (accepted, logged), when, Some((process, standing)));
    }

    /// Applies it here, and keeps it for later.
    /// Logs what was in a log that is gone.
    pub fn log_once_more(&mut self, pod: usize, order: Order) {
        let (id, ordered) = (self.id(), self.step);
        let submission =
            Submission { id, order, since: None, ordered, is_published: false, ticket: None, is_awaited: false };
        self.pods[pod].clerk.retries.push_back(submission);
    }

    fn put_off(&mut self, pod: usize, submission: Submission) {
        let id = submission.id;
        let state = &mut self.pods[pod];
        if state.clerk.retries.len() == RETRIES {
            let oldest = state.clerk.retries.pop_front();
            if let Some((oldest, ticket)) = oldest.and_then(|oldest| oldest.ticket.map(|ticket| (oldest, ticket))) {
                state.known.give_up(ticket, oldest.order);
                state.clerk.gave_up = true;
                self.oracle.give_up(oldest.id);
            }
        }
        self.pods[pod].clerk.retries.push_back(submission);
        self.apply_here(pod, id);
    }
}
