//! What hostile lists cost to read: memory is counted, not timed. One test, since it counts for all
//! threads.
#![cfg(feature = "cel")]
#![allow(clippy::unwrap_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use ima_log::{AsciiDecoder, Bank, Decoder, Format, MAX_TEMPLATE_DATA, RecordBuilder, cel, json};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    MOST.fetch_max(HELD.fetch_add(by, Relaxed) + by, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is, which keeps the contract; counting
// touches no memory but two numbers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Feeds a list as files are read, until it ends or an error comes; gives how many bytes were held at
/// most beyond the list itself, and how many records came.
fn cost(list: &[u8], mut decode: impl FnMut(Option<&[u8]>) -> Option<u64>) -> (usize, u64) {
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let mut records = 0;
    for chunk in list.chunks(256 << 10).map(Some).chain([None]) {
        match decode(chunk) {
            Some(more) => records += more,
            None => break,
        }
    }
    (MOST.load(Relaxed) - before, records)
}

macro_rules! decoder {
    ($decoder:expr) => {{
        let mut decoder = $decoder;
        move |chunk: Option<&[u8]>| {
            match chunk {
                Some(chunk) => decoder.feed(chunk),
                None => decoder.end(),
            }
            let mut records = 0;
            loop {
                match decoder.next_record() {
                    Ok(Some(_)) => records += 1,
                    Ok(None) => return Some(records),
                    Err(_) => return None,
                }
            }
        }
    }};
}

/// A little over the largest line, filled with `part` between `head` and `tail`.
fn filled(head: &str, part: &str, tail: &str, len: usize) -> Vec<u8> {
    [head, &part.repeat(len / part.len()), tail].concat().into_bytes()
}

#[test]
fn finding_08_memory_is_a_small_multiple_of_a_line() {
    let digest = "11".repeat(20);
    // A line of 33 MB, as it was found, and one that is as long as lines may be.
    for len in [33 << 20, 2 << 20] {
        // A line is held, its buffer grows by doubling, and what is read of it is copied a few times.
        let most = 8 * (2 << 20) + (4 << 20);
        let line =
            format!("{{\"pcr\":10,\"digest\":\"{digest}\",\"template\":\"ima-ng\",\"fields\":[");
        for part in ["{\"n\":0},", "{\"d-ng\":\"\"},", "[[[]]],", "\"\\u0000\","] {
            let list = filled(&line, part, "0]}\n", len);
            let (held, records) = cost(&list, decoder!(json::Decoder::new()));
            assert!(held < most && records == 0, "JSON {part}: {held}");
        }
        let head = format!("{line}{{\"d-ng\":{{\"hex\":\"");
        let list = filled(&head, "00", "\"}},{\"n-ng\":\"\"}]}\n", len);
        assert!(cost(&list, decoder!(json::Decoder::new())).0 < most);
        let head = "[{\"pcr\":10,\"content_type\":\"x\",\"content\":[";
        for (head, part) in [
            (head, "{\"a\":0},"),
            ("[{\"pcr\":10,\"digests\":[", "{\"hashAlg\":1,\"digest\":\"\"},"),
            ("[{\"content_type\":[", "[0],"),
        ] {
            let list = filled(head, part, "0]}]", len);
            let (held, _) = cost(&list, decoder!(cel::Decoder::new(cel::Encoding::Json)));
            assert!(held < most, "CEL JSON {part}: {held}");
        }
        for head in [&b"\x81\xa5\x0a\x9f"[..], b"\x81\xa5\x03\x9f", b"\x9f\xbf\x0a\xbf"] {
            let list = [head, &vec![0x81; 1][..], &vec![0xa0; len]].concat();
            let (held, _) = cost(&list, decoder!(cel::Decoder::new(cel::Encoding::Cbor)));
            assert!(held < most, "CBOR: {held}");
        }
        let list = [b"\0\0\0\0\x01\0\x03\xff\xff\xff\xff".to_vec(), vec![0; len]].concat();
        assert!(cost(&list, decoder!(cel::Decoder::new(cel::Encoding::Tlv))).0 < most);
        for head in [format!("10 {digest} strange "), format!("10 {digest} ima-sig sha1:00 /x ")] {
            for part in ["00 ", " ", "00", "\r", "\t"] {
                let list = filled(&head, part, "\n", len);
                let (held, records) = cost(&list, decoder!(AsciiDecoder::new()));
                assert!(held < most && records == 0, "ASCII {part:?}: {held}");
            }
        }
    }

    // What a kernel may make is read in the kernel's own form.
    let data = vec![7; MAX_TEMPLATE_DATA - 1000];
    let file = Bank::Sha256.hash(&[&data]);
    let largest = RecordBuilder::new(10).ima_buf(&file, b"large", &data).unwrap();
    let mut decoder = Decoder::new(Format::native(Bank::Sha1));
    decoder.feed(largest.as_bytes());
    assert_eq!(decoder.next_record().unwrap(), Some(largest.record()));
    // Exports of what is within the limit come back.
    let large = RecordBuilder::new(10).ima_buf(&file, b"large", &data[..1_000_000]).unwrap();
    let mut line = Vec::new();
    json::write_record(&large.record(), 0, Bank::Sha1, &mut line);
    assert_eq!(cost(&line, decoder!(json::Decoder::new())).1, 1);
    line.clear();
    large.record().write_ascii(Bank::Sha256, &mut line);
    assert_eq!(cost(&line, decoder!(AsciiDecoder::new())).1, 1);
}
