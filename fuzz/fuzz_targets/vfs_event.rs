#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| afterwrite::fuzzing::vfs_event(data));
