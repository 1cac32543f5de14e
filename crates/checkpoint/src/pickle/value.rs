//! A pickle as a tree of plain data: globals stay names, calls stay unexecuted records.
//!
//! For the pickles inside tensor archives, and for indexes that have been judged. Containers, globals and calls live in
//! one arena and refer to each other by number, so reference cycles are harmless; what they hold lies in another, eight
//! bytes a value, so that a tree of millions of values takes few allocations and little memory. Contents of sets are not
//! kept: nobody here asks for them.

use std::collections::HashMap;

use s3dcp_s3::Error;

use super::machine::{self, Builder};
use super::opcode::Op;
use crate::error::corrupt;

/// Called without arguments it makes an empty dict: so are dicts pickled that are of a class of their own.
pub(crate) const PLAIN_DICT: (&str, &str) = ("builtins", "dict");

/// One datum of a [`Tree`], which tells what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i32),
    /// A place in [`Tree::longs`].
    Long(u32),
    /// A place in [`Tree::texts`].
    Text(u32),
    /// A place in [`Tree::bytes`].
    Bytes(u32),
    /// A container, a global or an object: a place in [`Tree::nodes`].
    Node(u32),
    /// Something nobody here asks about: floats, integers of more than 64 bits.
    Other,
}

/// Values that lie next to each other in [`Tree::values`].
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u32,
    length: u32,
}

/// What a list or dict holds. One that is filled at once, as nearly all are, has a run; one that is filled in steps has a
/// place in [`Tree::grown`].
#[derive(Clone, Copy, Debug)]
enum Filled {
    Once(Run),
    InSteps(u32),
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Tuple(Run),
    List(Filled),
    /// Keys and values take turns.
    Dict(Filled),
    Set,
    /// A place in [`Tree::globals`].
    Global(u32),
    /// Where its callable and its arguments are, then what it was built from last, if it was.
    Object {
        start: u32,
        is_built: bool,
    },
    /// Where its id is.
    Persistent(u32),
}

/// A whole pickle, read.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    nodes: Vec<Node>,
    texts: Vec<&'a str>,
    bytes: Vec<&'a [u8]>,
    /// Integers beyond 32 bits.
    longs: Vec<i64>,
    values: Vec<Value>,
    grown: Vec<Vec<Value>>,
    globals: Vec<(&'a str, &'a str)>,
    /// Keys and values that were set in objects, such as an OrderedDict.
    items: HashMap<u32, Vec<Value>>,
    root: Value,
    length: usize,
}

impl<'a> Tree<'a> {
    /// Reads the pickle at the front of `bytes`.
    ///
    /// # Errors
    /// `Corrupt` for whatever Python's pickler would not write.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Tree<'a>, Error> {
        let mut tree = Tree {
            nodes: vec![EMPTY_TUPLE],
            texts: Vec::new(),
            bytes: Vec::new(),
            longs: Vec::new(),
            values: Vec::new(),
            grown: Vec::new(),
            globals: Vec::new(),
            items: HashMap::new(),
            root: Value::None,
            length: 0,
        };
        let outcome = machine::run(bytes, &mut tree)?;
        tree.root = outcome.item;
        tree.length = outcome.length;
        Ok(tree)
    }

    /// The pickled value itself.
    pub(crate) fn root(&self) -> Value {
        self.root
    }

    /// Bytes of the pickle, STOP included.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The text that this is.
    pub(crate) fn text(&self, value: Value) -> Option<&'a str> {
        match value {
            Value::Text(place) => self.texts.get(place as usize).copied(),
            _ => None,
        }
    }

    /// The bytes that this is.
    pub(crate) fn bytes(&self, value: Value) -> Option<&'a [u8]> {
        match value {
            Value::Bytes(place) => self.bytes.get(place as usize).copied(),
            _ => None,
        }
    }

    /// The integer that this is.
    pub(crate) fn int(&self, value: Value) -> Option<i64> {
        match value {
            Value::Int(number) => Some(number.into()),
            Value::Long(place) => self.longs.get(place as usize).copied(),
            _ => None,
        }
    }

    fn node(&self, value: Value) -> Option<Node> {
        match value {
            Value::Node(place) => self.nodes.get(place as usize).copied(),
            _ => None,
        }
    }

    fn run(&self, run: Run) -> &[Value] {
        &self.values[run.start as usize..][..run.length as usize]
    }

    fn filled(&self, filled: Filled) -> &[Value] {
        match filled {
            Filled::Once(run) => self.run(run),
            Filled::InSteps(place) => &self.grown[place as usize],
        }
    }

    /// The items of a tuple.
    pub(crate) fn tuple(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Tuple(run) => Some(self.run(run)),
            _ => None,
        }
    }

    /// The items of a list.
    pub(crate) fn list(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::List(items) => Some(self.filled(items)),
            _ => None,
        }
    }

    /// Keys and values of a dict, as they were set.
    pub(crate) fn dict(&self, value: Value) -> Option<impl DoubleEndedIterator<Item = (Value, Value)>> {
        match self.node(value)? {
            Node::Dict(pairs) => Some(self.filled(pairs).chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => None,
        }
    }

    /// Keys and values that were set in an object.
    pub(crate) fn object_items(&self, value: Value) -> impl Iterator<Item = (Value, Value)> {
        let items = match value {
            Value::Node(place) => self.items.get(&place).map(Vec::as_slice).unwrap_or_default(),
            _ => &[],
        };
        items.chunks_exact(2).map(|pair| (pair[0], pair[1]))
    }

    /// Whether this is a set.
    pub(crate) fn is_set(&self, value: Value) -> bool {
        matches!(self.node(value), Some(Node::Set))
    }

    /// The value of a key of a dict that is text.
    pub(crate) fn item(&self, dict: Value, key: &str) -> Option<Value> {
        self.dict(dict)?.rev().find(|pair| self.text(pair.0) == Some(key)).map(|pair| pair.1)
    }

    /// The state of an object.
    pub(crate) fn state(&self, value: Value) -> Option<Value> {
        match self.node(value)? {
            Node::Object { start, is_built: true } => self.values.get(start as usize + 2).copied(),
            _ => None,
        }
    }

    /// Module and name of a global.
    pub(crate) fn global(&self, value: Value) -> Option<(&'a str, &'a str)> {
        match self.node(value)? {
            Node::Global(place) => self.globals.get(place as usize).copied(),
            _ => None,
        }
    }

    fn call(&self, value: Value) -> Option<[Value; 2]> {
        match self.node(value)? {
            Node::Object { start, .. } => self.values[start as usize..].first_chunk().copied(),
            _ => None,
        }
    }

    /// Module and name of the class or function an object was made by.
    pub(crate) fn maker(&self, value: Value) -> Option<(&'a str, &'a str)> {
        let [callable, _] = self.call(value)?;
        self.global(callable)
    }

    /// The arguments an object was made with.
    pub(crate) fn arguments(&self, value: Value) -> Option<&[Value]> {
        let [_, arguments] = self.call(value)?;
        self.tuple(arguments)
    }

    /// The id of a persistent object.
    pub(crate) fn persistent_id(&self, value: Value) -> Option<Value> {
        match self.node(value)? {
            Node::Persistent(place) => self.values.get(place as usize).copied(),
            _ => None,
        }
    }

    fn push(&mut self, node: Node) -> Result<Value, Error> {
        let place = place(self.nodes.len())?;
        self.nodes.push(node);
        Ok(Value::Node(place))
    }

    /// Keeps values next to each other.
    fn keep(&mut self, values: &[Value]) -> Result<Run, Error> {
        let run = Run { start: place(self.values.len())?, length: place(values.len())? };
        self.values.extend_from_slice(values);
        Ok(run)
    }

    fn fill(&mut self, filled: Filled, more: &[Value]) -> Result<Filled, Error> {
        match filled {
            Filled::Once(Run { length: 0, .. }) => Ok(Filled::Once(self.keep(more)?)),
            Filled::Once(run) => {
                let grown = [self.run(run), more].concat();
                self.grown.push(grown);
                Ok(Filled::InSteps(place(self.grown.len() - 1)?))
            }
            Filled::InSteps(place) => {
                self.grown[place as usize].extend_from_slice(more);
                Ok(filled)
            }
        }
    }
}

/// A number of something in the tree.
fn place(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| corrupt("pickle: too many objects"))
}

/// The first node: all empty tuples are one.
const EMPTY_TUPLE: Node = Node::Tuple(Run { start: 0, length: 0 });
const EMPTY: Filled = Filled::Once(Run { start: 0, length: 0 });

impl<'a> Builder<'a> for Tree<'a> {
    type Item = Value;

    fn plain(&mut self, op: Op<'a>) -> Result<Value, Error> {
        Ok(match op {
            Op::None => Value::None,
            Op::Bool(value) => Value::Bool(value),
            Op::Int(value) => match i32::try_from(value) {
                Ok(value) => Value::Int(value),
                Err(_) => {
                    self.longs.push(value);
                    Value::Long(place(self.longs.len() - 1)?)
                }
            },
            Op::Text(text) => {
                self.texts.push(text);
                Value::Text(place(self.texts.len() - 1)?)
            }
            Op::Bytes(bytes) => {
                self.bytes.push(bytes);
                Value::Bytes(place(self.bytes.len() - 1)?)
            }
            Op::EmptyTuple => Value::Node(0),
            Op::EmptyList => self.push(Node::List(EMPTY))?,
            Op::EmptyDict => self.push(Node::Dict(EMPTY))?,
            Op::EmptySet => self.push(Node::Set)?,
            _ => Value::Other,
        })
    }

    fn tuple(&mut self, items: &[Value]) -> Result<Value, Error> {
        let run = self.keep(items)?;
        self.push(Node::Tuple(run))
    }

    fn frozen_set(&mut self, _items: &[Value]) -> Result<Value, Error> {
        self.push(Node::Set)
    }

    fn extend(&mut self, target: Value, items: &[Value]) -> Result<(), Error> {
        if let (Value::Node(place), Some(Node::List(list))) = (target, self.node(target)) {
            self.nodes[place as usize] = Node::List(self.fill(list, items)?);
        }
        Ok(())
    }

    fn set_items(&mut self, target: Value, pairs: &[Value]) -> Result<(), Error> {
        match (self.node(target), target) {
            (Some(Node::Dict(dict)), Value::Node(place)) => {
                self.nodes[place as usize] = Node::Dict(self.fill(dict, pairs)?);
            }
            (Some(Node::Object { .. }), Value::Node(place)) => {
                self.items.entry(place).or_default().extend_from_slice(pairs);
            }
            _ => {}
        }
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<Value, Error> {
        self.globals.push((module, name));
        self.push(Node::Global(place(self.globals.len() - 1)?))
    }

    fn text(&self, item: Value) -> Option<&'a str> {
        Tree::text(self, item)
    }

    fn call(&mut self, callable: Value, arguments: Value, _keywords: Option<Value>) -> Result<Value, Error> {
        let is_empty = Tree::tuple(self, arguments).is_some_and(<[_]>::is_empty);
        if is_empty && Tree::global(self, callable) == Some(PLAIN_DICT) {
            return self.plain(Op::EmptyDict);
        }
        let start = self.keep(&[callable, arguments, Value::None])?.start;
        self.push(Node::Object { start, is_built: false })
    }

    fn build(&mut self, object: Value, state: Value) -> Result<(), Error> {
        if let (Value::Node(place), Some(Node::Object { start, .. })) = (object, self.node(object)) {
            self.values[start as usize + 2] = state;
            self.nodes[place as usize] = Node::Object { start, is_built: true };
        }
        Ok(())
    }

    fn persistent(&mut self, id: Value) -> Result<Value, Error> {
        let start = self.keep(&[id])?.start;
        self.push(Node::Persistent(start))
    }
}
