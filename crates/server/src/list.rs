//! Listing: which keys and which common prefixes come next.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// What to list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) delimiter: &'a str,
    /// Only what sorts after this.
    pub(crate) after: Option<&'a str>,
    /// Whether `after`, when it is itself a common prefix, also covers the keys below it: so for the end of the page
    /// before, not for a key that the client made up.
    pub(crate) after_covers_prefix: bool,
    pub(crate) limit: usize,
}

/// One page.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) objects: Vec<(String, T)>,
    pub(crate) prefixes: Vec<String>,
    /// The last key or common prefix of the page, if more follow.
    pub(crate) next: Option<String>,
}

impl<T> Page<T> {
    pub(crate) fn len(&self) -> usize {
        self.objects.len() + self.prefixes.len()
    }
}

/// Lists `objects` in the order of their keys' bytes.
pub(crate) fn list<T: Clone>(objects: &BTreeMap<String, T>, query: &Query<'_>) -> Page<T> {
    let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next: None };
    if query.limit == 0 {
        return page;
    }
    let start = match query.after {
        Some(after) if after >= query.prefix => Bound::Excluded(after),
        _ => Bound::Included(query.prefix),
    };
    let covered = query.after.filter(|after| {
        query.after_covers_prefix && !query.delimiter.is_empty() && after.ends_with(query.delimiter)
    });
    let mut last: Option<String> = None;
    for (key, object) in objects.range::<str, _>((start, Bound::Unbounded)) {
        let Some(rest) = key.strip_prefix(query.prefix) else { break };
        let common = match rest.find(query.delimiter) {
            Some(at) if !query.delimiter.is_empty() => {
                Some(&key[..query.prefix.len() + at + query.delimiter.len()])
            }
            _ => None,
        };
        if common.is_some_and(|common| {
            Some(common) == covered || page.prefixes.last().is_some_and(|p| p == common)
        }) {
            continue;
        }
        if page.len() == query.limit {
            page.next = last;
            break;
        }
        match common {
            Some(common) => page.prefixes.push(common.to_owned()),
            None => page.objects.push((key.clone(), object.clone())),
        }
        last = Some(common.unwrap_or(key).to_owned());
    }
    page
}

/// Lists what [`list`] does in the order of `place`, as a bucket without order does. Below what `unfinished` uploads are for, there
/// are common prefixes too. `query.after` is the end of the page before.
pub(crate) fn list_unordered<'a, T: Clone>(
    objects: &'a BTreeMap<String, T>,
    unfinished: impl Iterator<Item = &'a str>,
    query: &Query<'_>,
    place: impl Fn(&str) -> u64,
) -> Page<T> {
    let common = |key: &'a str| {
        let rest = key.strip_prefix(query.prefix)?;
        let at = rest.find(query.delimiter).filter(|_| !query.delimiter.is_empty())?;
        Some(&key[..query.prefix.len() + at + query.delimiter.len()])
    };
    let keys = objects.keys().map(String::as_str).chain(unfinished);
    let prefixes: BTreeSet<&str> = keys.filter_map(common).collect();
    let keys = objects.iter().filter(|(key, _)| key.starts_with(query.prefix) && common(key).is_none());
    let mut entries: Vec<(u64, &str, Option<&T>)> = prefixes
        .into_iter()
        .map(|prefix| (place(prefix), prefix, None))
        .chain(keys.map(|(key, object)| (place(key), key.as_str(), Some(object))))
        .filter(|(at, name, _)| query.after.is_none_or(|after| (*at, *name) > (place(after), after)))
        .collect();
    entries.sort_unstable_by_key(|(at, name, _)| (*at, *name));
    let more = query.limit > 0 && entries.len() > query.limit;
    entries.truncate(query.limit);
    let next = entries.last().filter(|_| more).map(|(_, name, _)| (*name).to_owned());
    let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next };
    for (_, name, object) in entries {
        match object {
            Some(object) => page.objects.push((name.to_owned(), object.clone())),
            None => page.prefixes.push(name.to_owned()),
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> BTreeMap<String, ()> {
        names.iter().map(|name| ((*name).to_owned(), ())).collect()
    }

    /// All pages, joined, as (keys, prefixes).
    fn walk(objects: &BTreeMap<String, ()>, query: &Query<'_>) -> (Vec<String>, Vec<String>) {
        let (mut names, mut prefixes, mut after) = (Vec::new(), Vec::new(), None::<String>);
        loop {
            let page = list(
                objects,
                &Query {
                    after: after.as_deref().or(query.after),
                    after_covers_prefix: after.is_some(),
                    ..query.clone()
                },
            );
            assert!(page.len() <= query.limit);
            names.extend(page.objects.into_iter().map(|(key, ())| key));
            prefixes.extend(page.prefixes);
            after = page.next;
            if after.is_none() {
                return (names, prefixes);
            }
        }
    }

    #[test]
    fn pages_of_any_size_join_to_the_same_listing() {
        let names = ["a", "a/1", "a/2/x", "a/2/y", "a0", "b//c", "b/d", "c/", "zz", "ü/ß"];
        let objects = keys(&names);
        for prefix in ["", "a", "a/", "b/", "none"] {
            for delimiter in ["", "/", "2/"] {
                let matching = names.iter().filter(|name| name.starts_with(prefix));
                let (mut expected, mut expected_prefixes) = (Vec::new(), BTreeSet::new());
                for name in matching {
                    match name[prefix.len()..].find(delimiter) {
                        Some(at) if !delimiter.is_empty() => {
                            expected_prefixes.insert(name[..prefix.len() + at + delimiter.len()].to_owned());
                        }
                        _ => expected.push((*name).to_owned()),
                    }
                }
                for limit in 1..12 {
                    let query = Query { prefix, delimiter, limit, ..Query::default() };
                    let expected = (expected.clone(), expected_prefixes.iter().cloned().collect());
                    assert_eq!(walk(&objects, &query), expected, "{query:?}");
                }
            }
        }
    }

    #[test]
    fn pages_without_order_join_to_the_same_listing() {
        let objects = keys(&["a", "a/1", "a/2/x", "a/2/y", "b/d", "zz"]);
        let place = |name: &str| name.bytes().map(u64::from).sum::<u64>() * 7919 % 13;
        for (prefix, delimiter) in [("", ""), ("", "/"), ("a/", ""), ("a/", "/")] {
            let query = Query { prefix, delimiter, limit: 100, ..Query::default() };
            let (mut names, mut prefixes) = walk(&objects, &query);
            for limit in 1..8 {
                let (mut found, mut common, mut after) = (Vec::new(), Vec::new(), None::<String>);
                loop {
                    let query = Query { after: after.as_deref(), limit, ..query.clone() };
                    let page = list_unordered(&objects, ["a/2/z", "c/d"].into_iter(), &query, place);
                    assert!(page.len() <= limit);
                    found.extend(page.objects.into_iter().map(|(key, ())| key));
                    common.extend(page.prefixes);
                    after = page.next;
                    if after.is_none() {
                        break;
                    }
                }
                if (prefix, delimiter) == ("", "/") {
                    // Only an upload under way is below it.
                    prefixes.retain(|prefix| prefix != "c/");
                    prefixes.push("c/".to_owned());
                }
                for names in [&mut names, &mut prefixes, &mut found, &mut common] {
                    names.sort_unstable();
                }
                assert_eq!((&found, &common), (&names, &prefixes), "{query:?} {limit}");
            }
        }
    }

    #[test]
    fn a_made_up_start_hides_only_what_sorts_before_it() {
        let objects = keys(&["a/1", "a/2", "b"]);
        let query = Query { after: Some("a/1"), limit: 10, ..Query::default() };
        assert_eq!(walk(&objects, &query).0, ["a/2", "b"]);
        let grouped = Query { delimiter: "/", ..query };
        assert_eq!(walk(&objects, &grouped), (vec!["b".to_owned()], vec!["a/".to_owned()]));
    }

    #[test]
    fn a_limit_of_nothing_lists_nothing() {
        assert_eq!(list(&keys(&["a"]), &Query { limit: 0, ..Query::default() }).next, None);
    }
}
