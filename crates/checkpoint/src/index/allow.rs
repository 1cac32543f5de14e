//! The globals that an index may name, and how far each is trusted.

use std::collections::HashMap;

use crate::dtype::DType;
use crate::pickle::value::PLAIN_DICT;

/// Where torch keeps the classes of an index.
pub(crate) const METADATA: &str = "torch.distributed.checkpoint.metadata";
/// Where torch keeps what an index says of an item.
pub(crate) const FILE_SYSTEM: &str = "torch.distributed.checkpoint.filesystem";
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
/// Where torch keeps the classes of plans, which some trainers leave in an index to plan no more after a resume.
const PLANNER: &str = "torch.distributed.checkpoint.planner";
const PLANNER_NAMES: [&str; 6] =
    ["SavePlan", "WriteItem", "TensorWriteData", "BytesIOWriteData", "LoadPlan", "ReadItem"];
/// What our writer and reader leave in plans.
const OUR_PLAN_DATA: [(&str, &str); 2] =
    [("s3dcp.storage_writer", "_PlanData"), ("s3dcp.storage_reader", "_PlanData")];
/// Where torch kept two of those names before 2.3.
const OLD_METADATA: &str = "torch.distributed._shard.sharded_tensor.metadata";
const PATHS: [&str; 6] = ["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath", "Path", "PurePath"];

/// How far a global is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
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
    /// What the indexes of torch, of `s3torchconnector` and of this project name, and plans in them.
    #[must_use]
    pub fn default_globals() -> AllowList {
        let mut list = AllowList { names: HashMap::new() };
        for name in METADATA_NAMES {
            list.insert(METADATA, name, Trust::Maker);
        }
        list.insert(METADATA, "_MEM_FORMAT_ENCODING", Trust::Shared);
        list.insert(OLD_METADATA, "TensorProperties", Trust::Maker);
        list.insert(OLD_METADATA, "MEM_FORMAT_ENCODING", Trust::Shared);
        for name in PLANNER_NAMES {
            list.insert(PLANNER, name, Trust::Maker);
        }
        list.insert(PLANNER, "WriteItemType", Trust::Shared);
        list.insert(PLANNER, "LoadItemType", Trust::Shared);
        for (module, name) in OUR_PLAN_DATA {
            list.insert(module, name, Trust::Maker);
        }
        list.insert(FILE_SYSTEM, "_StorageInfo", Trust::Maker);
        list.insert(FILE_SYSTEM, "_StoragePrefix", Trust::Maker);
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
        list.insert(PLAIN_DICT.0, PLAIN_DICT.1, Trust::Maker);
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

    pub(crate) fn trust(&self, module: &str, name: &str) -> Option<Trust> {
        self.names.get(module)?.get(name).copied()
    }
}
