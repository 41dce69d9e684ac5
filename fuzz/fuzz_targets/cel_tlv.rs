#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| imastage_fuzz::cel_tlv(data));
