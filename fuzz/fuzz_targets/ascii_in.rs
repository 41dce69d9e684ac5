#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| imastage_fuzz::ascii_in(data));
