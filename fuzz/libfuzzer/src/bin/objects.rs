#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| s3dcp_fuzz::objects(data));
