//! What a keeper does about a log that goes on from a copy of another: gives it what it may have lost, and inherits.

use super::Keeper;
use crate::invalidation::Position;
use crate::invalidation::log::{Draft, Proof, TOGETHER};
use crate::invalidation::mirror::{Elsewhere, Mirror};
use crate::kv::Unavailable;

impl Keeper {
    /// Logs once more what the log may have lost, and what this pod had logged in another.
    pub(super) async fn give(&mut self, elsewhere: Vec<Elsewhere>) -> Result<(), Unavailable> {
        let Some(base) = self.state.mirror.read().expect("no panic while held").base() else { return Ok(()) };
        let (here, lost): (Vec<_>, Vec<_>) = elsewhere.into_iter().partition(|one| one.incarnation == base.incarnation);
        for one in &lost {
            let moved = self.log.append(&[Draft::new(&one.order, None, None)]).await?;
            self.is_in(base, &moved)?;
            self.state.change(|mirror| mirror.moved(one, base.incarnation));
        }
        // Below the head, it may still have to be read back.
        if !here.is_empty() && self.backfill.is_none() {
            self.state.change(|mirror| mirror.settle_elsewhere(&here));
        }
        while !self.owed.is_empty() {
            let drafts: Vec<Draft<'_>> = self.owed.iter().take(TOGETHER).map(|owed| Draft::owed(owed, base)).collect();
            let given = self.log.append(&drafts).await?;
            self.is_in(base, &given)?;
            self.given.extend(self.owed.drain(..given.len()));
        }
        Ok(())
    }

    /// Whether records have come to be in the log of `base`; if in another's, it is another that is to be followed.
    fn is_in(&self, base: Position, records: &[(Position, bool)]) -> Result<(), Unavailable> {
        if records.iter().all(|(at, _)| at.incarnation == base.incarnation) {
            return Ok(());
        }
        self.state.kick();
        Err(Unavailable::NotSent)
    }

    /// Whether all is given, and only has to be read.
    pub(super) fn is_settling(&self) -> bool {
        self.backfill.is_none() && self.owed.is_empty() && !self.owing.is_empty()
    }

    /// What was given before the last question was asked has been read in the log by now, unless its past is not read back.
    pub(super) fn settle_given(&mut self) {
        if self.is_settling() {
            self.given.clear();
            let owing = std::mem::take(&mut self.owing);
            self.state.change(|mirror| owing.into_iter().for_each(|ticket| mirror.settle(ticket)));
        }
    }

    /// Trusts the answers of the incarnations before, once every pod that may know what this one has lost has logged it. Who
    /// has not been heard of for the bound is not waited for, and is not counted as behind any more.
    pub(super) fn inherit(&mut self, proof: &Proof, before: Option<Position>) {
        if !self.may_inherit() || before.map(|at| at.incarnation) != Some(proof.head.incarnation) {
            return;
        }
        // Everybody had time for a proof, and as many have come as there were.
        let are_all_here =
            self.pods_before > 0 && proof.pods >= self.pods_before && proof.age >= self.trust().proof_every();
        if proof.behind == 0 && (are_all_here || proof.age >= self.trust().lasts()) {
            self.state.change(Mirror::inherit);
            self.trust().inherited();
            tracing::info!("every invalidation from before is logged: answers from before are used again");
        }
    }

    pub(super) fn may_inherit(&self) -> bool {
        let mirror = self.state.mirror.read().expect("no panic while held");
        self.backfill.is_none() && self.owing.is_empty() && mirror.may_inherit()
    }
}
