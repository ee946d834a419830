use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn object(key: &str) -> Object {
    Object { key: key.to_owned(), size: 1, mtime_ns: 0, e_tag: Some("e".into()) }
}

/// A server: gives pages of so many keys, tokens are the last key.
struct Server {
    keys: BTreeSet<String>,
    page: usize,
    /// Cannot begin behind a key.
    no_start_after: bool,
}

impl Server {
    fn answer(&self, after: Option<String>, token: Option<String>) -> (Vec<Object>, Option<String>) {
        let after = token.or(after.filter(|_| !self.no_start_after));
        let mut rest = self.keys.iter().filter(|k| after.as_ref().is_none_or(|a| *k > a));
        let page: Vec<Object> = rest.by_ref().take(self.page).map(|k| object(k)).collect();
        let token = rest.next().and_then(|_| page.last().map(|o| o.key.clone()));
        (page, token)
    }

    fn folders(&self, last: &str) -> Vec<String> {
        let folders: BTreeSet<String> = self
            .keys
            .iter()
            .filter_map(|k| k.split_once('/').map(|(f, _)| format!("{f}/")))
            .filter(|f| f.as_str() > last)
            .collect();
        folders.into_iter().collect()
    }
}

/// Everything listed, the number of requests, and the most that were under way together. `turn` says which answer comes next.
fn list(server: &Server, parallel: usize, mut turn: impl FnMut(usize) -> usize) -> (Vec<String>, u64, usize) {
    let (mut ranges, mut asked, mut keys) = (Ranges::new(parallel), Vec::new(), Vec::new());
    let (mut requests, mut together) = (0, 0);
    loop {
        if let Some(last) = ranges.wants_borders() {
            ranges.cut(&server.folders(&last));
        }
        while asked.len() < parallel
            && let Some(ask) = ranges.ask()
        {
            asked.push(ask);
        }
        together = together.max(asked.len());
        if asked.is_empty() {
            return (keys, requests, together);
        }
        let (id, after, token) = asked.remove(turn(asked.len()) % asked.len());
        requests += 1;
        let (page, token) = server.answer(after, token);
        keys.extend(ranges.take(id, page, token).unwrap().into_iter().map(|o| o.key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn each_key_is_listed_once_in_whatever_order_answers_come(
        keys in proptest::collection::btree_set("[ab]{1,2}(/[a-c]{1,2}){0,2}|é[0-9]{1,3}", 0..300),
        page in 1usize..8,
        no_start_after: bool,
        turns in proptest::collection::vec(any::<usize>(), 1..50),
    ) {
        let server = Server { keys: keys.clone(), page, no_start_after };
        let mut turn = turns.iter().cycle();
        let (listed, ..) = list(&server, 6, |_| *turn.next().unwrap());
        prop_assert_eq!(listed.len(), keys.len());
        prop_assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), keys);
    }
}

#[test]
fn one_large_folder_and_many_small_ones_are_both_listed_in_parallel_with_few_requests_in_vain() {
    let flat: BTreeSet<String> = (0..40_000).map(|i| format!("train/sample_{i:08}.jpeg")).collect();
    let folders: BTreeSet<String> = (0..40_000).map(|i| format!("n{:04}/{i}", i / 40)).collect();
    let skewed: BTreeSet<String> =
        (0..40_000).map(|i| if i % 100 == 0 { format!("{}/x", i / 100) } else { format!("0/{i:06}") }).collect();
    for keys in [flat, folders, skewed] {
        let server = Server { keys: keys.clone(), page: 100, no_start_after: false };
        let (listed, requests, together) = list(&server, 16, |_| 0);
        assert_eq!(listed.len(), keys.len());
        assert_eq!(together, 16);
        assert!(requests < 600, "{requests} requests for 400 pages");
    }
}

#[test]
fn a_short_listing_is_not_cut() {
    let keys: BTreeSet<String> = (0..800).map(|i| format!("{i:04}")).collect();
    let (_, requests, together) = list(&Server { keys, page: 100, no_start_after: false }, 16, |_| 0);
    assert_eq!((requests, together), (8, 1));
}

#[test]
fn a_server_without_order_is_listed_page_by_page() {
    let mut ranges = Ranges::new(4);
    for i in 0..20 {
        let (id, after, token) = ranges.ask().unwrap();
        assert!(ranges.ask().is_none());
        assert_eq!((id, after.is_some(), token.is_some()), (0, false, i > 0));
        let page = vec![object(&format!("{}", 100 - i)), object("b")];
        assert_eq!(ranges.take(id, page, (i < 19).then(|| format!("t{i}"))).unwrap().len(), 2);
    }
    assert!(ranges.ask().is_none());
}

#[test]
fn answers_that_would_never_end_are_errors() {
    let mut ranges = Ranges::new(4);
    for (n, (token, expected)) in [(0, Ok(1)), (1, Ok(1)), (0, Err(Odd::Token))].into_iter().enumerate() {
        let (id, ..) = ranges.ask().unwrap();
        let taken = ranges.take(id, vec![object(&format!("{}", 9 - n))], Some(format!("t{token}")));
        assert_eq!(taken.map(|o| o.len()), expected);
    }
    // With new tokens, and not at once.
    let mut ranges = Ranges::new(4);
    for (n, (key, expected)) in [("c", Ok(1)), ("b", Ok(1)), ("c", Err(Odd::Page))].into_iter().enumerate() {
        let (id, ..) = ranges.ask().unwrap();
        let taken = ranges.take(id, vec![object(key)], Some(format!("t{n}")));
        assert_eq!(taken.map(|o| o.len()), expected);
    }
    let mut ranges = Ranges::new(1);
    let mut n = 0;
    let odd = loop {
        let (id, ..) = ranges.ask().unwrap();
        n += 1;
        if let Err(odd) = ranges.take(id, Vec::new(), Some(format!("t{n}"))) {
            break odd;
        }
    };
    assert_eq!((odd, n), (Odd::Empty, 1001));
}
