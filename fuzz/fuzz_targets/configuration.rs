#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| afterwrite::fuzzing::configuration(data));
