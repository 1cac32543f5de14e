//! Judges an index pickle before Python unpickles it: an allow-list of globals, and bounds on what they may cost.
//!
//! The whole pickle is walked on an abstract stack, so that a name taken through the memo or built by STACK_GLOBAL
//! is seen as what it is. Beyond the names, the walk refuses what no index needs and an attack would use: calling
//! or changing anything but an allowed global, changing a class itself or a shared enum member, persistent ids,
//! tuples nested so deep that hashing them would overflow the C stack, and copying one large container over and
//! over (arguments and states are paid for from a budget in proportion to the input).

use std::collections::HashMap;

use s3dcp_s3::Error;

use super::machine::{self, Builder};
use super::opcode::Op;
use crate::dtype::DType;
use crate::error::corrupt;

/// Deepest nesting of tuples and frozen sets, which Python hashes by recursion.
const MAX_DEPTH: u16 = 100;
/// Elements and text bytes that calls and states may copy, per byte of the pickle.
const COPIES_PER_BYTE: u64 = 16;
/// What is free of that charge, so that small pickles are never refused.
const FREE_COPIES: u64 = 1 << 16;

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const METADATA_NAMES: [&str; 8] = [
    "Metadata",
    "MetadataIndex",
    "TensorStorageMetadata",
    "BytesStorageMetadata",
    "ChunkStorageMetadata",
    "TensorProperties",
    "StorageMeta",
    "_MEM_FORMAT_ENCODING",
];
/// Where torch kept two of those names before 2.3.
const OLD_METADATA: &str = "torch.distributed._shard.sharded_tensor.metadata";
const PATHS: [&str; 6] = ["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath"];

/// How far a global is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Makes a fresh small object.
    Maker,
    /// Makes or is something shared by the whole process: its attributes must stay.
    Shared,
    /// Named by the caller, who answers for it.
    Caller,
}

/// The globals an index may name.
#[derive(Clone, Debug)]
pub struct AllowList {
    names: HashMap<String, HashMap<String, Trust>>,
}

impl AllowList {
    /// What the indexes of torch, of `s3torchconnector` and of this project name.
    #[must_use]
    pub fn default_globals() -> AllowList {
        let mut list = AllowList { names: HashMap::new() };
        for name in METADATA_NAMES {
            list.insert(METADATA, name, Trust::Maker);
        }
        list.insert(METADATA, "_MEM_FORMAT_ENCODING", Trust::Shared);
        list.insert(OLD_METADATA, "TensorProperties", Trust::Maker);
        list.insert(OLD_METADATA, "MEM_FORMAT_ENCODING", Trust::Shared);
        list.insert("torch.distributed.checkpoint.filesystem", "_StorageInfo", Trust::Maker);
        list.insert("torch.distributed.checkpoint.filesystem", "_StoragePrefix", Trust::Maker);
        list.insert("torch", "Size", Trust::Maker);
        list.insert("torch", "device", Trust::Maker);
        list.insert("torch.serialization", "_get_layout", Trust::Shared);
        for dtype in DType::all() {
            list.insert("torch", dtype.torch_name(), Trust::Shared);
        }
        for name in ["quint8", "qint8", "qint32", "quint4x2", "quint2x4", "float4_e2m1fn_x2", "bcomplex32"] {
            list.insert("torch", name, Trust::Shared);
        }
        for name in ["bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"] {
            list.insert("torch", name, Trust::Shared);
        }
        list.insert("collections", "OrderedDict", Trust::Maker);
        for module in ["pathlib", "pathlib._local"] {
            for name in PATHS {
                list.insert(module, name, Trust::Maker);
            }
        }
        list
    }

    /// The same list and these (module, name) pairs, which the caller trusts with any argument.
    #[must_use]
    pub fn with<M: AsRef<str>, N: AsRef<str>>(
        mut self,
        extra: impl IntoIterator<Item = (M, N)>,
    ) -> AllowList {
        for (module, name) in extra {
            let names = self.names.entry(module.as_ref().to_owned()).or_default();
            names.entry(name.as_ref().to_owned()).or_insert(Trust::Caller);
        }
        self
    }

    /// Whether this global is on the list.
    #[must_use]
    pub fn allows(&self, module: &str, name: &str) -> bool {
        self.trust(module, name).is_some()
    }

    /// Every (module, name) pair, in no particular order.
    pub fn globals(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names
            .iter()
            .flat_map(|(module, names)| names.keys().map(move |name| (module.as_str(), name.as_str())))
    }

    fn insert(&mut self, module: &str, name: &str, trust: Trust) {
        self.names.entry(module.to_owned()).or_default().insert(name.to_owned(), trust);
    }

    fn trust(&self, module: &str, name: &str) -> Option<Trust> {
        self.names.get(module)?.get(name).copied()
    }
}

/// Walks the pickle at the front of `pickle` and answers its length, STOP included.
///
/// # Errors
/// `Corrupt`, saying what was refused: a global that is not on the list (named in the message), a malformed or
/// unusual opcode, or one of the bounds.
pub fn scan_index(pickle: &[u8], allow: &AllowList) -> Result<usize, Error> {
    let budget = FREE_COPIES + pickle.len() as u64 * COPIES_PER_BYTE;
    let mut judge = Judge { allow, budget, lengths: Vec::new() };
    machine::run(pickle, &mut judge).map(|outcome| outcome.length)
}

/// What the walk knows of an item.
#[derive(Clone, Copy)]
enum Abstract<'a> {
    Scalar,
    Text(&'a str),
    Bytes(u64),
    /// A tuple or frozen set: elements and text bytes in it all the way down, and whether a list or dict is in it.
    Fixed {
        weight: u64,
        depth: u16,
        holds_mutable: bool,
    },
    List(u32),
    Dict(u32),
    Set(u32),
    Global(Trust),
    Object(Trust),
}

impl Abstract<'_> {
    fn is_mutable(self) -> bool {
        match self {
            Abstract::List(_) | Abstract::Dict(_) | Abstract::Set(_) => true,
            Abstract::Fixed { holds_mutable, .. } => holds_mutable,
            _ => false,
        }
    }

    fn weight(self) -> u64 {
        match self {
            Abstract::Text(text) => 1 + text.len() as u64,
            Abstract::Bytes(length) => 1 + length,
            Abstract::Fixed { weight, .. } => weight,
            _ => 1,
        }
    }
}

struct Judge<'l> {
    allow: &'l AllowList,
    budget: u64,
    /// The lengths, so far, of the lists, dicts and sets.
    lengths: Vec<u64>,
}

impl Judge<'_> {
    fn pay(&mut self, cost: u64) -> Result<(), Error> {
        match self.budget.checked_sub(cost) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err(corrupt("index: its objects copy far more than its size accounts for")),
        }
    }

    fn container(&mut self) -> Result<u32, Error> {
        let place = u32::try_from(self.lengths.len()).map_err(|_| corrupt("index: too many containers"))?;
        self.lengths.push(0);
        Ok(place)
    }

    fn grow(&mut self, place: u32, count: usize) {
        self.lengths[place as usize] += count as u64;
    }

    fn fixed<'a>(&self, items: &[Abstract<'a>]) -> Result<Abstract<'a>, Error> {
        let mut weight = 1u64;
        let mut depth = 1;
        let mut holds_mutable = false;
        for &item in items {
            weight = weight.saturating_add(item.weight());
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
}

impl<'a> Builder<'a> for Judge<'_> {
    type Item = Abstract<'a>;

    fn plain(&mut self, op: Op<'a>) -> Result<Abstract<'a>, Error> {
        Ok(match op {
            Op::Text(text) => Abstract::Text(text),
            Op::Bytes(bytes) | Op::LongInt(bytes) => Abstract::Bytes(bytes.len() as u64),
            Op::EmptyTuple => Abstract::Fixed { weight: 1, depth: 1, holds_mutable: false },
            Op::EmptyList => Abstract::List(self.container()?),
            Op::EmptyDict => Abstract::Dict(self.container()?),
            Op::EmptySet => Abstract::Set(self.container()?),
            _ => Abstract::Scalar,
        })
    }

    fn tuple(&mut self, items: &[Abstract<'a>]) -> Result<Abstract<'a>, Error> {
        self.fixed(items)
    }

    fn frozen_set(&mut self, items: &[Abstract<'a>]) -> Result<Abstract<'a>, Error> {
        self.fixed(items)
    }

    fn extend(&mut self, target: Abstract<'a>, items: &[Abstract<'a>]) -> Result<(), Error> {
        match target {
            Abstract::List(place) | Abstract::Set(place) => self.grow(place, items.len()),
            Abstract::Object(Trust::Caller) => {}
            _ => return Err(corrupt("index: appends to something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, target: Abstract<'a>, pairs: &[Abstract<'a>]) -> Result<(), Error> {
        match target {
            Abstract::Dict(place) => self.grow(place, pairs.len() / 2),
            Abstract::Object(Trust::Maker | Trust::Caller) => {}
            _ => return Err(corrupt("index: sets items of something that is no dict")),
        }
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<Abstract<'a>, Error> {
        match self.allow.trust(module, name) {
            Some(trust) => Ok(Abstract::Global(trust)),
            None => {
                let name = format!("{module}.{name}").chars().take(200).collect::<String>();
                Err(corrupt(format!("index: refers to {name}, which is not allowed")))
            }
        }
    }

    fn text(&self, item: Abstract<'a>) -> Option<&'a str> {
        match item {
            Abstract::Text(text) => Some(text),
            _ => None,
        }
    }

    fn call(
        &mut self,
        callable: Abstract<'a>,
        arguments: Abstract<'a>,
        keywords: Option<Abstract<'a>>,
    ) -> Result<Abstract<'a>, Error> {
        let Abstract::Global(trust) = callable else {
            return Err(corrupt("index: calls something that is no global"));
        };
        if trust != Trust::Caller {
            let Abstract::Fixed { weight, holds_mutable: false, .. } = arguments else {
                return Err(corrupt("index: unusual arguments of a call"));
            };
            if keywords.is_some() {
                return Err(corrupt("index: a call with keyword arguments"));
            }
            self.pay(weight)?;
        }
        Ok(Abstract::Object(trust))
    }

    fn build(&mut self, object: Abstract<'a>, state: Abstract<'a>) -> Result<(), Error> {
        match (object, state) {
            (Abstract::Object(Trust::Caller), _) => Ok(()),
            (Abstract::Object(Trust::Maker), Abstract::Dict(place)) => self.pay(self.lengths[place as usize]),
            (Abstract::Object(Trust::Maker), Abstract::Fixed { weight, holds_mutable: false, .. }) => {
                self.pay(weight)
            }
            _ => Err(corrupt("index: sets the state of something shared, or an unusual state")),
        }
    }

    fn persistent(&mut self, _id: Abstract<'a>) -> Result<Abstract<'a>, Error> {
        Err(corrupt("index: a persistent id"))
    }
}
