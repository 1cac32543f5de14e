//! `#[entry]`: a function that Python calls, whose panics become errors.
//!
//! PyO3 makes a panic a `PanicException`, which is no `Exception`: it passes every `except Exception`, ends whole ranks
//! and says nothing of where it comes from. Standing above `#[pymethods]` or `#[pyfunction]`, this attribute is expanded
//! first and runs each body in `crate::panics::caught`. A function that could not fail can now: `-> T` becomes
//! `-> PyResult<T>`.

use proc_macro::TokenStream;
use quote::quote;
use syn::{Block, Error, ImplItem, Item, Result, ReturnType, Signature, Type, parse_quote, parse2};

/// Runs the bodies of a function, or of all functions of an `impl` block, in `crate::panics::caught`.
#[proc_macro_attribute]
pub fn entry(_arguments: TokenStream, item: TokenStream) -> TokenStream {
    guarded(item.into()).unwrap_or_else(Error::into_compile_error).into()
}

fn guarded(item: proc_macro2::TokenStream) -> Result<proc_macro2::TokenStream> {
    let mut item = parse2(item)?;
    match &mut item {
        Item::Fn(function) => {
            let name = function.sig.ident.to_string();
            *function.block = catch(&name, &mut function.sig, &function.block);
        }
        Item::Impl(block) => {
            let class = &block.self_ty;
            let class = quote!(#class).to_string();
            for item in &mut block.items {
                if let ImplItem::Fn(function) = item {
                    let name = format!("{class}.{}", function.sig.ident);
                    function.block = catch(&name, &mut function.sig, &function.block);
                }
            }
        }
        other => return Err(Error::new_spanned(other, "entry: must stand on a function or an impl block")),
    }
    Ok(quote!(#item))
}

/// The body in its guard; the signature then has a result that an error fits into.
fn catch(name: &str, signature: &mut Signature, body: &Block) -> Block {
    let given: Type = match &signature.output {
        ReturnType::Default => parse_quote!(()),
        ReturnType::Type(_, given) => (**given).clone(),
    };
    if is_result(&given) {
        return parse_quote!({ crate::panics::caught(#name, move || -> #given #body) });
    }
    signature.output = parse_quote!(-> ::pyo3::PyResult<#given>);
    parse_quote!({ crate::panics::caught_value(#name, move || -> #given #body) })
}

fn is_result(given: &Type) -> bool {
    let Type::Path(path) = given else { return false };
    path.path.segments.last().is_some_and(|last| last.ident == "PyResult")
}
