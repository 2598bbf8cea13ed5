//! Costs that bodies say.

use super::*;
use crate::syntax::pointer::Pointer;

fn by_json(max_scan: usize) -> Cost {
    let pointer = Arc::new(Pointer::parse("/usage/total").unwrap());
    Cost::Answer(AnswerCost { place: Place::Json { pointer, max_scan }, max: 100, default: 3, reserve: 1 })
}

#[tokio::test]
async fn bodies_say_it_wherever_their_pieces_end() {
    const JSON: &str = r#"{"text":"…","usage":{"total":17}}"#;
    const EVENTS: &str = "data: {\"usage\":{\"total\":2}}\n\ndata: {\"usage\":{\"total\":17}}\r\n\r\ndata: [DONE]\n\n";
    for (kind, body) in [
        ("application/json", JSON),
        ("Application/JSON; charset=utf-8", JSON),
        ("application/vnd.x+json", JSON),
        ("text/event-stream; charset=utf-8", EVENTS),
    ] {
        for size in [1, 7, 1000] {
            both(
                1,
                || vec![costing(by_json(4096), 1)],
                async |pod, _| {
                    let tabs = admit(pod).await.unwrap();
                    let mut meter = answer(pod, tabs, 200, &[("content-type", kind)]).await.expect("the body says it");
                    body.as_bytes().chunks(size).for_each(|piece| meter.feed(piece));
                    assert_eq!(settled(pod, Settled::Said), 0, "the answer goes on");
                    meter.end();
                    pod.limiter.settled().await;
                    assert_eq!(hours_denied(pod).await, 17, "{kind} by {size}");
                    assert_eq!(settled(pod, Settled::Said), 1);
                },
            )
            .await;
        }
    }
}

#[tokio::test]
async fn numbers_in_bodies_are_bounded_and_rounded_up() {
    let huge = "9".repeat(400);
    for (number, cost, how) in [
        ("17", 17, Settled::Said),
        ("16.2", 17, Settled::Said),
        ("1.7e1", 17, Settled::Said),
        ("0", 0, Settled::Said),
        ("-0.0", 0, Settled::Said),
        ("100.5", 100, Settled::Capped),
        ("1e400", 100, Settled::Capped),
        (&*huge, 100, Settled::Capped),
        ("-1", 3, Settled::Missing),
        ("-1e400", 3, Settled::Missing),
        ("NaN", 3, Settled::Missing),
        ("\"17\"", 3, Settled::Missing),
        ("null", 3, Settled::Missing),
    ] {
        let pod = Pod::new(vec![costing(by_json(4096), 1)]);
        let tabs = admit(&pod).await.unwrap();
        let mut meter = answer(&pod, tabs, 200, &[("content-type", "application/json")]).await.unwrap();
        meter.feed(format!("{{\"usage\":{{\"total\":{number}}}}}").as_bytes());
        meter.end();
        assert_eq!((hours_denied(&pod).await, settled(&pod, how)), (cost, 1), "{number}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_costs_the_default_and_is_counted() {
    const JSON: &str = "{\"usage\":{\"total\":17}}";
    // Kind, encoding, what comes before, and whether all of it comes.
    for (kind, encoding, before, is_whole, how) in [
        ("application/json", Some("gzip"), 0, true, Settled::Encoded),
        ("application/json", Some("identity"), 0, true, Settled::Said),
        ("text/plain", None, 0, true, Settled::Missing),
        ("text/json-like", None, 0, true, Settled::Missing),
        ("application/json", None, 1000, true, Settled::Said),
        ("application/json", None, 1024, true, Settled::TooLarge),
        ("application/json", None, 1024, false, Settled::TooLarge),
        ("application/json", None, 0, false, Settled::Said),
        ("text/event-stream", None, 1024, true, Settled::Missing),
    ] {
        let pod = Pod::new(vec![costing(by_json(1024), 1)]);
        let tabs = admit(&pod).await.unwrap();
        let mut of = vec![("content-type", kind)];
        of.extend(encoding.map(|encoding| ("content-encoding", encoding)));
        if let Some(mut meter) = answer(&pod, tabs, 200, &of).await {
            meter.feed(" ".repeat(before).as_bytes());
            meter.feed(JSON.as_bytes());
            if is_whole { meter.end() } else { drop(meter) }
        }
        let cost = if how == Settled::Said { 17 } else { 3 };
        assert_eq!(
            (hours_denied(&pod).await, settled(&pod, how)),
            (cost, 1),
            "{kind} {encoding:?} {before} {is_whole}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_costs_what_it_had_said() {
    for (kind, body, cost, how) in [
        ("text/event-stream", "data: {\"usage\":{\"total\":5}}\n\ndata: {\"usage\":{\"to", 5, Settled::Said),
        ("text/event-stream", "data: {\"usage\":{\"to", 3, Settled::Unfinished),
        ("application/json", "{\"usage\":{\"total\":1", 3, Settled::Unfinished),
        ("application/json", "", 3, Settled::Unfinished),
    ] {
        both(
            1,
            || vec![costing(by_json(1024), 1)],
            async |pod, _| {
                let tabs = admit(pod).await.unwrap();
                let mut meter = answer(pod, tabs, 200, &[("content-type", kind)]).await.unwrap();
                meter.feed(body.as_bytes());
                drop(meter);
                pod.limiter.settled().await;
                assert_eq!((hours_denied(pod).await, settled(pod, how)), (cost, 1), "{kind}: {body}");
            },
        )
        .await;
    }
}
