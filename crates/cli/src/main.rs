//! The `s3dcp` binary: everything is in the library, so that the Python package runs the same code.

fn main() {
    std::process::exit(s3dcp_cli::run(std::env::args_os()));
}
