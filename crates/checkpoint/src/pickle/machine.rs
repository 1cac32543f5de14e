//! The stack machine of pickles: stack, marks and memo, with what the items are left to a [`Builder`].
//!
//! The memo grows by one at a time (Python's pickler numbers it so), thus no index can make it larger than the
//! input; the same holds for the stack. Time and memory are linear in the input.

use s3dcp_s3::Error;

use super::opcode::{Op, Opcodes};
use crate::error::corrupt;

/// Most marks open at once; Python's pickler opens one per nesting level.
const MAX_MARKS: usize = 1000;

/// Makes items from opcodes.
pub(crate) trait Builder<'a> {
    /// What the stack holds: small, copied by memo and DUP.
    type Item: Copy;

    /// None, booleans, numbers, text, bytes, and the empty containers.
    fn plain(&mut self, op: Op<'a>) -> Result<Self::Item, Error>;
    fn tuple(&mut self, items: &[Self::Item]) -> Result<Self::Item, Error>;
    fn frozen_set(&mut self, items: &[Self::Item]) -> Result<Self::Item, Error>;
    /// APPEND, APPENDS, ADDITEMS.
    fn extend(&mut self, target: Self::Item, items: &[Self::Item]) -> Result<(), Error>;
    /// SETITEM, SETITEMS; keys and values take turns, an even number.
    fn set_items(&mut self, target: Self::Item, pairs: &[Self::Item]) -> Result<(), Error>;
    fn global(&mut self, module: &'a str, name: &'a str) -> Result<Self::Item, Error>;
    /// The text of an item, for STACK_GLOBAL.
    fn text(&self, item: Self::Item) -> Option<&'a str>;
    /// REDUCE, NEWOBJ and (with keyword arguments) NEWOBJ_EX.
    fn call(
        &mut self,
        callable: Self::Item,
        arguments: Self::Item,
        keywords: Option<Self::Item>,
    ) -> Result<Self::Item, Error>;
    fn build(&mut self, object: Self::Item, state: Self::Item) -> Result<(), Error>;
    fn persistent(&mut self, id: Self::Item) -> Result<Self::Item, Error>;
    /// There are more references to this item from now on than one.
    fn shared(&mut self, _item: Self::Item) {}
}

/// The item a pickle leaves, and the pickle's length with its STOP.
pub(crate) struct Outcome<I> {
    pub(crate) item: I,
    pub(crate) length: usize,
}

/// Runs the opcodes from the front of `bytes` up to STOP.
///
/// # Errors
/// `Corrupt` for anything that Python's pickler would not write, and what the builder refuses.
pub(crate) fn run<'a, B: Builder<'a>>(bytes: &'a [u8], builder: &mut B) -> Result<Outcome<B::Item>, Error> {
    let mut opcodes = Opcodes::new(bytes);
    let mut machine = Machine { stack: Vec::new(), marks: Vec::new(), memo: Vec::new() };
    loop {
        let start = opcodes.position();
        let op = opcodes.next()?;
        if matches!(op, Op::Stop) {
            let length = opcodes.position();
            return match machine.stack[..] {
                [item] if machine.marks.is_empty() => Ok(Outcome { item, length }),
                _ => Err(corrupt(format!(
                    "pickle: {} items are left at its end, not one",
                    machine.stack.len()
                ))),
            };
        }
        machine.step(op, builder).map_err(|error| at_byte(error, start))?;
    }
}

struct Machine<I> {
    stack: Vec<I>,
    marks: Vec<usize>,
    memo: Vec<I>,
}

impl<I: Copy> Machine<I> {
    /// The lowest stack place that may be taken now.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<I, Error> {
        if self.stack.len() <= self.floor() {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn top(&self) -> Result<I, Error> {
        self.stack[self.floor()..].last().copied().ok_or_else(underflow)
    }

    /// Closes the newest mark: the place where its items begin.
    fn unmark(&mut self) -> Result<usize, Error> {
        self.marks.pop().ok_or_else(|| corrupt("pickle: a mark is missing"))
    }

    #[inline(always)]
    fn step<'a, B: Builder<'a, Item = I>>(&mut self, op: Op<'a>, builder: &mut B) -> Result<(), Error> {
        match op {
            Op::Proto(2..=5) => {}
            Op::Proto(version) => {
                return Err(corrupt(format!("pickle: protocol {version}, only 2 to 5 are read")));
            }
            Op::Frame | Op::Stop => {}
            Op::Mark => {
                if self.marks.len() == MAX_MARKS {
                    return Err(corrupt(format!("pickle: nested more than {MAX_MARKS} levels deep")));
                }
                self.marks.push(self.stack.len());
            }
            Op::Pop => {
                // on an empty level POP takes the mark itself
                if self.stack.len() > self.floor() {
                    self.stack.pop();
                } else {
                    self.unmark()?;
                }
            }
            Op::PopMark => {
                let start = self.unmark()?;
                self.stack.truncate(start);
            }
            Op::Dup => {
                builder.shared(self.top()?);
                self.stack.push(self.top()?);
            }
            Op::Tuple => {
                let start = self.unmark()?;
                let item = builder.tuple(&self.stack[start..])?;
                self.stack.truncate(start);
                self.stack.push(item);
            }
            Op::TupleOf(count) => {
                if self.stack.len() < self.floor() + count {
                    return Err(underflow());
                }
                let start = self.stack.len() - count;
                let item = builder.tuple(&self.stack[start..])?;
                self.stack.truncate(start);
                self.stack.push(item);
            }
            Op::FrozenSet => {
                let start = self.unmark()?;
                let item = builder.frozen_set(&self.stack[start..])?;
                self.stack.truncate(start);
                self.stack.push(item);
            }
            Op::Append => {
                let item = self.pop()?;
                builder.extend(self.top()?, &[item])?;
            }
            Op::Appends | Op::AddItems => {
                let start = self.unmark()?;
                if start <= self.floor() {
                    return Err(underflow());
                }
                builder.extend(self.stack[start - 1], &self.stack[start..])?;
                self.stack.truncate(start);
            }
            Op::SetItem => {
                let value = self.pop()?;
                let key = self.pop()?;
                builder.set_items(self.top()?, &[key, value])?;
            }
            Op::SetItems => {
                let start = self.unmark()?;
                if start <= self.floor() || !(self.stack.len() - start).is_multiple_of(2) {
                    return Err(underflow());
                }
                builder.set_items(self.stack[start - 1], &self.stack[start..])?;
                self.stack.truncate(start);
            }
            Op::Global(module, name) => self.stack.push(builder.global(module, name)?),
            Op::StackGlobal => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Some(module), Some(name)) = (builder.text(module), builder.text(name)) else {
                    return Err(corrupt("pickle: a global is named by something that is not text"));
                };
                self.stack.push(builder.global(module, name)?);
            }
            Op::Reduce | Op::NewObj => {
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.stack.push(builder.call(callable, arguments, None)?);
            }
            Op::NewObjEx => {
                let keywords = self.pop()?;
                let arguments = self.pop()?;
                let callable = self.pop()?;
                self.stack.push(builder.call(callable, arguments, Some(keywords))?);
            }
            Op::Build => {
                let state = self.pop()?;
                builder.build(self.top()?, state)?;
            }
            Op::PersistentId => {
                let id = self.pop()?;
                self.stack.push(builder.persistent(id)?);
            }
            Op::Get(index) => {
                let item = self.memo.get(index as usize).copied();
                self.stack.push(item.ok_or_else(|| corrupt(format!("pickle: memo {index} was never set")))?);
            }
            Op::Put(index) => {
                let item = self.top()?;
                builder.shared(item);
                let index = index as usize;
                if index > self.memo.len() {
                    return Err(corrupt(format!("pickle: memo {index} is set before those below it")));
                }
                match self.memo.get_mut(index) {
                    Some(place) => *place = item,
                    None => self.memo.push(item),
                }
            }
            Op::Memoize => {
                builder.shared(self.top()?);
                self.memo.push(self.top()?);
            }
            plain => self.stack.push(builder.plain(plain)?),
        }
        Ok(())
    }
}

#[cold]
fn at_byte(error: Error, start: usize) -> Error {
    let message = format!("{} (at byte {start})", error.message());
    error.with_message(message)
}

#[cold]
fn underflow() -> Error {
    corrupt("pickle: an opcode finds too few items")
}
