//! Indexes, which a stranger may have written.

use s3dcp_checkpoint::{
    AllowList, Layout, MAPPINGS, Outline, check_index, read_contents, read_facts, scan_index, seal_index,
};
use s3dcp_s3::crc32;

/// An index that may be unpickled is whole, names nothing that is not in it, and stays the same under a trailer that
/// no damage gets past.
pub fn index(data: &[u8]) {
    let allow = AllowList::default_globals();
    let checked = check_index(data, &allow);
    let facts = read_facts(data);
    let layout = Layout::new("run");
    let contents = read_contents(data, &layout, &allow);
    let Ok(length) = scan_index(data, &allow) else {
        checked.expect_err("what the walk refuses is no index");
        return;
    };
    assert_eq!(data[length - 1], b'.');
    scan_index(&data[..length - 1], &allow).expect_err("a pickle without its end");
    if checked.is_err() {
        contents.expect_err("what may not be unpickled is not read either");
        return;
    }
    if let Ok(contents) = &contents {
        assert!(contents.tensors.len() + contents.objects.len() <= data.len());
        let chunks = contents.tensors.values().flat_map(|tensor| &tensor.chunks);
        assert!(chunks.count() as u64 <= (1 << 16) + 16 * data.len() as u64);
    }
    let facts = facts.expect("what may be unpickled can be read");
    assert!(facts.item_count <= data.len() as u64);
    for path in facts.relative_paths.iter().take(8) {
        assert!(path.is_empty() || data.windows(path.len()).any(|window| window == path.as_bytes()));
    }
    if let Some(outline) = Outline::of(data, &allow).expect("what may be unpickled") {
        outlined(data, &outline, facts.item_count);
    }
    let mut sealed = seal_index(data.to_vec());
    check_index(&sealed, &allow).expect("an index under a trailer");
    assert_eq!(read_facts(&sealed).expect("an index under a trailer"), facts);
    assert_eq!(read_contents(&sealed, &layout, &allow).ok(), contents.ok());
    sealed[crc32(data) as usize % data.len()] ^= 0x40;
    check_index(&sealed, &allow).expect_err("a damaged index under a trailer");
    read_facts(&sealed).expect_err("a damaged index under a trailer");
}

/// What is cut out of an index is an index without entries, and pickles of their own.
fn outlined(data: &[u8], outline: &Outline, item_count: u64) {
    let frame = outline.frame(data).expect("the pickle that was outlined");
    let allow = AllowList::default_globals();
    check_index(&seal_index(frame), &allow).expect("an index without entries");
    assert!(outline.count(1).is_none_or(|count| count as u64 == item_count || count == 0));
    let is_there = |mapping| outline.count(mapping) != Some(0);
    for mapping in 0..MAPPINGS.len() {
        if is_there(mapping) {
            let length =
                |second| outline.mappings(data, mapping, second).expect("the pickle that was outlined").len();
            assert!(length(None) <= 8 * data.len() + 16);
            for other in (0..mapping).filter(|&other| is_there(other)) {
                assert!(length(Some(other)) <= 2 * 8 * data.len() + 16);
            }
        }
        for number in (0..).take(4) {
            let Some(entry) = outline.entry(data, mapping, number).expect("the pickle that was outlined")
            else {
                break;
            };
            assert_eq!(entry.last(), Some(&b'.'));
        }
    }
}
