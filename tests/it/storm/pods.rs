//! The pods, and what goes wrong with them: they begin without Redis, and those die or stand still whom others wait for.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::faults::Fault;
use super::place::Place;
use super::traffic::Traffic;
use super::{PODS, setup};
use crate::cold::{TAKEOVER, margin};
use crate::fleet::check::Life;
use crate::fleet::pods::At;
use crate::fleet::service::{OWN, SLOW, SLOWLY, Service};
use crate::harness::{Answer, PATIENCE, Setup, Weir, eventually, get, join_all, patiently, within_async};
use crate::leases::LEASE;

/// Clients of each pod that want at once what may not be stored.
const CLIENTS: usize = 20;

/// Pods, the service behind them, and their Redis.
pub struct Pods {
    /// Their Redis.
    pub place: Arc<Place>,
    /// What they stand beside.
    pub service: Service,
    /// The processes.
    pub weirs: Vec<Weir>,
}

impl Pods {
    /// So many, and ready.
    pub async fn start(place: Arc<Place>, service: Service) -> Self {
        let mut all = Self { place, service, weirs: Vec::new() };
        for pod in 0..PODS {
            let weir = all.setup(Life { pod, number: 0 }).start().await;
            all.weirs.push(weir);
        }
        all
    }

    fn setup(&self, life: Life) -> Setup {
        self.place.apply(setup(life, &format!("http://{}", self.service.address)))
    }

    /// One that no client of the load knows, and that takes its time to find what others stored.
    async fn another(&self) -> Weir {
        self.setup(Life { pod: PODS, number: 0 }).set("redis.deadline", "1s").start().await
    }

    /// Where they are.
    pub fn at(&self) -> Vec<At> {
        let at = |(pod, weir)| At::of(Life { pod, number: 0 }, weir);
        self.weirs.iter().enumerate().map(at).collect()
    }

    /// Does one of those faults that befall pods; `mark` is of this one alone. Says what is wrong, if anything.
    pub async fn befall(&mut self, fault: Fault, traffic: &Traffic, mark: &str) -> Option<String> {
        let done = match fault {
            Fault::DownAtStart => {
                self.begin_without(traffic).await;
                Ok(())
            }
            Fault::LeaderKilled => self.leader_dies(&format!("{SLOW}{mark}")).await,
            Fault::LeaderStalled => self.leader_stalls(&format!("{SLOW}{mark}")).await,
            Fault::Uncacheable => self.nobody_queues(&format!("{OWN}{mark}")).await,
            _ => panic!("{fault:?} befalls no pods"),
        };
        done.err().map(|what| format!("{fault:?}: {what}"))
    }

    /// All of Redis is gone; every pod is replaced by one that has never seen it; then it comes back, empty.
    async fn begin_without(&mut self, traffic: &Traffic) {
        let all = Arc::clone(&self.place);
        tokio::task::spawn_blocking(move || all.kill()).await.expect("it ends");
        for pod in 0..PODS {
            let life = Life { pod, number: traffic.at(pod).life.number + 1 };
            // Ready or not.
            let next = self.setup(life).launch().await;
            traffic.turn_to(At::of(life, &next));
            let mut last = std::mem::replace(&mut self.weirs[pod], next);
            last.sigterm();
            assert_eq!(last.ended(PATIENCE).await, Some(0), "what it had begun, it ended");
        }
        let all = Arc::clone(&self.place);
        tokio::task::spawn_blocking(move || all.start()).await.expect("it comes back");
    }

    /// F17: who waits for a fetch of which the pod crashes waits for the rest of its lease, and for one fetch more.
    async fn leader_dies(&self, path: &str) -> Result<(), String> {
        let (before, (mut leader, asking)) = (self.misses().await, self.leader(path).await);
        let waiting = self.begin_all(path, 1);
        within_async(PATIENCE, "all wait", async || self.misses().await >= before + self.weirs.len() as f64).await;
        leader.kill();
        let killed = Instant::now();
        let answers = patiently("answers", waiting).await.expect("no panic");
        let took = killed.elapsed();
        // Its own client sees it die.
        let _ = asking.await;
        self.is_second(path, &answers)?;
        let most = LEASE + TAKEOVER + SLOWLY + margin();
        if took > most { Err(format!("answered {took:?} after the crash, not {most:?}")) } else { Ok(()) }
    }

    /// F18: whose lease is over when it goes on does not store what it fetched over what was fetched since.
    async fn leader_stalls(&self, path: &str) -> Result<(), String> {
        const FENCED: &str = r#"weir_cache_fills_total{result="superseded"}"#;
        let (leader, asking) = self.leader(path).await;
        leader.freeze();
        let answers = self.ask_all(path, 1).await;
        self.is_second(path, &answers)?;
        leader.thaw();
        // What it says to its own client is as good as what the others got.
        patiently("its own client's answer", asking).await.expect("no panic").map_err(|error| error.to_string())?;
        leader.metric_reaches(FENCED, 1.0).await;
        let stranger = self.another().await;
        let mut answers = self.ask_all(path, 1).await;
        answers.push(stranger.get(path).await);
        if let Err(what) = self.is_second(path, &answers) {
            let (metrics, said) = (stranger.metrics().await, stranger.output());
            let looked: Vec<_> =
                metrics.lines().filter(|line| line.contains("lookups") && !line.starts_with('#')).collect();
            return Err(format!("{what}; the last counted {looked:#?} and said {said:#?}"));
        }
        if answers.iter().all(Answer::is_hit) { Ok(()) } else { Err(format!("{path} was not kept: {answers:?}")) }
    }

    /// F19: nobody waits for more than one fetch of what may not be stored.
    async fn nobody_queues(&self, path: &str) -> Result<(), String> {
        for (round, fetches) in [("at first", 2), ("once it is known", 1)] {
            let (began, before) = (Instant::now(), self.service.state.asked(path));
            let answers = self.ask_all(path, CLIENTS).await;
            let (took, most) = (began.elapsed(), SLOWLY * fetches + TAKEOVER + margin());
            let asked = self.service.state.asked(path) - before;
            if asked != answers.len() || answers.iter().any(|answer| answer.status != 200) {
                return Err(format!("{asked} fetches {round}: {answers:?}"));
            }
            if took > most {
                return Err(format!("{took:?} {round}, not {most:?}"));
            }
        }
        Ok(())
    }

    /// What these pods did not find of what the service is slow to answer.
    async fn misses(&self) -> f64 {
        const MISSES: &str = r#"weir_cache_lookups_total{route="slow",tier="memory",result="miss"}"#;
        join_all(self.weirs.iter().map(|weir| weir.metric(MISSES))).await.into_iter().sum()
    }

    /// Another pod fetches this for a client of its own, who waits.
    async fn leader(&self, path: &str) -> (Weir, JoinHandle<std::io::Result<Answer>>) {
        let leader = self.another().await;
        let (request, proxy) = (get(path), leader.proxy);
        let asking = tokio::spawn(async move { request.try_send(proxy).await });
        eventually("the service is asked", || self.service.state.asked(path) == 1).await;
        (leader, asking)
    }

    /// So many clients of each pod ask for it.
    async fn ask_all(&self, path: &str, clients: usize) -> Vec<Answer> {
        patiently("answers", self.begin_all(path, clients)).await.expect("no panic")
    }

    /// They begin to.
    fn begin_all(&self, path: &str, clients: usize) -> JoinHandle<Vec<Answer>> {
        let (request, proxies): (_, Vec<_>) = (get(path), self.weirs.iter().map(|weir| weir.proxy).collect());
        tokio::spawn(
            async move { join_all((0..clients).flat_map(|_| &proxies).map(|proxy| request.send(*proxy))).await },
        )
    }

    /// All got what the second fetch brought, and there was no third.
    fn is_second(&self, path: &str, answers: &[Answer]) -> Result<(), String> {
        let asked = self.service.state.asked(path);
        let is_second = |answer: &Answer| answer.status == 200 && answer.text() == "2";
        let all = asked == 2 && answers.iter().all(is_second);
        if all { Ok(()) } else { Err(format!("{asked} fetches of {path}: {answers:?}")) }
    }
}
