//! Pickles, without running them: a stack machine over untrusted bytes.
//!
//! [`opcode`] cuts the bytes into opcodes, [`machine`] keeps the stack, the marks and the memo for a builder, [`value`] is one
//! that builds a tree of plain data, [`write`] writes. Nothing here recurses, and no length from the input is allocated before
//! that many bytes are seen. What an index may hold is judged in [`index`](crate::index).

pub(crate) mod machine;
pub(crate) mod opcode;
pub(crate) mod value;
pub(crate) mod write;
