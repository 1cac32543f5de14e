//! Pickles, without running them: a stack machine over untrusted bytes with two builders on it.
//!
//! [`opcode`] cuts the bytes into opcodes, [`machine`] keeps the stack, the marks and the memo, [`scan`] judges an
//! index before Python unpickles it (by the list in [`allow`]), [`value`] builds a tree of plain data for this crate's own reading. Nothing
//! here recurses, and no length from the input is allocated before that many bytes are seen.

pub(crate) mod allow;
pub(crate) mod machine;
pub(crate) mod opcode;
pub(crate) mod scan;
pub(crate) mod value;
pub(crate) mod write;
