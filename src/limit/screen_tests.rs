//! Limits that are not for every request, and what their denials say.

use std::sync::Arc;

use http::HeaderValue;

use super::*;
use crate::config::Notice;
use crate::syntax::blanks::Blanks;

fn keyed(name: &str, missing: Missing) -> config::Limit {
    let key = vec![IdentityPart::Header(http::HeaderName::from_static("x-key"))];
    config::Limit { key, missing, ..hourly(name, 2, Stage::Request) }
}

fn nets(all: &[&str]) -> Vec<ipnet::IpNet> {
    all.iter().map(|net| net.parse().unwrap()).collect()
}

fn fields(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

/// Who is denied by which limit, if by any, with its status.
async fn asked(pod: &Pod, ip: &str, headers: &HeaderMap) -> Option<(String, u16)> {
    let mut charged = Charged::default();
    match pod.take_with(ip.parse().unwrap(), headers, Stage::Request, &mut charged).await {
        Verdict::Allow => None,
        Verdict::Deny(denial) => Some((denial.limit.name.clone(), denial.status().as_u16())),
    }
}

fn by(name: &str, status: u16) -> Option<(String, u16)> {
    Some((name.to_owned(), status))
}

#[tokio::test]
async fn who_lacks_a_part_is_one_of_many_or_passed_by_or_denied() {
    let limits = || vec![keyed("share", Missing::Share)];
    both(1, limits, async |pod, _| {
        let (none, known) = (fields(&[]), fields(&[("x-key", "a")]));
        let mut said = Vec::new();
        for (ip, headers) in [("192.0.2.1", &none), ("192.0.2.2", &none), ("192.0.2.3", &none), ("192.0.2.3", &known)] {
            said.push(asked(pod, ip, headers).await);
        }
        assert_eq!(said, [None, None, by("share", 429), None]);
    })
    .await;
    both(
        1,
        || vec![keyed("skip", Missing::Skip), hourly("ip", 4, Stage::Request)],
        async |pod, source| {
            let (none, known) = (fields(&[]), fields(&[("x-key", "a")]));
            let mut said = Vec::new();
            for headers in [&none, &known, &known, &known, &none, &none] {
                said.push(asked(pod, "192.0.2.1", headers).await);
            }
            let expected = [None, None, None, by("skip", 429), None, by("ip", 429)];
            assert_eq!(said, expected, "the other limit counts all that are let through, and no other");
            assert_eq!(pod.counted("skip", Decision::Allowed, source), 2, "who is passed by is not counted");
            assert_eq!(pod.counted("ip", Decision::Allowed, source), 4);
        },
    )
    .await;
    let dry = || config::Limit { dry_run: true, ..keyed("dry", Missing::Deny) };
    both(
        1,
        || vec![dry(), hourly("ip", 2, Stage::Request), keyed("deny", Missing::Deny)],
        async |pod, _| {
            let (none, known) = (fields(&[]), fields(&[("x-key", "a")]));
            for _ in 0..3 {
                assert_eq!(asked(pod, "192.0.2.1", &none).await, by("deny", 429));
            }
            assert_eq!(asked(pod, "192.0.2.1", &known).await, None);
            assert_eq!(asked(pod, "192.0.2.1", &known).await, None, "the denials charged nothing");
            assert_eq!(pod.counted("deny", Decision::Denied, Source::Rule), 3);
            assert_eq!(pod.counted("dry", Decision::DryRun, Source::Rule), 3);
        },
    )
    .await;
}

#[tokio::test]
async fn lists_come_before_the_count_and_deny_before_allow() {
    let limits = || {
        let allow = nets(&["10.0.0.0/8", "2001:db8::/32", "::1/128"]);
        let deny = nets(&["10.9.0.0/16", "203.0.113.0/24"]);
        vec![config::Limit { allow, deny, ..hourly("listed", 1, Stage::Request) }]
    };
    both(1, limits, async |pod, source| {
        for ip in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8:1::1", "::1"] {
            for _ in 0..3 {
                assert_eq!(asked(pod, ip, &fields(&[])).await, None, "{ip}");
            }
        }
        for ip in ["10.9.1.1", "::ffff:10.9.1.1", "203.0.113.7"] {
            assert_eq!(asked(pod, ip, &fields(&[])).await, by("listed", 403), "{ip}");
        }
        assert_eq!(asked(pod, "192.0.2.1", &fields(&[])).await, None);
        assert_eq!(asked(pod, "192.0.2.1", &fields(&[])).await, by("listed", 429));
        assert_eq!(pod.counted("listed", Decision::Allowed, source), 1);
        assert_eq!(pod.counted("listed", Decision::Denied, Source::Rule), 3);
    })
    .await;
}

#[tokio::test]
async fn several_rates_of_a_limit_are_passed_by_together_and_what_is_told_is_what_was_asked() {
    let limits = || {
        let rate = |amount, period_ms| Quota::FixedWindow(Rate { amount, period_ms });
        let skip = config::Limit { quotas: vec![rate(5, 1000), rate(9, 60_000)], ..keyed("skip", Missing::Skip) };
        let later = config::Limit { on: Stage::Miss, ..hourly("later", 7, Stage::Miss) };
        vec![skip, hourly("ip", 8, Stage::Request), later]
    };
    both(1, limits, async |pod, _| {
        let told = async |headers: HeaderMap| {
            let mut charged = Charged::default();
            let ip = [192, 0, 2, 1].into();
            for stage in [Stage::Request, Stage::Miss] {
                assert!(matches!(pod.take_with(ip, &headers, stage, &mut charged).await, Verdict::Allow));
            }
            let mut told = HeaderMap::new();
            charged.append_fields(&mut told);
            assert_eq!(told.get_all("ratelimit-policy").iter().count(), 1);
            told["ratelimit-policy"].to_str().unwrap().to_owned()
        };
        let rest = "\"ip\";q=8;w=28800, \"later\";q=7;w=25200";
        assert_eq!(told(fields(&[])).await, rest);
        let all = format!("\"skip 5/s\";q=5;w=1, \"skip 9/m\";q=9;w=60, {rest}");
        assert_eq!(told(fields(&[("x-key", "a")])).await, all);
    })
    .await;
}

#[tokio::test]
async fn a_denial_at_a_later_stage_by_rule_gives_back_what_was_charged() {
    let later = || config::Limit { on: Stage::Miss, ..keyed("later", Missing::Deny) };
    both(
        1,
        || vec![hourly("first", 2, Stage::Request), later()],
        async |pod, _| {
            for _ in 0..5 {
                let denial = pod.denied(Stage::Miss).await.unwrap();
                assert_eq!((&*denial.limit.name, denial.retry_after), ("later", None));
                assert!(denial.explain().contains("does not say"), "{}", denial.explain());
            }
            assert_eq!(pod.admitted(5, Stage::Request).await, 2);
        },
    )
    .await;
}

#[tokio::test]
async fn a_limit_is_told_of_in_the_fields_that_it_names() {
    for (headers, draft, x) in [(Told::Draft, 1, 0), (Told::X, 0, 3), (Told::Both, 1, 3), (Told::None, 0, 0)] {
        let pod = Pod::new(vec![config::Limit { headers, ..limit("l", (6, 60_000), 2, Stage::Request) }]);
        let mut charged = Charged::default();
        assert!(matches!(pod.take(Stage::Request, &mut charged).await, Verdict::Allow));
        let mut fields = HeaderMap::new();
        charged.append_fields(&mut fields);
        let set: Vec<_> = charged.x_fields().set.iter().map(|(_, value)| value.to_str().unwrap().to_owned()).collect();
        assert_eq!((fields.contains_key("ratelimit-policy"), fields.len()), (draft == 1, 2 * draft), "{headers:?}");
        assert_eq!(set, ["2", "1", "10"][..x], "{headers:?}");
        assert_eq!(pod.admitted(1, Stage::Request).await, 1);
        let denial = pod.denied(Stage::Request).await.unwrap();
        let mut fields = HeaderMap::new();
        denial.append_fields(&mut fields);
        assert_eq!(fields.len(), 2 * draft + x + 1, "{headers:?}: {fields:?}");
        assert_eq!(fields[RETRY_AFTER], "10");
        if x > 0 {
            assert_eq!(fields["x-ratelimit-remaining"], "0");
            assert_eq!(fields["x-ratelimit-reset"], "10");
        }
    }
}

#[tokio::test]
async fn a_notice_is_filled_in_and_stays_json() {
    let notice = |kind, text| {
        let text = Arc::new(Blanks::parse(text, &Notice::BLANKS).unwrap());
        Some(Notice { content_type: HeaderValue::from_static(kind), text })
    };
    let said = async |limit: config::Limit| {
        let pod = Pod::new(vec![limit]);
        pod.admitted(2, Stage::Request).await;
        pod.denied(Stage::Request).await.unwrap().notice().unwrap().1
    };
    let busy = |notice| config::Limit {
        notice,
        status: StatusCode::SERVICE_UNAVAILABLE,
        ..limit("l", (6, 60_000), 2, Stage::Request)
    };
    let plain = said(busy(notice("text/plain", "{limit}: {status}, in {retry_after} s"))).await;
    assert_eq!(plain, "l: 503, in 10 s");
    let json = r#"{"error":{"limit":"{limit}","wait":{retry_after},"why":"{detail}"}}"#;
    for kind in ["application/json", "Application/Vnd.x+JSON; charset=utf-8"] {
        let value: serde_json::Value = serde_json::from_str(&said(busy(notice(kind, json))).await).unwrap();
        assert_eq!(value["error"]["wait"], 10);
        assert!(value["error"]["why"].as_str().unwrap().starts_with("The limit \"l\" is used up"), "{value}");
    }
    let listed = config::Limit { deny: nets(&["192.0.2.0/24"]), ..busy(notice("application/json", json)) };
    let value: serde_json::Value = serde_json::from_str(&said(listed).await).unwrap();
    assert!(value["error"]["wait"].is_null(), "no wait helps: {value}");
}
