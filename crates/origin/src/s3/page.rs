//! One page of a listing, parsed by us.
//!
//! object_store forces every key into its own path type, fails the whole page at a key that does not fit (`a//b`, `..`) and
//! cuts the `/` off folder markers. So the page is read here, from the answer, and object_store sees an empty one with
//! the same continuation token.

use bytes::Bytes;
use quick_xml::escape::escape;
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

/// The page, and the answer for object_store in its place.
pub(super) fn parse(xml: &[u8]) -> Result<(Page, Bytes), quick_xml::DeError> {
    let answer: ListBucketResult = quick_xml::de::from_reader(xml)?;
    let objects = answer.contents.into_iter().map(|c| Object {
        // A time that cannot be read is no reason to leave a file out.
        mtime_ns: c.last_modified.parse::<jiff::Timestamp>().map_or(0, |t| i64::try_from(t.as_nanosecond()).unwrap_or(0)),
        key: c.key,
        size: c.size,
        e_tag: c.e_tag.filter(|e| !e.is_empty()),
    });
    // Some servers send a token with the last page too.
    let token = answer.next_continuation_token.filter(|t| answer.is_truncated && !t.is_empty());
    let token = token.map_or_else(String::new, |t| format!("<NextContinuationToken>{}</NextContinuationToken>", escape(t)));
    let rest = format!("<ListBucketResult>{token}</ListBucketResult>");
    let folders = answer.common_prefixes.into_iter().map(|c| c.prefix).collect();
    Ok((Page { objects: objects.collect(), folders }, rest.into()))
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
        assert!(parse(b"<html>nginx</html").is_err());
    }
}
