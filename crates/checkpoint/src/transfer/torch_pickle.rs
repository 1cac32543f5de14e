//! The tensors in the pickle of a `torch.save` file, which is read and never run: dicts and lists of tensors and plain values. What else it
//! would make is refused by name.

use s3dcp_s3::Error;

use crate::archive::parse::{Plain, rebuilt_tensor};
use crate::error::{config, corrupt};
use crate::pickle::value::{Tree, Value};

/// Deepest nesting of dicts and lists.
const MAX_LEVELS: usize = 64;
/// Values that are looked at, per byte of the pickle: one that is in many places counts as often.
const VISITS_PER_BYTE: usize = 4;
/// What is free of that, so that small pickles are never refused.
const FREE_VISITS: usize = 1 << 16;

/// What a file of torch.save holds.
pub(crate) struct TorchContents<'a> {
    /// Names, of keys and numbers with dots between them, and tensors.
    pub(crate) tensors: Vec<(String, Plain<'a>)>,
    /// Names of plain values that are no tensors.
    pub(crate) others: Vec<String>,
}

/// Reads the pickle of such a file.
///
/// # Errors
/// `Corrupt` for what is no pickle; `Config` for one that would make something else than tensors and plain values.
pub(crate) fn torch_contents(pickle: &[u8]) -> Result<TorchContents<'_>, Error> {
    let tree = Tree::read(pickle)?;
    let mut walk = Walk {
        contents: TorchContents { tensors: Vec::new(), others: Vec::new() },
        left: FREE_VISITS + pickle.len() * VISITS_PER_BYTE,
        tree: &tree,
    };
    walk.visit(String::new(), tree.root(), 0)?;
    Ok(walk.contents)
}

struct Walk<'a, 't> {
    tree: &'t Tree<'a>,
    contents: TorchContents<'a>,
    left: usize,
}

impl<'a> Walk<'a, '_> {
    fn visit(&mut self, name: String, value: Value, depth: usize) -> Result<(), Error> {
        let tree = self.tree;
        self.left = self
            .left
            .checked_sub(1 + name.len() / 8)
            .ok_or_else(|| corrupt("torch file: its values share far more than its size accounts for"))?;
        if depth > MAX_LEVELS {
            return Err(corrupt(format!("torch file: nested more than {MAX_LEVELS} levels deep")));
        }
        if let Some(pairs) = tree.dict(value) {
            let pairs: Vec<_> = pairs.collect();
            return self.visit_pairs(&name, pairs, depth);
        }
        if let Some(items) = tree.list(value).or_else(|| tree.tuple(value)) {
            for (number, &item) in items.iter().enumerate() {
                self.visit(below(&name, &number.to_string()), item, depth + 1)?;
            }
            return Ok(());
        }
        match tree.maker(value) {
            Some(("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")) => {
                let data = tree.arguments(value).and_then(|arguments| arguments.first().copied());
                self.visit(name, data.ok_or_else(|| unknown("a parameter without data"))?, depth + 1)
            }
            Some(("torch._utils", rebuild)) => match rebuilt_tensor(tree, value)? {
                Some(tensor) => {
                    self.contents.tensors.push((name, tensor));
                    Ok(())
                }
                None => {
                    Err(unknown(&format!("{name}: a tensor of torch._utils.{rebuild}, which is not plain")))
                }
            },
            Some(("collections", "OrderedDict")) => {
                let pairs: Vec<_> = tree.object_items(value).collect();
                self.visit_pairs(&name, pairs, depth)
            }
            Some(("torch", "Size" | "device")) => self.leave_out(name),
            Some((module, class)) => Err(unknown(&format!("{name}: an object of {module}.{class}"))),
            None => match (value, tree.global(value)) {
                (_, Some(("torch", _))) => self.leave_out(name),
                (_, Some((module, class))) => Err(unknown(&format!("{name}: {module}.{class}"))),
                (Value::Node(_), None) if !tree.is_set(value) => Err(unknown(&name)),
                _ => self.leave_out(name),
            },
        }
    }

    fn visit_pairs(&mut self, name: &str, pairs: Vec<(Value, Value)>, depth: usize) -> Result<(), Error> {
        for (key, value) in pairs {
            let key = match (self.tree.text(key), self.tree.int(key)) {
                (Some(text), _) => text.to_owned(),
                (_, Some(number)) => number.to_string(),
                _ => return Err(unknown(&format!("{name}: a key that is neither text nor a number"))),
            };
            self.visit(below(name, &key), value, depth + 1)?;
        }
        Ok(())
    }

    fn leave_out(&mut self, name: String) -> Result<(), Error> {
        self.contents.others.push(name);
        Ok(())
    }
}

fn below(name: &str, key: &str) -> String {
    if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") }
}

fn unknown(what: &str) -> Error {
    let shown: String = what.chars().take(200).collect();
    config(format!("torch file: it holds more than tensors and plain values: {shown}"))
}
