//! A pickle as a tree of plain data: globals stay names, calls stay unexecuted records.
//!
//! For the pickles inside tensor archives, and for indexes that have been judged. Values are copied; containers, globals
//! and calls live in one arena and refer to each other by number, so reference cycles are harmless. Contents of sets are
//! not kept: nobody here asks for them.

use std::collections::HashMap;

use s3dcp_s3::Error;

use super::machine::{self, Builder};
use super::opcode::Op;
use crate::error::corrupt;

/// One datum of a pickle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A container, a global or an object: a place in the arena.
    Node(u32),
    /// Something nobody here asks about: floats, long integers.
    Other,
}

#[derive(Debug)]
enum Node<'a> {
    Tuple(Box<[Value<'a>]>),
    List(Vec<Value<'a>>),
    /// Keys and values take turns.
    Dict(Vec<Value<'a>>),
    Set,
    Global(&'a str, &'a str),
    Object(Object<'a>),
    Persistent(Value<'a>),
}

#[derive(Clone, Copy, Debug)]
struct Object<'a> {
    callable: Value<'a>,
    arguments: Value<'a>,
    /// What it was built from, last.
    state: Option<Value<'a>>,
}

/// A whole pickle, read.
#[derive(Debug)]
pub(crate) struct Tree<'a> {
    nodes: Vec<Node<'a>>,
    /// Keys and values that were set in objects, such as an OrderedDict.
    items: HashMap<u32, Vec<Value<'a>>>,
    root: Value<'a>,
    length: usize,
}

impl<'a> Tree<'a> {
    /// Reads the pickle at the front of `bytes`.
    ///
    /// # Errors
    /// `Corrupt` for whatever Python's pickler would not write.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Tree<'a>, Error> {
        let mut tree = Tree { nodes: Vec::new(), items: HashMap::new(), root: Value::None, length: 0 };
        let outcome = machine::run(bytes, &mut tree)?;
        tree.root = outcome.item;
        tree.length = outcome.length;
        Ok(tree)
    }

    /// The pickled value itself.
    pub(crate) fn root(&self) -> Value<'a> {
        self.root
    }

    /// Bytes of the pickle, STOP included.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    fn node(&self, value: Value<'a>) -> Option<&Node<'a>> {
        match value {
            Value::Node(place) => self.nodes.get(place as usize),
            _ => None,
        }
    }

    /// The items of a tuple.
    pub(crate) fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.node(value) {
            Some(Node::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    /// The items of a list.
    pub(crate) fn list(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.node(value) {
            Some(Node::List(items)) => Some(items),
            _ => None,
        }
    }

    /// Keys and values of a dict, as they were set.
    pub(crate) fn dict(
        &self,
        value: Value<'a>,
    ) -> Option<impl DoubleEndedIterator<Item = (Value<'a>, Value<'a>)>> {
        match self.node(value) {
            Some(Node::Dict(pairs)) => Some(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            _ => None,
        }
    }

    /// Keys and values that were set in an object.
    pub(crate) fn object_items(&self, value: Value<'a>) -> impl Iterator<Item = (Value<'a>, Value<'a>)> {
        let items = match value {
            Value::Node(place) => self.items.get(&place).map(Vec::as_slice).unwrap_or_default(),
            _ => &[],
        };
        items.chunks_exact(2).map(|pair| (pair[0], pair[1]))
    }

    /// Whether this is a set.
    pub(crate) fn is_set(&self, value: Value<'a>) -> bool {
        matches!(self.node(value), Some(Node::Set))
    }

    /// The value of a key of a dict that is text.
    pub(crate) fn item(&self, dict: Value<'a>, key: &str) -> Option<Value<'a>> {
        let is_it = |pair: &(Value<'a>, Value<'a>)| matches!(pair.0, Value::Text(text) if text == key);
        self.dict(dict)?.rev().find(is_it).map(|pair| pair.1)
    }

    /// The state of an object.
    pub(crate) fn state(&self, value: Value<'a>) -> Option<Value<'a>> {
        self.object(value)?.state
    }

    /// Module and name of a global.
    pub(crate) fn global(&self, value: Value<'a>) -> Option<(&'a str, &'a str)> {
        match self.node(value) {
            Some(Node::Global(module, name)) => Some((module, name)),
            _ => None,
        }
    }

    fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match self.node(value) {
            Some(Node::Object(object)) => Some(object),
            _ => None,
        }
    }

    /// Module and name of the class or function an object was made by.
    pub(crate) fn maker(&self, value: Value<'a>) -> Option<(&'a str, &'a str)> {
        self.global(self.object(value)?.callable)
    }

    /// The arguments an object was made with.
    pub(crate) fn arguments(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        self.tuple(self.object(value)?.arguments)
    }

    /// The id of a persistent object.
    pub(crate) fn persistent_id(&self, value: Value<'a>) -> Option<Value<'a>> {
        match self.node(value) {
            Some(Node::Persistent(id)) => Some(*id),
            _ => None,
        }
    }

    fn node_mut(&mut self, value: Value<'a>) -> Option<&mut Node<'a>> {
        match value {
            Value::Node(place) => self.nodes.get_mut(place as usize),
            _ => None,
        }
    }

    fn push(&mut self, node: Node<'a>) -> Result<Value<'a>, Error> {
        let place = u32::try_from(self.nodes.len()).map_err(|_| corrupt("pickle: too many objects"))?;
        self.nodes.push(node);
        Ok(Value::Node(place))
    }
}

impl<'a> Builder<'a> for Tree<'a> {
    type Item = Value<'a>;

    fn plain(&mut self, op: Op<'a>) -> Result<Value<'a>, Error> {
        Ok(match op {
            Op::None => Value::None,
            Op::Bool(value) => Value::Bool(value),
            Op::Int(value) => Value::Int(value),
            Op::Text(value) => Value::Text(value),
            Op::Bytes(bytes) => Value::Bytes(bytes),
            Op::EmptyTuple => self.push(Node::Tuple(Box::default()))?,
            Op::EmptyList => self.push(Node::List(Vec::new()))?,
            Op::EmptyDict => self.push(Node::Dict(Vec::new()))?,
            Op::EmptySet => self.push(Node::Set)?,
            _ => Value::Other,
        })
    }

    fn tuple(&mut self, items: &[Value<'a>]) -> Result<Value<'a>, Error> {
        self.push(Node::Tuple(items.into()))
    }

    fn frozen_set(&mut self, _items: &[Value<'a>]) -> Result<Value<'a>, Error> {
        self.push(Node::Set)
    }

    fn extend(&mut self, target: Value<'a>, items: &[Value<'a>]) -> Result<(), Error> {
        if let Some(Node::List(list)) = self.node_mut(target) {
            list.extend_from_slice(items);
        }
        Ok(())
    }

    fn set_items(&mut self, target: Value<'a>, pairs: &[Value<'a>]) -> Result<(), Error> {
        match (self.node_mut(target), target) {
            (Some(Node::Dict(dict)), _) => dict.extend_from_slice(pairs),
            (Some(Node::Object(_)), Value::Node(place)) => {
                self.items.entry(place).or_default().extend_from_slice(pairs);
            }
            _ => {}
        }
        Ok(())
    }

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<Value<'a>, Error> {
        self.push(Node::Global(module, name))
    }

    fn text(&self, item: Value<'a>) -> Option<&'a str> {
        match item {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn call(
        &mut self,
        callable: Value<'a>,
        arguments: Value<'a>,
        _keywords: Option<Value<'a>>,
    ) -> Result<Value<'a>, Error> {
        self.push(Node::Object(Object { callable, arguments, state: None }))
    }

    fn build(&mut self, object: Value<'a>, state: Value<'a>) -> Result<(), Error> {
        if let Some(Node::Object(object)) = self.node_mut(object) {
            object.state = Some(state);
        }
        Ok(())
    }

    fn persistent(&mut self, id: Value<'a>) -> Result<Value<'a>, Error> {
        self.push(Node::Persistent(id))
    }
}
