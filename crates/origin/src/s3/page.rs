//! One page of a listing, parsed by us.
//!
//! object_store forces every key into its own path type, fails the whole page at a key that does not fit (`a//b`, `..`) and
//! cuts the `/` off folder markers. So the page is read here, from the answer, and object_store sees an empty one with
//! the same continuation token.

use bytes::Bytes;
use quick_xml::{DeError, Reader, escape::escape, events::Event};
use serde::Deserialize;

/// Objects exactly as the origin named them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub objects: Vec<Object>,
    /// Common prefixes, if they were asked for.
    pub folders: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub key: String,
    pub size: u64,
    pub mtime_ns: i64,
    pub e_tag: Option<String>,
}

/// Why an answer is no page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PageError {
    /// An S3 error of this code, with a status that says that all is well.
    #[error("an error of code {0}")]
    Refused(String),
    #[error("{0}")]
    NotS3(String),
    #[error("it breaks off: {0}")]
    BrokenOff(String),
    #[error("it is one part of a listing, and has no continuation token for the next")]
    NoToken,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListBucketResult {
    #[serde(default)]
    contents: Vec<Contents>,
    #[serde(default)]
    common_prefixes: Vec<CommonPrefix>,
    #[serde(default)]
    next_continuation_token: Option<String>,
    #[serde(default)]
    is_truncated: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CommonPrefix {
    prefix: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Contents {
    key: String,
    size: u64,
    #[serde(default)]
    last_modified: String,
    #[serde(default, rename = "ETag")]
    e_tag: Option<String>,
}

/// The page, and the answer for object_store in its place. What is no page must not be taken for one without keys, which ends the listing.
pub(super) fn parse(xml: &[u8]) -> Result<(Page, Bytes), PageError> {
    match root(xml)?.as_str() {
        "ListBucketResult" => {}
        "Error" => return Err(PageError::Refused(code(xml))),
        other => return Err(PageError::NotS3(format!("it is <{other}>"))),
    }
    let answer: ListBucketResult = quick_xml::de::from_reader(xml).map_err(|e| match e {
        DeError::InvalidXml(_) | DeError::UnexpectedEof => PageError::BrokenOff(e.to_string()),
        e => PageError::NotS3(e.to_string()),
    })?;
    let objects = answer.contents.into_iter().map(|c| Object {
        // A time that cannot be read is no reason to leave a file out.
        mtime_ns: c.last_modified.parse::<jiff::Timestamp>().map_or(0, |t| i64::try_from(t.as_nanosecond()).unwrap_or(0)),
        key: c.key,
        size: c.size,
        e_tag: c.e_tag.filter(|e| !e.is_empty()),
    });
    // Some servers send a token with the last page too.
    let token = answer.next_continuation_token.filter(|t| answer.is_truncated && !t.is_empty());
    if answer.is_truncated && token.is_none() {
        return Err(PageError::NoToken);
    }
    let token = token.map_or_else(String::new, |t| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(t)));
    let rest = format!("<ListBucketResult>{token}</ListBucketResult>");
    let folders = answer.common_prefixes.into_iter().map(|c| c.prefix).collect();
    Ok((Page { objects: objects.collect(), folders }, rest.into()))
}

/// Name of the element that holds all others.
fn root(xml: &[u8]) -> Result<String, PageError> {
    let mut reader = Reader::from_reader(xml);
    loop {
        match reader.read_event() {
            Ok(Event::Start(e) | Event::Empty(e)) => {
                let name: String = String::from_utf8_lossy(e.local_name().into_inner()).chars().take(64).collect();
                return Ok(name);
            }
            Ok(Event::Text(text)) if !text.trim_ascii().is_empty() => return Err(PageError::NotS3("it is no XML".to_owned())),
            Ok(Event::Eof) => return Err(PageError::BrokenOff("it has no element".to_owned())),
            Ok(_) => {}
            Err(e) => return Err(PageError::BrokenOff(e.to_string())),
        }
    }
}

/// `<Code>` of an S3 error; the rest of its text is left out, because it may repeat the request with its signature.
pub(super) fn code(xml: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Code")]
        code: String,
    }
    quick_xml::de::from_reader::<_, Answer>(xml).map(|a| a.code.chars().take(64).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_as_they_are() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix><KeyCount>4</KeyCount>
<IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b==</NextContinuationToken>
<Contents><Key>a//b</Key><LastModified>2026-01-02T03:04:05.006Z</LastModified><ETag>&quot;e1&quot;</ETag><Size>5</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key> x&lt;y &amp;#x1;&#x9;%20+é </Key><LastModified>bad</LastModified><ETag>"e2"</ETag><Size>0</Size><Owner><ID>1</ID></Owner></Contents>
<Contents><Key>dir/</Key><Size>0</Size></Contents>
<CommonPrefixes><Prefix>a &amp; b/</Prefix></CommonPrefixes><CommonPrefixes><Prefix>c/</Prefix></CommonPrefixes>
</ListBucketResult>"#;
        let (page, rest) = parse(xml.as_bytes()).unwrap();
        let keys: Vec<_> = page.objects.iter().map(|o| o.key.as_str()).collect();
        assert_eq!(keys, ["a//b", " x<y &#x1;\t%20+é ", "dir/"]);
        assert_eq!(page.objects[0].mtime_ns, 1_767_323_045_006_000_000);
        assert_eq!(page.objects[0].e_tag.as_deref(), Some("\"e1\""));
        assert_eq!(page.objects[2].e_tag, None);
        assert_eq!(page.folders, ["a & b/", "c/"]);
        assert_eq!(&rest[..], b"<ListBucketResult><NextContinuationToken>a&amp;b==</NextContinuationToken></ListBucketResult>");
    }

    #[test]
    fn an_empty_page_ends_the_listing() {
        let (page, rest) = parse(b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>").unwrap();
        assert_eq!(page, Page::default());
        assert_eq!(&rest[..], b"<ListBucketResult></ListBucketResult>");
    }

    #[test]
    fn what_is_no_page_is_not_taken_for_the_last_one() {
        for (xml, expected) in [
            ("<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>", PageError::NoToken),
            (
                "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken/></ListBucketResult>",
                PageError::NoToken,
            ),
            ("<Error><Code>SlowDown</Code></Error>", PageError::Refused("SlowDown".into())),
            ("<Error/>", PageError::Refused(String::new())),
            (
                r#"<!DOCTYPE html><html xmlns="http://www.w3.org/1999/xhtml"><body/></html>"#,
                PageError::NotS3("it is <html>".into()),
            ),
            ("<html>nginx</html", PageError::NotS3("it is <html>".into())),
            ("moved", PageError::NotS3("it is no XML".into())),
        ] {
            assert_eq!(parse(xml.as_bytes()).unwrap_err(), expected, "{xml}");
        }
        let size = "<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>";
        assert!(matches!(parse(size.as_bytes()), Err(PageError::NotS3(_))));
    }

    #[test]
    fn a_page_that_breaks_off_anywhere_is_seen_to() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>false</IsTruncated>
<Contents><Key>a&amp;b</Key><ETag>"e"</ETag><Size>15</Size></Contents><Contents><Key>c</Key><Size>0</Size></Contents></ListBucketResult>"#;
        assert_eq!(parse(xml.as_bytes()).unwrap().0.objects.len(), 2);
        for end in 0..xml.len() {
            let parsed = parse(&xml.as_bytes()[..end]);
            assert!(matches!(parsed, Err(PageError::BrokenOff(_))), "{}: {parsed:?}", &xml[..end]);
        }
    }
}
