#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| soulbox_envd::http::fuzzing::paths(data));
