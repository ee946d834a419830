//! Lists a prefix from several places at the same time.
//!
//! ```text
//! pages one after another ─► many? ─► common prefixes are borders of ranges ─► pages of many ranges at a time
//!                                                      ▲                          │ one is done
//!                                                      └── the busiest is cut ◄───┘
//! ```
//!
//! Nothing depends on how the keys are named: ranges are cut between keys, also inside of one large folder. A server that does
//! not list in the order of the keys, or cannot begin behind one, is listed page by page.

mod middle;
mod ranges;

use super::{
    S3, classify,
    classify::Action,
    page::{Object, Page},
};
use crate::Error;
use futures::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered, Stream},
};
use ranges::{Odd, Ranges};

/// Pages asked for at the same time: at 100 ms for a page of 1000 keys 100 million take 10 minutes. Amazon allows 5,500
/// requests a second for a prefix.
const PARALLEL: usize = 16;
/// Folders gone down to find borders, when there is only one on each level.
const DOWN: usize = 8;

/// What a page is asked for with.
#[derive(Clone, Debug, Default)]
pub(super) struct Ask {
    /// Only what is beneath this, with what the source begins with in front.
    pub prefix: String,
    /// Keys behind this one.
    pub after: Option<String>,
    /// Where the page before ended.
    pub token: Option<String>,
    /// Name folders instead of what is in them.
    pub folders: bool,
}

type Answer<'a> = BoxFuture<'a, (u64, Result<(Page, Option<String>), Error>)>;

struct Listing<'a> {
    s3: &'a S3,
    ranges: Ranges,
    pages: FuturesUnordered<Answer<'a>>,
}

/// All objects beneath the source's prefix; ends after the first error.
pub(super) fn all(s3: &S3) -> impl Stream<Item = Result<Vec<Object>, Error>> + Send + '_ {
    let listing = Listing { s3, ranges: Ranges::new(PARALLEL), pages: FuturesUnordered::new() };
    stream::unfold(Some(listing), |listing| async {
        let mut listing = listing?;
        match listing.next().await {
            Ok(Some(objects)) => Some((Ok(objects), Some(listing))),
            Ok(None) => None,
            Err(e) => Some((Err(e), None)),
        }
    })
}

impl Listing<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Object>>, Error> {
        if let Some(last) = self.ranges.wants_borders() {
            let borders = borders(self.s3, &last).await?;
            self.ranges.cut(&borders);
        }
        while self.pages.len() < PARALLEL
            && let Some((range, after, token)) = self.ranges.ask()
        {
            let (s3, prefix) = (self.s3, self.s3.source.prefix.clone());
            let page = async move { (range, s3.page(&Ask { prefix, after, token, folders: false }).await) };
            self.pages.push(Box::pin(page));
        }
        let Some((range, answer)) = self.pages.next().await else { return Ok(None) };
        let (page, token) = answer?;
        self.ranges.take(range, page.objects, token).map(Some).map_err(|odd| {
            let text = match odd {
                Odd::Token => "gave the same continuation token twice, so that the listing would never end",
                Odd::Page => "sent the same keys for two continuation tokens, so that the listing would never end",
                Odd::Order => "listed keys out of order, after it had listed many in order",
                Odd::Empty => "sent page after page without a key and without an end",
            };
            classify::odd(&self.s3.source, Action::List, text)
        })
    }
}

/// Folders behind a key: as far down as there is only one.
async fn borders(s3: &S3, last: &str) -> Result<Vec<String>, Error> {
    let mut prefix = s3.source.prefix.clone();
    for _ in 0..DOWN {
        let ask = Ask { prefix: prefix.clone(), after: Some(last.to_owned()), token: None, folders: true };
        let (page, _) = s3.page(&ask).await?;
        match page.folders.as_slice() {
            [only] if last.starts_with(only.as_str()) && only.len() > prefix.len() => prefix.clone_from(only),
            folders => return Ok(folders.iter().filter(|f| f.as_str() > last).cloned().collect()),
        }
    }
    Ok(Vec::new())
}
