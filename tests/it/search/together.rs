//! Those who ask at once: by a rule that is known, that an answer brings, that turns out not to hold; in one pod and in several.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{ROUTES, STORED, changing, fill, patient, said};
use crate::harness::{
    Answer, Connection, Gate, PATIENCE, Upstream, Weir, eventually, for_both, get, join_all, redis, reply, request,
    upstream, weir, within_async,
};

/// One fetch for all, or another for who had found nothing just before the first was over.
fn assert_few_fetches(up: &Upstream) {
    let fetches = up.requests("/p").iter().filter(|request| request.target().contains("slow")).count();
    assert!((1..=2).contains(&fetches), "{fetches} fetches");
}

async fn rush(weirs: &[Weir], urls: &[String]) -> Vec<Answer> {
    join_all(urls.iter().enumerate().map(|(i, url)| weirs[i % weirs.len()].get(url))).await
}

#[tokio::test]
async fn those_who_ask_for_the_same_wait_for_one_fetch() {
    for_both(|store| async move {
        let (up, gate) = (upstream(), Gate::new());
        let held = gate.clone();
        up.on("/p", move |request| {
            let answer = said(request.target()).header("no-vary-search", r#"params=("u")"#);
            if request.target().contains("slow") { answer.gate(&held) } else { answer }
        });
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        fill(&weir, "/p?a=known").await;
        let urls: Vec<_> = (0..20).map(|i| format!("/p?u={i}&a=slow")).collect();
        let opening = async {
            gate.reached(1).await;
            weir.metric_reaches("weir_requests_in_flight", 20.0).await;
            gate.open();
        };
        let (answers, ()) = tokio::join!(rush(std::slice::from_ref(&weir), &urls), opening);
        assert!(answers.iter().all(|answer| answer.text().contains("slow")));
        assert_few_fetches(&up);
    })
    .await;
}

/// Nobody knew the rule that an answer brings: who comes meanwhile takes part in it, here by the rule, there by waiting.
#[tokio::test]
async fn what_arrives_by_a_new_rule_is_not_fetched_where_it_will_stand() {
    let (redis, up, gate) = (redis(), upstream(), Gate::new());
    let held = gate.clone();
    up.on("/p", move |_| reply("first").max_age(60).header("no-vary-search", "params").then_gate(&held).then("second"));
    let weirs = weir(ROUTES).to(up.url()).redis(&redis).set("redis.deadline", "1s").fleet(2).await;
    let ask = |pod: usize, url: &str| {
        let (proxy, request) = (weirs[pod].proxy, get(url));
        tokio::spawn(async move { request.send(proxy).await })
    };
    let mut leader = Connection::open(weirs[0].proxy).await;
    leader.write(b"GET /p?u=1 HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
    leader.read_until(b"first").await;
    let others = [ask(0, "/p?u=1"), ask(0, "/p?u=2"), ask(1, "/p?u=1")];
    weirs[0].metric_reaches(r#"weir_cache_lookups_total{tier="memory",result="miss"}"#, 3.0).await;
    weirs[1].metric_reaches(r#"weir_redis_commands_total{command="lease",result="ok"}"#, 4.0).await;
    gate.open();
    assert_eq!(leader.read(false).await.expect("an answer").text(), "firstsecond");
    for answer in others {
        assert_eq!(answer.await.expect("no panic").text(), "firstsecond");
    }
    assert_eq!(up.count("/p"), 1);
}

/// Who has another URL must not be led back to the fetch by which the rule was taken back.
#[tokio::test]
async fn a_rule_that_is_taken_back_is_gone_while_the_answer_arrives() {
    for_both(|store| async move {
        let (up, gate, is_known) = (upstream(), Gate::new(), Arc::new(AtomicBool::new(true)));
        let (held, knows) = (gate.clone(), Arc::clone(&is_known));
        up.on("/p", move |request| match knows.load(Ordering::SeqCst) {
            true => said(request.target()).header("no-vary-search", r#"params=("u")"#),
            false => said(request.target()).then_gate(&held).then("!"),
        });
        let weir = patient(&store, weir(ROUTES).to(up.url())).start().await;
        fill(&weir, "/p?a=1&u=1").await;
        is_known.store(false, Ordering::SeqCst);
        let mut leader = Connection::open(weir.proxy).await;
        leader.write(b"GET /p?a=2&u=1 HTTP/1.1\r\nhost: service.test\r\n\r\n").await;
        leader.read_until(b"/p?a=2&u=1").await;
        let others = [2, 2, 3].map(|u| {
            let (proxy, request) = (weir.proxy, get(&format!("/p?a=2&u={u}")));
            tokio::spawn(async move { request.send(proxy).await })
        });
        gate.reached(3).await;
        weir.metric_reaches("weir_requests_in_flight", 4.0).await;
        gate.open();
        assert_eq!(leader.read(false).await.expect("an answer").text(), "/p?a=2&u=1!");
        for (other, u) in others.into_iter().zip([2, 2, 3]) {
            assert_eq!(other.await.expect("no panic").text(), format!("/p?a=2&u={u}!"));
        }
        weir.metric_reaches(STORED, 4.0).await;
        for u in 1..=3 {
            assert!(weir.get(&format!("/p?a=2&u={u}")).await.is_hit(), "{u}");
        }
        assert_eq!(up.count("/p"), 4);
    })
    .await;
}

/// The rule that they were brought together by turns out not to hold.
#[tokio::test]
async fn nobody_gets_the_answer_to_another_question() {
    for_both(|store| async move {
        for rules in [&[r#"params=("u")"#, ""], &[r#"params=("u")"#, r#"params=("v")"#]] {
            let (up, number) = changing(rules);
            let routes = weir(ROUTES).set("cache.generation", rules[1].len().to_string());
            let weir = patient(&store, routes.to(up.url())).start().await;
            fill(&weir, "/p?a=known").await;
            number.store(1, Ordering::SeqCst);
            let urls: Vec<_> = (0..24).map(|i| format!("/p?a=1&u={}", i % 3)).collect();
            let answers = rush(std::slice::from_ref(&weir), &urls).await;
            for (url, answer) in urls.iter().zip(&answers) {
                assert_eq!(answer.text(), url, "{}", answer.cache_status());
            }
            for url in &urls[..3] {
                assert_eq!(weir.get(url).await.text(), url);
                assert!(up.count(url) <= 2, "{rules:?}: {url}: {}", up.count(url));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_fleet_shares_rules_and_what_they_lead_to() {
    let (redis, gate) = (redis(), Gate::new());
    let (up, held) = (upstream(), gate.clone());
    up.on("/p", move |request| {
        let answer = said(request.target()).header("no-vary-search", r#"params=("u")"#);
        if request.target().contains("slow") { answer.gate(&held) } else { answer }
    });
    let weirs = weir(ROUTES).to(up.url()).redis(&redis).set("redis.deadline", "1s").fleet(2).await;
    fill(&weirs[0], "/p?a=1&u=1").await;
    let other = weirs[1].get("/p?a=1&u=2").await;
    assert_eq!((other.cache_status().contains("hit"), other.text()), (true, "/p?a=1&u=1"), "{other:?}");
    // Named by one pod, gone in the other.
    weirs[1].invalidate(r#"{"urls": ["/p?a=1"]}"#).await;
    assert!(!weirs[1].get("/p?a=1&u=3").await.is_hit());
    weirs[1].metric_reaches(STORED, 1.0).await;
    let mirrored = async || weirs[0].get("/p?a=1&u=1").await.text() == "/p?a=1&u=3";
    within_async(PATIENCE, "the invalidation is known", mirrored).await;
    weirs[0].send(request("PUT", "/p?a=1&u=4")).await;
    let mirrored = async || weirs[1].get("/p?a=1&u=5").await.text() == "/p?a=1&u=5";
    within_async(PATIENCE, "the write is known", mirrored).await;

    // Nobody knows a rule for this path: who waits for the other pod's fetch finds what that has stored elsewhere.
    up.on("/new", {
        let gate = gate.clone();
        move |request| said(request.target()).header("no-vary-search", "params").gate(&gate)
    });
    let urls: Vec<_> = (0..20).map(|_| "/new?u=1".to_owned()).collect();
    let opening = async {
        gate.reached(1).await;
        let waits = || redis.cli(&["KEYS", "it:f:*"]).lines().any(|lease| redis.cli(&["HGET", lease, "w"]) == "1");
        eventually("the other pod waits for the lease", waits).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(rush(&weirs, &urls), opening);
    assert!(answers.iter().all(|answer| answer.text() == "/new?u=1"));
    assert_eq!(up.count("/new"), 1);
    // And here everybody does.
    let urls: Vec<_> = (0..20).map(|i| format!("/p?a=slow&u={i}")).collect();
    let answers = rush(&weirs, &urls).await;
    assert!(answers.iter().all(|answer| answer.text().contains("slow")));
    assert_few_fetches(&up);
}
