//! The little XML that S3 speaks: a bounded tree for what comes in, a writer for what goes out.
//!
//! No namespaces, attributes or entities of a document type: S3 uses none, so a document with one is refused or
//! has it ignored.

use std::error::Error as StdError;

use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::Event;
use quick_xml::reader::Reader;

/// Deepest nesting that is followed; S3's responses have four levels.
const MAX_DEPTH: usize = 16;
/// Longest name of an element, in bytes; S3's longest has 30.
const MAX_NAME: usize = 100;

/// What is wrong with a document.
pub(crate) type Malformed = Box<dyn StdError + Send + Sync>;

/// One element with its text and children.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) children: Vec<Element>,
}

impl Element {
    /// The first child of this name.
    pub(crate) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of this name; `None` where there is none or it is empty.
    pub(crate) fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str()).filter(|text| !text.is_empty())
    }
}

fn named(name: &str) -> Result<Element, Malformed> {
    if name.len() > MAX_NAME {
        return Err(format!("a name of {} bytes", name.len()).into());
    }
    Ok(Element { name: name.to_owned(), ..Element::default() })
}

/// Reads a document.
pub(crate) fn parse(bytes: &[u8]) -> Result<Element, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| "not UTF-8")?;
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = Vec::new();
    loop {
        match reader.read_event()? {
            Event::Start(start) => {
                if open.len() == MAX_DEPTH {
                    return Err(format!("more than {MAX_DEPTH} levels").into());
                }
                open.push(named(start.local_name().as_ref())?);
            }
            Event::Empty(start) => {
                let element = named(start.local_name().as_ref())?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::End(_) => {
                let element = open.pop().ok_or("an end without a start")?;
                match open.last_mut() {
                    Some(parent) => parent.children.push(element),
                    None => return Ok(element),
                }
            }
            Event::Text(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.into_inner());
                }
            }
            Event::CData(text) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&text.into_inner());
                }
            }
            Event::GeneralRef(reference) => {
                let name: &str = &reference;
                let element = open.last_mut().ok_or("a reference outside of the document")?;
                match (name.strip_prefix('#'), resolve_predefined_entity(name)) {
                    (Some(number), _) => element.text.push(character(number)?),
                    (None, Some(text)) => element.text.push_str(text),
                    (None, None) => return Err(format!("unknown entity &{name:.40};").into()),
                }
            }
            Event::DocType(_) => return Err("a document type".into()),
            Event::Decl(_) | Event::Comment(_) | Event::PI(_) => {}
            Event::Eof => return Err("ends in the middle".into()),
        }
    }
}

/// What is wrong, in a line: parsers repeat what they were given.
pub(crate) fn line(malformed: &Malformed) -> String {
    malformed.to_string().chars().take(200).collect()
}

/// S3 writes control characters of keys as references that XML itself would forbid.
fn character(number: &str) -> Result<char, String> {
    let value = match number.strip_prefix('x') {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => number.parse(),
    };
    value.ok().and_then(char::from_u32).ok_or_else(|| format!("unknown reference &#{number:.40};"))
}

/// Appends `<name>text</name>`, escaped.
pub(crate) fn push_text(out: &mut String, name: &str, text: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    // Carriage returns and other controls would not survive a parser that follows the rules.
    for part in escape(text).chars() {
        if part.is_control() {
            out.push_str(&format!("&#{};", u32::from(part)));
        } else {
            out.push(part);
        }
    }
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_with_its_entities_and_spaces() {
        let root = parse(
            br#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Prefix/>
              <Contents><Key> a &amp; b&#x20;&#10;&lt;c&gt; </Key><Size>3</Size></Contents>
              <Contents><Key><![CDATA[x&y]]></Key></Contents>
            </ListBucketResult>"#,
        )
        .unwrap();
        assert_eq!(root.name, "ListBucketResult");
        let keys: Vec<_> = root.all("Contents").map(|c| c.text_of("Key").unwrap()).collect();
        assert_eq!(keys, [" a & b \n<c> ", "x&y"]);
        assert_eq!(root.text_of("Prefix"), None);
    }

    #[test]
    fn broken_or_hostile_documents_are_refused() {
        let deep = "<a>".repeat(1000);
        let long = "a".repeat(1000);
        let (name, pair, entity, number) = (
            format!("<{long}/>"),
            format!("<a></{long}>"),
            format!("<a>&{long};</a>"),
            format!("<a>&#{long};</a>"),
        );
        for document in [
            name.as_str(),
            &pair,
            &entity,
            &number,
            "",
            "<a>",
            "<a></b>",
            "</a>",
            "<a>&unknown;</a>",
            "<a>&#xFFFFFFFF;</a>",
            "no xml",
            deep.as_str(),
            "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
        ] {
            let error = parse(document.as_bytes()).expect_err(&format!("{document:.40}"));
            assert!(line(&error).chars().count() <= 200, "{error}");
        }
        assert!(parse(b"<a>\xff</a>").is_err());
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["", "a&b<c>\"'", "line\nbreak\r\t", "\u{1}ä日本"] {
            let mut out = String::new();
            push_text(&mut out, "Key", text);
            assert_eq!(parse(out.as_bytes()).unwrap().text, text);
        }
    }
}
