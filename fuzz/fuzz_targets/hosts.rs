#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| soulbox_ingress::fuzzing::hosts(data));
