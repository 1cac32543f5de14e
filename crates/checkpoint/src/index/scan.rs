//! Judges an index pickle before Python unpickles it, and notes what commit and clean-up need to know of it.
//!
//! The whole pickle is walked on an abstract stack, so that a name taken through the memo or built by STACK_GLOBAL
//! is seen as what it is. Beyond the names, the walk refuses what no index needs and an attack would use: calling
//! or changing anything but an allowed global, changing a class itself or a shared enum member, giving an object a
//! second state or one after it was used, persistent ids, tuples nested so deep that hashing them would overflow the
//! C stack, and copying or hashing one large container over and over (arguments, states and keys are paid for from a
//! budget in proportion to the input).
//!
//! Of the values themselves only as much is kept as [`Survey`] answers: no tree, but a few bytes per object, dict
//! and text, and eight per place of the memo.

use std::collections::BTreeSet;

use s3dcp_s3::Error;

use crate::error::corrupt;
use crate::index::allow::{AllowList, FILE_SYSTEM, METADATA, Trust};
use crate::index::facts::IndexFacts;
use crate::pickle::machine::{self, Builder};
use crate::pickle::opcode::Op;
use crate::pickle::value::PLAIN_DICT;

/// Deepest nesting of tuples and frozen sets, which Python hashes by recursion.
const MAX_DEPTH: u8 = 100;
/// Elements and text bytes that calls and states may copy and keys may hash, per byte of the pickle.
pub(crate) const COPIES_PER_BYTE: u64 = 16;
/// What is free of that charge, so that small pickles are never refused.
pub(crate) const FREE_COPIES: u64 = 1 << 16;

/// Walks the pickle at the front of `pickle` and answers its length, STOP included.
///
/// # Errors
/// `Corrupt`, saying what was refused: a global that is not on the list (named in the message), a malformed or
/// unusual opcode, or one of the bounds.
pub fn scan_index(pickle: &[u8], allow: &AllowList) -> Result<usize, Error> {
    Survey::of(pickle, allow, Others::Refused).map(|survey| survey.length)
}

/// What to do about globals that are not on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// The pickle is refused.
    Refused,
    /// They are as good as any: nobody will unpickle this.
    Ignored,
}

/// What the walk knows of an item.
#[derive(Clone, Copy, Debug)]
enum Abstract {
    /// Booleans and floats.
    Scalar,
    None,
    Int(i32),
    /// A place in `longs`.
    Long(u32),
    /// A place in `texts`, and which attribute has this name.
    Text(u32, Option<Attribute>),
    /// So many bytes, or text of as many that UTF-8 cannot say.
    Bytes(u32),
    /// An integer of more than 64 bits, of this many bytes.
    Huge(u32),
    /// A tuple or frozen set: elements and text bytes in it all the way down, and whether a list or dict is in it.
    Fixed {
        weight: u32,
        depth: u8,
        holds_mutable: bool,
    },
    List,
    Set,
    /// A place in `dicts`.
    Dict(u32),
    Global(Trust, Class),
    /// A place in `objects`.
    Object(Trust, Class, u32),
}

/// The classes whose objects are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Metadata,
    MetadataIndex,
    StorageMeta,
    StorageInfo,
    PlainDict,
    Other,
}

impl Class {
    fn of(module: &str, name: &str) -> Class {
        match (module, name) {
            (METADATA, "Metadata") => Class::Metadata,
            (METADATA, "MetadataIndex") => Class::MetadataIndex,
            (METADATA, "StorageMeta") => Class::StorageMeta,
            (FILE_SYSTEM, "_StorageInfo") => Class::StorageInfo,
            PLAIN_DICT => Class::PlainDict,
            _ => Class::Other,
        }
    }
}

/// The attributes that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    RelativePath,
    Offset,
    Length,
    Crc32,
    StorageData,
    StateDictMetadata,
    StorageMeta,
    SaveId,
    Ours,
    Ranks,
    Epoch,
    Notes,
    WritesPerMinute,
}

impl Attribute {
    fn of(name: &str) -> Option<Attribute> {
        Some(match name {
            "relative_path" => Attribute::RelativePath,
            "offset" => Attribute::Offset,
            "length" => Attribute::Length,
            "crc32" => Attribute::Crc32,
            "storage_data" => Attribute::StorageData,
            "state_dict_metadata" => Attribute::StateDictMetadata,
            "storage_meta" => Attribute::StorageMeta,
            "save_id" => Attribute::SaveId,
            "s3dcp" => Attribute::Ours,
            "ranks" => Attribute::Ranks,
            "epoch" => Attribute::Epoch,
            "notes" => Attribute::Notes,
            "writes_per_minute" => Attribute::WritesPerMinute,
            _ => return None,
        })
    }
}

/// What is known of a dict.
#[derive(Clone, Copy, Debug)]
struct Dict {
    length: u32,
    /// Of its values, as far as hashing goes.
    weight: u32,
    /// As a state: the text of `relative_path`.
    path: u32,
    flags: u8,
}

/// What is known of an object.
#[derive(Clone, Copy, Debug)]
struct Object {
    /// Elements that hashing it touches.
    weight: u32,
    flags: u8,
}

/// `relative_path` is a text; of an object: it is built and names a shard file.
const NAMES_FILE: u8 = 1;
/// `offset`, `length` are sizes; of an object: both are.
const HAS_OFFSET: u8 = 2;
const HAS_LENGTH: u8 = 4;
/// There is a `crc32`; of a dict as storage data: an entry has one.
const HAS_CRC32: u8 = 8;
/// A value is no object that names a shard file.
const HOLDS_UNNAMED: u8 = 16;
/// An entry is not a `MetadataIndex` and an object with a name and sizes.
const HOLDS_OTHERS: u8 = 32;
/// Of an object: it has its state.
const BUILT: u8 = 64;
/// Of an object: it is in a tuple, a set or a dict, which have seen what it weighs.
const USED: u8 = 128;

impl Abstract {
    fn is_mutable(self) -> bool {
        match self {
            Abstract::List | Abstract::Dict(_) | Abstract::Set => true,
            Abstract::Fixed { holds_mutable, .. } => holds_mutable,
            _ => false,
        }
    }
}

/// An index that was walked.
pub(crate) struct Survey<'a> {
    /// Bytes of the pickle, STOP included.
    pub(crate) length: usize,
    judge: Judge<'a>,
}

impl<'a> Survey<'a> {
    /// Walks the pickle at the front of `pickle`.
    ///
    /// # Errors
    /// As for [`scan_index`].
    pub(crate) fn of(pickle: &'a [u8], allow: &AllowList, others: Others) -> Result<Survey<'a>, Error> {
        let judge = Judge {
            budget: FREE_COPIES + pickle.len() as u64 * COPIES_PER_BYTE,
            texts: Vec::new(),
            longs: Vec::new(),
            dicts: Vec::new(),
            first_unshared: 0,
            objects: Vec::new(),
            attributes: Vec::new(),
            files: BTreeSet::new(),
            file_texts: BTreeSet::new(),
            last_file: "",
            metadata: None,
            storage_meta: None,
        };
        let mut walk = Walk { judge, allow, others };
        let outcome = machine::run(pickle, &mut walk)?;
        let mut judge = walk.judge;
        if !matches!((outcome.item, &judge.metadata),
            (Abstract::Object(_, _, root), Some(metadata)) if root == metadata.object)
        {
            judge.metadata = None;
        }
        Ok(Survey { length: outcome.length, judge })
    }

    /// What commit, clean-up and listing need to know.
    ///
    /// # Errors
    /// `Corrupt` for a pickle that is no checkpoint metadata, and for items that name no shard file.
    pub(crate) fn facts(&self) -> Result<IndexFacts, Error> {
        let judge = &self.judge;
        let metadata = judge.metadata()?;
        let items = match metadata.storage_data {
            Some(Abstract::None) => None,
            Some(Abstract::Dict(items)) => Some(judge.dicts[items as usize]),
            Some(_) => return Err(corrupt("index: storage_data is no dict")),
            None => return Err(corrupt("index: storage_data is missing")),
        };
        if items.is_some_and(|items| items.flags & HOLDS_UNNAMED != 0) {
            return Err(corrupt("index: an item names no shard file"));
        }
        let mut facts = IndexFacts {
            relative_paths: judge.files.iter().map(|&file| file.to_owned()).collect(),
            item_count: items.map_or(0, |items| items.length.into()),
            has_checksums: items.is_some_and(|items| items.flags & HAS_CRC32 != 0),
            ..IndexFacts::default()
        };
        if let Some(meta) = &judge.storage_meta
            && matches!(metadata.storage_meta, Some(Abstract::Object(_, _, object)) if object == meta.object)
        {
            facts.save_id = judge.text_of(meta.save_id).map(str::to_owned);
            if let Some(Abstract::Dict(ours)) = meta.ours {
                let number = |name| judge.int_of(judge.attribute(ours, name));
                facts.ranks = number(Attribute::Ranks).and_then(|ranks| u64::try_from(ranks).ok());
                facts.epoch = number(Attribute::Epoch);
                facts.writes_per_minute =
                    number(Attribute::WritesPerMinute).and_then(|writes| u64::try_from(writes).ok());
                facts.notes = judge.text_of(judge.attribute(ours, Attribute::Notes)).map(str::to_owned);
            }
        }
        Ok(facts)
    }

    /// The texts of the pickle, counted from 0, that name shard files.
    pub(crate) fn file_texts(&self) -> &BTreeSet<u32> {
        &self.judge.file_texts
    }

    /// Sees that what Python will make of this is an index, with a name, offset and length of every item; whether an
    /// item has a checksum.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check(&self) -> Result<bool, Error> {
        let judge = &self.judge;
        let malformed = |what: &str| Err(corrupt(format!("the index is malformed: {what}")));
        let metadata = judge.metadata()?;
        match metadata.state_dict_metadata {
            Some(Abstract::Dict(_) | Abstract::Object(Trust::Maker | Trust::Caller, Class::Other, _)) => {}
            _ => return malformed("state_dict_metadata is not a dict"),
        }
        match metadata.storage_meta {
            None
            | Some(Abstract::None | Abstract::Object(_, Class::StorageMeta, _))
            | Some(Abstract::Object(Trust::Caller, _, _)) => {}
            _ => return malformed("storage_meta"),
        }
        let Some(Abstract::Dict(items)) = metadata.storage_data else {
            return malformed("storage_data is not a dict");
        };
        let items = judge.dicts[items as usize];
        if items.flags & HOLDS_OTHERS != 0 {
            return malformed("an entry of storage_data has no index, file name, offset or length");
        }
        Ok(items.flags & HAS_CRC32 != 0)
    }
}

/// The attributes of the `Metadata` object when it was built.
struct BuiltMetadata {
    object: u32,
    state_dict_metadata: Option<Abstract>,
    storage_data: Option<Abstract>,
    storage_meta: Option<Abstract>,
}

/// The attributes of the `StorageMeta` object when it was built.
struct BuiltStorageMeta {
    object: u32,
    save_id: Option<Abstract>,
    ours: Option<Abstract>,
}

struct Judge<'a> {
    budget: u64,
    texts: Vec<&'a str>,
    /// Integers beyond 32 bits.
    longs: Vec<i64>,
    dicts: Vec<Dict>,
    /// From this place on, each dict is referred to once.
    first_unshared: u32,
    objects: Vec<Object>,
    /// Values of the few attributes that are asked for by name: dict, name, value.
    attributes: Vec<(u32, Attribute, Abstract)>,
    /// The shard files that the items name.
    files: BTreeSet<&'a str>,
    /// The texts that name them.
    file_texts: BTreeSet<u32>,
    last_file: &'a str,
    metadata: Option<BuiltMetadata>,
    storage_meta: Option<BuiltStorageMeta>,
}

impl<'a> Judge<'a> {
    fn metadata(&self) -> Result<&BuiltMetadata, Error> {
        self.metadata.as_ref().ok_or_else(|| corrupt("index: not a pickled checkpoint Metadata"))
    }

    fn pay(&mut self, cost: u32) -> Result<(), Error> {
        match self.budget.checked_sub(cost.into()) {
            Some(left) if cost < u32::MAX => {
                self.budget = left;
                Ok(())
            }
            _ => Err(corrupt("index: its objects copy far more than its size accounts for")),
        }
    }

    fn weight(&self, item: Abstract) -> u32 {
        match item {
            Abstract::Text(place, _) => clamp(self.texts[place as usize].len()).saturating_add(1),
            Abstract::Bytes(length) | Abstract::Huge(length) => length.saturating_add(1),
            Abstract::Fixed { weight, .. } => weight,
            Abstract::Object(_, _, place) => self.objects[place as usize].weight,
            _ => 1,
        }
    }

    /// The same for hashing, which a text or bytes remember.
    fn hash_weight(&self, item: Abstract) -> u32 {
        match item {
            Abstract::Text(..) | Abstract::Bytes(_) => 1,
            other => self.weight(other),
        }
    }

    fn pay_for_hashing(&mut self, item: Abstract) -> Result<(), Error> {
        match self.hash_weight(item) {
            1 => Ok(()),
            weight => self.pay(weight),
        }
    }

    fn mark_used(&mut self, item: Abstract) {
        if let Abstract::Object(_, _, place) = item {
            self.objects[place as usize].flags |= USED;
        }
    }

    fn fixed(&mut self, items: &[Abstract]) -> Result<Abstract, Error> {
        let mut weight = 1u32;
        let mut depth = 1;
        let mut holds_mutable = false;
        for &item in items {
            self.mark_used(item);
            weight = weight.saturating_add(self.weight(item));
            holds_mutable |= item.is_mutable();
            if let Abstract::Fixed { depth: inner, .. } = item {
                depth = depth.max(inner + 1);
            }
        }
        if depth > MAX_DEPTH {
            return Err(corrupt(format!("index: tuples nested more than {MAX_DEPTH} deep")));
        }
        Ok(Abstract::Fixed { weight, depth, holds_mutable })
    }

    fn text_of(&self, item: Option<Abstract>) -> Option<&'a str> {
        match item {
            Some(Abstract::Text(place, _)) => self.texts.get(place as usize).copied(),
            _ => None,
        }
    }

    fn int_of(&self, item: Option<Abstract>) -> Option<i64> {
        match item {
            Some(Abstract::Int(value)) => Some(value.into()),
            Some(Abstract::Long(place)) => self.longs.get(place as usize).copied(),
            _ => None,
        }
    }

    /// The value last set for this attribute in a dict.
    fn attribute(&self, dict: u32, name: Attribute) -> Option<Abstract> {
        let found = self.attributes.iter().rev().find(|known| known.0 == dict && known.1 == name);
        found.map(|known| known.2)
    }

    /// Notes what a dict holds from now on.
    fn set(&mut self, place: u32, key: Abstract, value: Abstract) {
        let weight = self.hash_weight(value);
        let dict = &mut self.dicts[place as usize];
        dict.weight = dict.weight.saturating_add(weight);
        let item = match value {
            Abstract::Object(Trust::Maker, Class::StorageInfo, object)
            | Abstract::Object(Trust::Caller, _, object) => self.objects[object as usize].flags,
            _ => 0,
        };
        let whole = NAMES_FILE | HAS_OFFSET | HAS_LENGTH;
        dict.flags |= item & HAS_CRC32;
        if item & NAMES_FILE == 0 {
            dict.flags |= HOLDS_UNNAMED;
        }
        let is_index = matches!(
            key,
            Abstract::Object(_, Class::MetadataIndex, _) | Abstract::Object(Trust::Caller, _, _)
        );
        if !is_index || item & whole != whole {
            dict.flags |= HOLDS_OTHERS;
        }
        let Abstract::Text(_, Some(name)) = key else { return };
        let (flag, holds) = match name {
            Attribute::RelativePath => {
                if let Abstract::Text(path, _) = value {
                    dict.path = path;
                }
                (NAMES_FILE, matches!(value, Abstract::Text(..)))
            }
            Attribute::Offset | Attribute::Length => {
                let is_size = match value {
                    Abstract::Int(number) => number >= 0,
                    Abstract::Long(place) => self.longs[place as usize] >= 0,
                    _ => false,
                };
                (if name == Attribute::Offset { HAS_OFFSET } else { HAS_LENGTH }, is_size)
            }
            Attribute::Crc32 => (HAS_CRC32, true),
            _ => {
                self.attributes.push((place, name, value));
                return;
            }
        };
        dict.flags = if holds { dict.flags | flag } else { dict.flags & !flag };
    }

    /// Sees that an object, of which more will be known with its state, has none yet and is in nothing yet.
    fn is_fresh(&self, object: u32) -> Result<(), Error> {
        match self.objects[object as usize].flags & (BUILT | USED) {
            0 => Ok(()),
            _ => Err(corrupt("index: sets the state of an object twice, or after it was used")),
        }
    }

    /// Forgets a dict that nothing refers to any more, where it is the last: the states of items are the most that there is.
    fn forget(&mut self, dict: u32) {
        if dict >= self.first_unshared && dict as usize + 1 == self.dicts.len() {
            self.dicts.pop();
            while self.attributes.pop_if(|known| known.0 == dict).is_some() {}
        }
    }

    /// Notes the state that an object gets from a dict.
    fn built(&mut self, class: Class, object: u32, state: u32) -> Result<(), Error> {
        let dict = self.dicts[state as usize];
        match class {
            Class::Metadata if self.metadata.is_some() => {
                return Err(corrupt("index: holds more than one Metadata"));
            }
            Class::StorageMeta if self.storage_meta.is_some() => {
                return Err(corrupt("index: holds more than one StorageMeta"));
            }
            _ => {}
        }
        self.objects[object as usize] = Object {
            weight: dict.weight.saturating_add(1),
            flags: BUILT | dict.flags & (NAMES_FILE | HAS_OFFSET | HAS_LENGTH | HAS_CRC32),
        };
        match class {
            Class::Metadata => {
                self.metadata = Some(BuiltMetadata {
                    object,
                    state_dict_metadata: self.attribute(state, Attribute::StateDictMetadata),
                    storage_data: self.attribute(state, Attribute::StorageData),
                    storage_meta: self.attribute(state, Attribute::StorageMeta),
                });
            }
            Class::StorageMeta => {
                self.storage_meta = Some(BuiltStorageMeta {
                    object,
                    save_id: self.attribute(state, Attribute::SaveId),
                    ours: self.attribute(state, Attribute::Ours),
                });
            }
            Class::StorageInfo | Class::Other if dict.flags & NAMES_FILE != 0 => {
                let file = self.texts[dict.path as usize];
                if !std::ptr::eq(file, self.last_file) {
                    self.files.insert(file);
                    self.file_texts.insert(dict.path);
                    self.last_file = file;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A length, as far as it goes; where it ends nothing can be paid for any more.
fn clamp(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// The next place of a table.
fn place(length: usize) -> Result<u32, Error> {
    u32::try_from(length).map_err(|_| corrupt("index: too many objects"))
}

/// The judge on its walk.
struct Walk<'a, 'l> {
    judge: Judge<'a>,
    allow: &'l AllowList,
    others: Others,
}

impl<'a> Builder<'a> for Walk<'a, '_> {
    type Item = Abstract;

    #[inline(always)]
    fn plain(&mut self, op: Op<'a>) -> Result<Abstract, Error> {
        let judge = &mut self.judge;
        Ok(match op {
            Op::None => Abstract::None,
            Op::Int(value) => match i32::try_from(value) {
                Ok(value) => Abstract::Int(value),
                Err(_) => {
                    judge.longs.push(value);
                    Abstract::Long(place(judge.longs.len() - 1)?)
                }
            },
            Op::Text(text) => {
                judge.texts.push(text);
                Abstract::Text(place(judge.texts.len() - 1)?, Attribute::of(text))
            }
            // no key of an object and no attribute has such a name
            Op::Bytes(bytes) | Op::Surrogates(bytes) => Abstract::Bytes(clamp(bytes.len())),
            Op::LongInt(bytes) => Abstract::Huge(clamp(bytes.len())),
            Op::EmptyTuple => Abstract::Fixed { weight: 1, depth: 1, holds_mutable: false },
            Op::EmptyList => Abstract::List,
            Op::EmptySet => Abstract::Set,
            Op::EmptyDict => {
                judge.dicts.push(Dict { length: 0, weight: 0, path: 0, flags: 0 });
                Abstract::Dict(place(judge.dicts.len() - 1)?)
            }
            _ => Abstract::Scalar,
        })
    }

    #[inline(always)]
    fn tuple(&mut self, items: &[Abstract]) -> Result<Abstract, Error> {
        self.judge.fixed(items)
    }

    fn frozen_set(&mut self, items: &[Abstract]) -> Result<Abstract, Error> {
        items.iter().try_for_each(|&item| self.judge.pay_for_hashing(item))?;
        self.judge.fixed(items)
    }

    fn extend(&mut self, target: Abstract, items: &[Abstract]) -> Result<(), Error> {
        match target {
            Abstract::List | Abstract::Object(Trust::Caller, _, _) => Ok(()),
            Abstract::Set => items.iter().try_for_each(|&item| {
                self.judge.mark_used(item);
                self.judge.pay_for_hashing(item)
            }),
            _ => Err(corrupt("index: appends to something that is no list")),
        }
    }

    fn set_items(&mut self, target: Abstract, pairs: &[Abstract]) -> Result<(), Error> {
        for pair in pairs.chunks_exact(2) {
            self.judge.mark_used(pair[0]);
            self.judge.mark_used(pair[1]);
            self.judge.pay_for_hashing(pair[0])?;
        }
        match target {
            Abstract::Dict(place) => {
                let dict = &mut self.judge.dicts[place as usize];
                dict.length = dict.length.saturating_add(clamp(pairs.len() / 2));
                for pair in pairs.chunks_exact(2) {
                    self.judge.set(place, pair[0], pair[1]);
                }
            }
            Abstract::Object(Trust::Maker | Trust::Caller, _, _) => {}
            _ => return Err(corrupt("index: sets items of something that is no dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<Abstract, Error> {
        let class = Class::of(module, name);
        match self.allow.trust(module, name) {
            Some(trust) => Ok(Abstract::Global(trust, class)),
            None if self.others == Others::Ignored => Ok(Abstract::Global(Trust::Caller, class)),
            None => {
                let name = format!("{module}.{name}").chars().take(200).collect::<String>();
                Err(corrupt(format!(
                    "index: refers to {name}, which is not allowed (a reader's allowed_globals may add it, if you \
                     trust the checkpoint)"
                )))
            }
        }
    }

    fn text(&self, item: Abstract) -> Option<&'a str> {
        self.judge.text_of(Some(item))
    }

    #[inline(always)]
    fn call(
        &mut self,
        callable: Abstract,
        arguments: Abstract,
        keywords: Option<Abstract>,
    ) -> Result<Abstract, Error> {
        let Abstract::Global(trust, class) = callable else {
            return Err(corrupt("index: calls something that is no global"));
        };
        let mut weight = 1;
        if trust != Trust::Caller {
            let Abstract::Fixed { weight: copied, holds_mutable: false, .. } = arguments else {
                return Err(corrupt("index: unusual arguments of a call"));
            };
            if keywords.is_some() {
                return Err(corrupt("index: a call with keyword arguments"));
            }
            if class == Class::PlainDict {
                return match copied {
                    1 => self.plain(Op::EmptyDict),
                    _ => Err(corrupt("index: a dict that is made of arguments")),
                };
            }
            self.judge.pay(copied)?;
            weight = copied;
        }
        self.judge.objects.push(Object { weight, flags: 0 });
        Ok(Abstract::Object(trust, class, place(self.judge.objects.len() - 1)?))
    }

    #[inline(always)]
    fn build(&mut self, object: Abstract, state: Abstract) -> Result<(), Error> {
        match (object, state) {
            (
                Abstract::Object(trust @ (Trust::Maker | Trust::Caller), class, object),
                Abstract::Dict(state),
            ) => {
                if trust == Trust::Maker {
                    self.judge.is_fresh(object)?;
                    self.judge.pay(self.judge.dicts[state as usize].length)?;
                }
                self.judge.built(class, object, state)?;
                self.judge.forget(state);
                Ok(())
            }
            (Abstract::Object(Trust::Caller, _, _), _) => Ok(()),
            (
                Abstract::Object(Trust::Maker, class, object),
                Abstract::Fixed { weight, holds_mutable: false, .. },
            ) => match class {
                // their states are dicts
                Class::Metadata | Class::StorageMeta | Class::StorageInfo => {
                    Err(corrupt("index: an unusual state"))
                }
                _ => {
                    self.judge.is_fresh(object)?;
                    self.judge.objects[object as usize] = Object { weight, flags: BUILT };
                    self.judge.pay(weight)
                }
            },
            _ => Err(corrupt("index: sets the state of something shared, or an unusual state")),
        }
    }

    fn persistent(&mut self, _id: Abstract) -> Result<Abstract, Error> {
        Err(corrupt("index: a persistent id"))
    }

    #[inline(always)]
    fn shared(&mut self, item: Abstract) {
        if let Abstract::Dict(place) = item {
            self.judge.first_unshared = self.judge.first_unshared.max(place + 1);
        }
    }
}
