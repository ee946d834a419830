//! Which part of a listing is asked for next, and whether the answers can be.

use super::{super::page::Object, middle::middle};
use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
};

/// Pages before a listing is worth cutting.
const WALK: u64 = 8;
/// Cuts that may turn out to have been of no use: each costs a request.
const CUTS: u64 = 64;
/// And one more for so many pages that brought something.
const PAGES_PER_CUT: u64 = 8;
/// Pages without a key, one behind the other. A few are normal, where much was deleted.
const EMPTY: u32 = 1000;

/// Answers that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Odd {
    Token,
    Page,
    Order,
    Empty,
}

/// Keys behind `last` up to `end`.
#[derive(Default)]
struct Range {
    last: Option<String>,
    end: Option<String>,
    token: Option<String>,
    /// Pages since it was cut: says that there is something to cut.
    pages: u64,
    /// Pages without a key.
    empty: u32,
    /// The range whose end this was, until this has shown that there is something in it.
    cut_from: Option<u64>,
}

enum Mode {
    /// Page by page, and it is not known yet for how long.
    Walking,
    /// The same page as this token's is asked for by key: can the server do that?
    Proving {
        token: String,
    },
    /// It can; borders are wanted.
    Proven,
    Ranges,
    /// Page by page to the end.
    Serial,
}

/// The parts of a listing. [`Self::ask`] and [`Self::take`] take turns, in any order and number.
pub(super) struct Ranges {
    parallel: usize,
    mode: Mode,
    ranges: BTreeMap<u64, Range>,
    ready: VecDeque<u64>,
    next: u64,
    pages: u64,
    cuts: u64,
    /// Of tokens seen while the listing goes page by page.
    tokens: HashSet<u64>,
    /// And of the keys of each page: a server may make up a new token for the same page.
    seen: HashSet<u64>,
    hasher: RandomState,
}

impl Ranges {
    pub fn new(parallel: usize) -> Self {
        Self {
            parallel,
            mode: Mode::Walking,
            ranges: BTreeMap::from([(0, Range::default())]),
            ready: VecDeque::from([0]),
            next: 1,
            pages: 0,
            cuts: 0,
            tokens: HashSet::new(),
            seen: HashSet::new(),
            hasher: RandomState::new(),
        }
    }

    /// A range whose next page is wanted, with the key or the token that it begins behind.
    pub fn ask(&mut self) -> Option<(u64, Option<String>, Option<String>)> {
        let id = self.ready.pop_front().or_else(|| self.cut_one())?;
        let range = self.ranges.get_mut(&id)?;
        match range.token.take() {
            Some(token) if matches!(self.mode, Mode::Walking) && self.pages >= WALK && range.last.is_some() => {
                self.mode = Mode::Proving { token };
                Some((id, range.last.clone(), None))
            }
            Some(token) => Some((id, None, Some(token))),
            None => Some((id, range.last.clone(), None)),
        }
    }

    /// Takes the answer; gives the objects that belong to the range.
    pub fn take(&mut self, id: u64, mut objects: Vec<Object>, token: Option<String>) -> Result<Vec<Object>, Odd> {
        let Some(range) = self.ranges.get_mut(&id) else { return Ok(Vec::new()) };
        let mut last = range.last.as_deref();
        let ordered = objects.iter().all(|o| last.replace(o.key.as_str()).is_none_or(|before| before < o.key.as_str()));
        self.pages += 1;
        match std::mem::replace(&mut self.mode, Mode::Serial) {
            Mode::Proving { token } if !ordered || objects.is_empty() => {
                // What came is not what comes next. The token still holds.
                range.token = Some(token);
                self.ready.push_back(id);
                return Ok(Vec::new());
            }
            Mode::Walking if !ordered => {}
            Mode::Proving { .. } => self.mode = Mode::Proven,
            Mode::Ranges if !ordered => return Err(Odd::Order),
            mode => self.mode = mode,
        }
        if let (Mode::Walking | Mode::Serial, Some(token)) = (&self.mode, &token) {
            if !self.tokens.insert(self.hasher.hash_one(token)) {
                return Err(Odd::Token);
            }
            let mut page = self.hasher.build_hasher();
            objects.iter().for_each(|o| o.key.hash(&mut page));
            if !objects.is_empty() && !self.seen.insert(page.finish()) {
                return Err(Odd::Page);
            }
        }
        let count = objects.len();
        if let Some(end) = &range.end {
            objects.truncate(objects.partition_point(|o| o.key <= *end));
        }
        let at_end = objects.last().is_some_and(|o| range.end.as_ref() == Some(&o.key));
        let more = token.is_some() && objects.len() == count && !at_end;
        match objects.last() {
            Some(o) => {
                range.last = Some(o.key.clone());
                range.pages += 1;
                range.empty = 0;
                range.cut_from = None;
            }
            None => range.empty += 1,
        }
        if more && range.empty > EMPTY {
            return Err(Odd::Empty);
        }
        let cut_from = range.cut_from;
        if more {
            range.token = token;
            self.ready.push_back(id);
        } else {
            self.ranges.remove(&id);
            // Nothing was in there: what it was cut from is smaller than it seemed, and may be cut again.
            if let Some(from) = cut_from.and_then(|id| self.ranges.get_mut(&id)) {
                from.pages += 1;
            }
        }
        Ok(objects)
    }

    /// The last key listed, once folders behind it are wanted to cut at.
    pub fn wants_borders(&self) -> Option<String> {
        let only = self.ranges.values().next().filter(|_| matches!(self.mode, Mode::Proven))?;
        only.last.clone()
    }

    /// Cuts what is left at some of these keys, which ascend.
    pub fn cut(&mut self, borders: &[String]) {
        self.mode = Mode::Ranges;
        let Some(id) = self.ranges.keys().next().copied() else { return };
        let pieces = self.parallel.min(borders.len() + 1);
        // From behind: each cuts the end off what is left.
        for piece in (1..pieces).rev() {
            self.cut_at(id, borders[piece * borders.len() / pieces].clone());
        }
    }

    /// Cuts the range that gave most since it was last cut.
    fn cut_one(&mut self) -> Option<u64> {
        if !matches!(self.mode, Mode::Ranges) || self.cuts >= CUTS + self.pages / PAGES_PER_CUT {
            return None;
        }
        loop {
            let (id, range) = self.ranges.iter_mut().filter(|(_, r)| r.pages > 0).max_by_key(|(_, r)| r.pages)?;
            range.pages = 0;
            if let Some(at) = range.last.as_deref().and_then(|last| middle(last, range.end.as_deref())) {
                let id = *id;
                let new = self.cut_at(id, at);
                self.cuts += 1;
                // It is asked for at once.
                self.ready.retain(|ready| *ready != new);
                return Some(new);
            }
        }
    }

    fn cut_at(&mut self, id: u64, at: String) -> u64 {
        let new = self.next;
        self.next += 1;
        let end = self.ranges.get_mut(&id).and_then(|range| range.end.replace(at.clone()));
        self.ranges.insert(new, Range { last: Some(at), end, cut_from: Some(id), ..Range::default() });
        self.ready.push_back(new);
        new
    }
}

#[cfg(test)]
mod tests;
